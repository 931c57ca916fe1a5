"""`bench.html` as one file that opens without internet: no scripts, no fonts, no links outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedward.simulations.bench import charts
from fedward.simulations.bench.results import Bench, Measured, Spread, Task
from fedward.simulations.bench.rivals import LABELS, PRODUCT
from fedward.simulations.report.html import render_page
from fedward.simulations.report.words import ABSENT


def render(bench: Bench) -> str:
    """The whole page as text."""
    names, safe = charts.programs(bench), Markup  # our own drawings

    def key(place: str) -> list[tuple[str, Markup]]:
        shown = [name for name in names if (place, name) != ("ratios", PRODUCT)]
        return [(LABELS[name], safe(charts.marker(name, place))) for name in shown]

    context = {
        "bench": bench,
        "programs": key("rounds"),
        "rivals": key("ratios"),
        "ratios": safe(charts.ratios(bench)),
        "rounds": safe(charts.rounds(bench)),
        "rows": [_Row(one, names) for one in bench.measured],
    }
    return render_page(Path(__file__).with_name("bench.html.j2"), context)


class _Row:
    """One workload as the tables show it."""

    def __init__(self, one: Measured, names: list[str]) -> None:
        self.name = one.task.name
        self.work = describe(one.task)
        self.ratios = [
            (_text(one.ratios.get(name)), _range(one.ratios.get(name)), _aim(one, name))
            for name in names
            if name != PRODUCT
        ]
        self.paces = list(self._paces(one, names))
        self.all_rounds = _text(one.all_rounds)
        self.first_s = f"{one.first_round_s.median:.1f} s"
        self.engine = one.engine
        self.load = f"{one.load:.1f}"

    @staticmethod
    def _paces(one: Measured, names: list[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            pace = one.programs.get(name)
            yield (
                (milliseconds(pace.round_s), f"accuracy {pace.accuracy:.3f}")
                if pace
                else (ABSENT, "")
            )


def describe(task: Task) -> str:
    """A workload in words.

    >>> from fedward.simulations.bench.workloads import WORKLOADS
    >>> describe(Task.of(WORKLOADS[4]))
    'mlp 64-32, 100 sites of 200 rows, batches of 32, patient-level DP'
    """
    layers: list[Any] = [*task.model.get("channels", ()), *task.model.get("hidden", ())]
    model = f"{task.model['name']} {'-'.join(map(str, layers))}"
    private = ", patient-level DP" if task.private else ""
    return (
        f"{model}, {task.sites:,} sites of {task.rows} rows, batches of {task.batch_size}{private}"
    )


def milliseconds(spread: Spread) -> str:
    """The median, for people."""
    return f"{charts.figure(1e3 * spread.median)} ms"


def extent(spread: Spread) -> str:
    """From the smallest to the largest, for people."""
    return f"{charts.figure(spread.least)}–{charts.figure(spread.most)}"


def _text(spread: Spread | None) -> str:
    return f"{charts.figure(spread.median)} ×" if spread else ABSENT


def _range(spread: Spread | None) -> str:
    return extent(spread) if spread else ""


def _aim(one: Measured, name: str) -> str:
    return f"wanted {one.aims[name]:g}" if name in one.aims and name in one.ratios else ""
