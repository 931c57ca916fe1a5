"""`sweep.html`: the comparison as one page without scripts, as `report.html` is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fedward.common.files import write_atomic
from fedward.simulations.report.html import render_page
from fedward.simulations.report.views import Cell, Row
from fedward.simulations.report.words import (
    count_word,
    delta_text,
    epsilon_text,
    metric_of,
    number_text,
    range_text,
)
from fedward.simulations.sweep import words
from fedward.simulations.sweep.charts import cells_chart, differences_chart
from fedward.simulations.sweep.results import CellResult, SweepResults

_TEMPLATE = Path(__file__).with_name("page.html.j2")
MOST_CELLS = 40
"""So many cells are drawn; of more, the best."""
MOST_HEATS = 12
_MOST_COLUMNS = 12


class Heat(NamedTuple):
    """A table of two keys: rows are values of the first, columns values of the second."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def write_page(results: SweepResults, path: Path) -> None:
    """Write the page of a sweep, whole or not at all.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    write_atomic(path, render(results))


def render(results: SweepResults) -> str:
    """The whole page as text."""
    return render_page(_TEMPLATE, _context(results))


def ordered(results: SweepResults) -> tuple[CellResult, ...]:
    """All cells, the best mean first, failed ones last."""
    sign = 1.0 if metric_of(results.study.metric).lower_is_better else -1.0

    def place(cell: CellResult) -> tuple[bool, bool, float]:
        value = results.estimate(cell).value
        return bool(cell.failed), value is None, sign * (value or 0.0)

    return tuple(sorted(results.cells, key=place))


def _context(results: SweepResults) -> dict[str, Any]:
    cells = ordered(results)
    known = tuple(cell for cell in cells if results.estimate(cell).value is not None)
    drawn = known[:MOST_CELLS]
    metrics = [name for name in results.metric_names if name != results.study.metric]
    return {
        "r": results,
        "study": results.study,
        "metric": metric_of(results.study.metric).label,
        "findings": words.findings(results),
        "figures": _figures(results),
        "keys": ", ".join(results.keys),
        "cells": [(cell, _row(results, cell)) for cell in cells],
        "chart": Markup(cells_chart(results, results.study.metric, drawn)) if drawn else "",  # noqa: S704  (our own drawing)
        "differences": Markup(differences_chart(results, drawn)) if results.verdict else "",  # noqa: S704
        "shown": f"The best {len(drawn)} of {len(known)} cells." if len(drawn) < len(known) else "",
        "heats": tuple(itertools.islice(_heats(results), MOST_HEATS)),
        "others": [
            (metric_of(name).label, Markup(cells_chart(results, name, drawn, width=470)))  # noqa: S704
            for name in metrics
            if drawn
        ],
        "all_metrics": [_upper(metric_of(name).label) for name in results.metric_names],
        "metric_rows": [(cell, _metric_cells(results, cell)) for cell in cells if cell.metrics],
        "failed": [(cell, run) for cell in cells for run in cell.runs if run.failed],
        "run_rows": [
            (cell.name, run.seed, number_text(run.metrics.get(results.study.metric), 4),
             epsilon_text(run.epsilon), run.folder)
            for cell in cells for run in cell.runs if not run.failed
        ],
        "privacy": words.privacy(results),
        "method": words.method(results),
        "level": f"{results.study.confidence * 100:g} %",
        "mean": "mean over seeds" if len(results.seeds) > 1 else "of one seed",
        "delta": delta_text(results.study.delta),
    }  # fmt: skip


def _figures(results: SweepResults) -> tuple[tuple[str, str, str], ...]:
    runs = sum(len(cell.runs) for cell in results.cells)
    failed = sum(bool(run.failed) for cell in results.cells for run in cell.runs)
    seeds = len(results.seeds)
    figures = [
        ("Cells", f"{len(results.cells):,}", f"of {', '.join(results.keys) or 'one study'}"),
        ("Seeds", f"{seeds:,}", "each with its own patients' division"),
        ("Runs", f"{runs:,}", f"{count_word(failed)} failed" if failed else "all finished"),
        (
            "Test patients",
            f"{results.test_patients:,}",
            "the same for every seed"
            if results.design == "same patients"
            else f"per seed, of {results.test_patients + results.train_patients:,}",
        ),
    ]
    if results.design == "same patients":
        figures[1] = ("Seeds", f"{seeds:,}", "of training")
    if results.verdict:
        best = results.cell(results.verdict.best)
        found = results.estimate(best)
        digits = words.places(results, results.study.metric)
        name = "winner" if results.verdict.winner else "best mean, no winner"
        figures.append(
            (
                f"{metric_of(results.study.metric).label}, {name}",
                number_text(found.value, digits),
                range_text(found, digits) or "no interval",
            )
        )
    return tuple(figures)


def _row(results: SweepResults, cell: CellResult) -> dict[str, Any]:
    digits = words.places(results, results.study.metric)
    found = results.estimate(cell)
    standing = words.standing(results, cell)
    return {
        "value": number_text(found.value, digits),
        "range": range_text(found, digits),
        "difference": words.difference_text(results, cell),
        "spent": epsilon_text(cell.spent),
        "standing": words.STANDINGS[standing],
        "main": standing in ("winner", "best"),
        "dropped": ", ".join(cell.dropped),
    }


def _metric_cells(results: SweepResults, cell: CellResult) -> tuple[Cell, ...]:
    found = []
    for name in results.metric_names:
        estimate, digits = results.estimate(cell, name), words.places(results, name)
        found.append(Cell(number_text(estimate.value, digits), range_text(estimate, digits)))
    return tuple(found)


def _heats(results: SweepResults) -> Iterator[Heat]:
    """Tables of the first two keys, one for each combination of the others."""
    if len(results.keys) < 2:
        return
    first, second, *others = results.keys
    values = {
        key: tuple(dict.fromkeys(c.settings[key] for c in results.cells)) for key in results.keys
    }
    columns = values[second][:_MOST_COLUMNS]
    by_values = {tuple(cell.settings.values()): cell for cell in results.cells}
    means = [v for cell in results.cells if (v := results.estimate(cell).value) is not None]
    for rest in itertools.product(*(values[key] for key in others)):
        rows = tuple(
            Row(
                row,
                "",
                tuple(_heat(results, by_values[row, column, *rest], means) for column in columns),
            )
            for row in values[first]
        )
        title = ", ".join(f"{key}={value}" for key, value in zip(others, rest, strict=True))
        yield Heat(title, columns, rows)


def _heat(results: SweepResults, cell: CellResult, means: list[float]) -> Cell:
    value = results.estimate(cell).value
    if value is None:
        return Cell("failed" if cell.failed else number_text(None))
    low, high = min(means), max(means)
    share = (value - low) / (high - low) if high > low else 0.5
    if metric_of(results.study.metric).lower_is_better:
        share = 1.0 - share
    return Cell(number_text(value, words.places(results, results.study.metric)), "", share)


def _upper(label: str) -> str:
    return label[:1].upper() + label[1:]
