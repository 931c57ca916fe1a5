"""The charts of a sweep's page: each takes results and returns inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedward.simulations.report.charts import short
from fedward.simulations.report.results import Estimate
from fedward.simulations.report.svg import ACCENT, INK, MUTED, chart
from fedward.simulations.report.words import metric_of
from fedward.simulations.sweep.results import CellResult, SweepResults
from fedward.simulations.sweep.words import standing, to_best

_NAME = 30
_FILLED = ("winner", "best")


def cells_chart(
    results: SweepResults, metric: str, cells: tuple[CellResult, ...], *, width: int = 620
) -> str:
    """One metric of the given cells, with intervals, and the runs as small dots.

    Not told by colour alone: the best has a full dot, the others a ring.
    """
    label = metric_of(metric).label
    title = f"{label} of each cell: mean over seeds with its interval, and single runs"
    rows = [
        _Row(
            cell_label(cell),
            results.estimate(cell, metric),
            standing(results, cell) in _FILLED,
            tuple(v for run in cell.runs if (v := run.metrics.get(metric)) is not None),
        )
        for cell in cells
    ]
    return _forest(f"cells-{metric}", title, label, rows, width)


def differences_chart(results: SweepResults, cells: tuple[CellResult, ...]) -> str:
    """The paired differences of the given cells to the best, with zero as a line."""
    label = metric_of(results.study.metric).label
    rows = [
        _Row(cell_label(cell), found, main=standing(results, cell) == "worse")
        for cell in cells
        if (found := to_best(results, cell)) is not None
    ]
    title = f"Difference in {label} of each cell to the best, with its interval"
    return _forest("differences", title, f"difference in {label} to the best", rows, 620, zero=True)


def cell_label(cell: CellResult) -> str:
    """The values of a cell, without their keys: `fedprox, 3`."""
    return ", ".join(cell.settings.values()) or cell.name


class _Row(NamedTuple):
    name: str
    found: Estimate
    main: bool
    runs: tuple[float, ...] = ()


def _forest(
    key: str, title: str, axis: str, rows: Sequence[_Row], width: int, *, zero: bool = False
) -> str:
    with chart(key, title, width=width, height=62 + 26 * len(rows)) as drawn:
        axes = drawn.axes
        if zero:
            axes.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(rows):
            _draw(axes, place, row)
        axes.set_yticks(range(len(rows)), [short(row.name, _NAME) for row in rows])
        axes.tick_params(axis="y", labelcolor=INK, pad=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
    return drawn.svg


def _draw(axes: Any, place: int, row: _Row) -> None:
    value, low, high = row.found.value, row.found.low, row.found.high
    if value is None:
        return
    colour = ACCENT if row.main else MUTED
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, linewidth=2 if row.main else 1.4)
    if len(row.runs) > 1:
        below = [place + 0.28] * len(row.runs)
        axes.plot(row.runs, below, ".", color=colour, markersize=3.5, alpha=0.7)
    face = colour if row.main else "none"
    style = {"markersize": 6.5, "markeredgewidth": 1.6, "markerfacecolor": face}
    axes.plot([value], [place], "o", color=colour, **style)
