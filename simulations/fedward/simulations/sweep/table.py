"""The comparison as a table for a terminal: 80 columns are enough, colour is not needed."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedward.simulations.report.words import epsilon_text, metric_of, number_text, range_text
from fedward.simulations.sweep import words
from fedward.simulations.sweep.page import ordered
from fedward.simulations.sweep.results import CellResult, SweepResults


class SweepTable:
    """A rich renderable: the cells, the verdict, and what must not be done with it."""

    def __init__(self, results: SweepResults) -> None:
        self._results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, then the sentences."""
        del console, options
        yield _table(self._results)
        yield Text()
        for sentence in words.findings(self._results):
            yield Text(sentence)
        for cell in self._results.cells:
            if cell.failed:
                yield Text(f"{cell.name}: {cell.failed}", style="yellow")
        notice = self._results.notice
        yield Text(f"{notice[:1].upper()}{notice[1:]}.", style="dim")


def _table(results: SweepResults) -> Table:
    label = metric_of(results.study.metric).label
    seeds = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"
    level = f"{results.study.confidence * 100:g} %"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{escape(results.study.title)} ({seeds}, {level} intervals)",
        title_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("Cell", overflow="fold")
    table.add_column(label, justify="right")
    if results.verdict:
        table.add_column("To the best", justify="right")
    if results.private:
        table.add_column("ε spent", justify="right")
    table.add_column("")
    for cell in ordered(results):
        _add(table, results, cell)
    return table


def _add(table: Table, results: SweepResults, cell: CellResult) -> None:
    digits = words.places(results, results.study.metric)
    found = results.estimate(cell)
    standing = words.standing(results, cell)
    cells = [_two_lines(number_text(found.value, digits), range_text(found, digits))]
    if results.verdict:
        value, _, between = words.difference_text(results, cell).partition(" (")
        cells.append(_two_lines(value, between.removesuffix(")")))
    if results.private:
        cells.append(epsilon_text(cell.spent))
    style = "bold" if standing in ("winner", "best") else ""
    name = Text("\n".join(f"{key}={value}" for key, value in cell.settings.items()) or cell.name)
    table.add_row(name, *cells, words.STANDINGS[standing], style=style, end_section=True)


def _two_lines(value: str, between: str) -> str:
    return f"{value}\n{between}" if between else value
