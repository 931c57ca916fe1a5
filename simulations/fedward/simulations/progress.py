"""How far a simulation is: which arm, which round, how much longer, how good so far.

On a terminal this is a live bar; where output is a file or a pipe, a few plain lines.

    >>> from rich.console import Console
    >>> console = Console(force_terminal=False, width=60)
    >>> with RunProgress(console, [("federated", 2)], metric="AUROC", clock=lambda: 0.0) as run:
    ...     run.on_round("federated", 1, 0.9)
    ...     run.on_round("federated", 2, 0.95)
    Federated: round 1 of 2, AUROC 0.900, 0 s left
    Federated: round 2 of 2, AUROC 0.950, done in 0 s
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fedward.simulations.report.words import arm_label

_LINES = 10
"""About so many lines per arm where output is not a terminal."""


class RoundListener(Protocol):
    """What an engine tells while it runs."""

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        """Round `round_number` (from 1) of `arm` is finished; `metric` if it was evaluated."""
        ...


class RunProgress:
    """Progress of all arms; a context manager and a `RoundListener`.

    Args:
        console: where to write.
        arms: `(arm, number of rounds)`, in the order in which they run.
        metric: name of the current metric, as people read it.
        clock: seconds that only ever grow; for plain lines.
    """

    def __init__(
        self,
        console: Console,
        arms: Sequence[tuple[str, int]],
        *,
        metric: str = "metric",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        rounds = dict(arms)
        self._view: _Bars | _Lines = (
            _Bars(console, rounds, metric)
            if console.is_terminal and not console.is_dumb_terminal
            else _Lines(console, rounds, metric, clock)
        )

    def __enter__(self) -> Self:
        self._view.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.stop()

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        """Show that a round is finished; an arm that was not announced is ignored."""
        self._view.show(arm, round_number, metric)

    round = on_round


class _Bars:
    def __init__(self, console: Console, rounds: dict[str, int], metric: str) -> None:
        self._metric = metric
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("round"),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[current]}", markup=False),
            console=console,
            expand=True,
        )
        width = max((len(arm_label(arm)) for arm in rounds), default=0)
        self._tasks: dict[str, TaskID] = {
            arm: self._progress.add_task(
                arm_label(arm).ljust(width), total=total, start=False, current=""
            )
            for arm, total in rounds.items()
        }
        self._waiting = list(rounds)

    def start(self) -> None:
        self._progress.start()
        self._start_next()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, arm: str, round_number: int, metric: float | None) -> None:
        if arm not in self._tasks:
            return
        task = self._tasks[arm]
        if arm in self._waiting:
            self._waiting.remove(arm)
            self._progress.start_task(task)
        changes = {} if metric is None else {"current": f"{self._metric} {metric:.3f}"}
        self._progress.update(task, completed=round_number, **changes)  # type: ignore[arg-type]
        if self._progress.finished or round_number >= (self._progress.tasks[task].total or 0):
            self._start_next()

    def _start_next(self) -> None:
        """The clock of an arm starts when the one before it ends, not with its first round."""
        if self._waiting:
            self._progress.start_task(self._tasks[self._waiting.pop(0)])


class _Lines:
    def __init__(
        self, console: Console, rounds: dict[str, int], metric: str, clock: Callable[[], float]
    ) -> None:
        self._console = console
        self._rounds = rounds
        self._metric = metric
        self._clock = clock
        self._since = 0.0
        self._last: str | None = None

    def start(self) -> None:
        self._since = self._clock()

    def stop(self) -> None:
        pass

    def show(self, arm: str, round_number: int, metric: float | None) -> None:
        total = self._rounds.get(arm, 0)
        if total == 0:
            return
        done = round_number >= total
        tenth = round_number * _LINES // total > (round_number - 1) * _LINES // total
        if arm != self._last or tenth or done:
            self._line(arm, round_number, metric)
        self._last = arm
        if done:
            self._since = self._clock()

    def _line(self, arm: str, round_number: int, metric: float | None) -> None:
        total = self._rounds[arm]
        elapsed = self._clock() - self._since
        value = "" if metric is None else f", {self._metric} {metric:.3f}"
        left = elapsed / round_number * max(0, total - round_number)
        timing = f"done in {elapsed:.0f} s" if round_number >= total else f"{left:.0f} s left"
        self._console.print(
            f"{arm_label(arm)}: round {round_number} of {total}{value}, {timing}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
