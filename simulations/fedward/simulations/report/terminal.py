"""The results as a table for a terminal: 80 columns are enough, colour is not needed."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedward.simulations.report.explain import summary
from fedward.simulations.report.results import OVERALL, Results
from fedward.simulations.report.selection import MOST, chosen_sites
from fedward.simulations.report.words import (
    arm_label,
    decimals,
    epsilon_text,
    interval_text,
    metric_names,
    metric_of,
    most_spent,
    number_text,
    range_text,
)

_NAME = 26
"""Columns for a hospital's name at most; longer names are folded."""
_WORD = 13
"""Columns for the longest word in a metric's name, indented: words are not broken at 80 columns."""
_AT_A_SITE = 2
"""Metrics shown for a single hospital: the headline metric and the next one."""


class ResultsTable:
    """A rich renderable: the table, the finding in words, and what must not be done with it."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Value and interval share a line where the terminal is wide enough."""
        table = _table(self._results, one_line=True)
        if Measurement.get(console, options.update(max_width=1000), table).maximum > (
            options.max_width
        ):
            table = _table(self._results, one_line=False)
        yield table
        yield Text()
        yield Text(" ".join(summary(self._results)))
        for warning in self._results.warnings:
            yield Text(f"Warning: {warning}", style="yellow")
        yield Text(f"{self._results.notice[:1].upper()}{self._results.notice[1:]}.", style="dim")


def results_table(results: Results) -> ResultsTable:
    """What a simulation prints at its end.

    Rows are the hospitals (beyond 12 only the best, the median and the worst) and overall; columns
    are the arms, and the ε that was really spent; overall that is the largest of any hospital.
    """
    return ResultsTable(results)


def _table(results: Results, *, one_line: bool) -> Table:
    level = f"{results.study.confidence * 100:g} % intervals"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{escape(results.study.title)} ({level})",
        title_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 2 if one_line else 1, 0, 0),
    )
    table.add_column("Hospital", overflow="fold", min_width=_WORD, max_width=_NAME)
    for arm in results.arms:
        style = "bold" if arm == "federated" else ""
        table.add_column(arm_label(arm), style=style, justify="right")
    if results.privacy:
        table.add_column("ε spent", justify="right")
    for place, label in _places(results):
        if place == OVERALL:
            table.add_section()
        _add_place(table, results, place, label, one_line=one_line)
    return table


def _places(results: Results) -> Iterator[tuple[str, str]]:
    if len(results.sites) > MOST:
        ends = ("best", "median", "worst")
        for site, end in zip(chosen_sites(results, 3), ends, strict=False):
            yield site, f"{site} ({end} of {len(results.sites):,})"
    else:
        for site in chosen_sites(results):
            yield site, site
    yield OVERALL, "Overall"


def _add_place(table: Table, results: Results, place: str, label: str, *, one_line: bool) -> None:
    names = metric_names(results)
    if place == OVERALL:
        spent = most_spent(results)
    else:
        spent = results.privacy[place].epsilon if place in results.privacy else None
    blank = [""] * len(results.arms)
    table.add_row(
        Text(label, style="bold"), *blank, *_only_if_private(results, epsilon_text(spent))
    )
    shown = names if place == OVERALL else names[:_AT_A_SITE]
    for index, metric in enumerate(shown):
        cells = [_cell(results, arm, place, metric, one_line=one_line) for arm in results.arms]
        table.add_row(
            f"  {metric_of(metric).label}",
            *cells,
            *_only_if_private(results, ""),
            end_section=index == len(shown) - 1 and not one_line,
        )


def _only_if_private(results: Results, cell: str) -> tuple[str, ...]:
    return (cell,) if results.privacy else ()


def _cell(results: Results, arm: str, place: str, metric: str, *, one_line: bool) -> str:
    estimate, places = results.estimate(arm, place, metric), decimals(results, metric)
    if one_line:
        return interval_text(estimate, places)
    between = range_text(estimate, places)
    return number_text(estimate.value, places) + (f"\n{between}" if between else "")
