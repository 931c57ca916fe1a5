"""How far a sweep is: a bar on a terminal, elsewhere a line for each run.

Nothing here starts a thread: the processes of the runs are forked while it is shown.

    >>> from rich.console import Console
    >>> with SweepProgress(Console(force_terminal=False, width=80), 2, 3, "AUROC") as shown:
    ...     shown.on_round("algorithm=fedavg, seed 1", 3, 0.9)
    ...     shown.on_end("algorithm=fedavg, seed 1", None)
    Run 1 of 2 finished: algorithm=fedavg, seed 1, AUROC 0.900
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fedward.simulations.sweep.runs import Failure

_REFRESH_S = 0.2


class SweepProgress:
    """Progress of all runs; a context manager and a `RunsListener`.

    Args:
        console: where to write.
        runs: to be done.
        rounds: of one run, at most.
        metric: name of the headline metric, as people read it.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        console: Console,
        runs: int,
        rounds: int,
        metric: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._runs, self._rounds, self._metric = runs, rounds, metric
        self._clock = clock
        self._drawn = 0.0
        self._done = 0
        self._at: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            expand=True,
            auto_refresh=False,
            disable=not console.is_terminal or console.is_dumb_terminal,
        )
        self._task = self._bar.add_task(self._said(), total=max(1, runs * rounds))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw()
        self._bar.stop()

    def on_round(self, name: str, round_number: int, metric: float | None) -> None:
        """See `runs.RunsListener`."""
        self._at[name] = round_number
        if metric is not None:
            self._last[name] = metric
        if self._clock() - self._drawn >= _REFRESH_S:
            self._draw()

    def on_end(self, name: str, failure: Failure | None) -> None:
        """See `runs.RunsListener`."""
        self._done += 1
        self._at[name] = self._rounds
        value = f", {self._metric} {self._last[name]:.3f}" if name in self._last else ""
        ending = f"finished: {name}{value}" if failure is None else f"failed: {name}"
        self._console.print(
            f"Run {self._done} of {self._runs} {ending}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._draw()

    def _said(self) -> str:
        return f"{self._done} of {self._runs} runs"

    def _draw(self) -> None:
        self._drawn = self._clock()
        self._bar.update(self._task, completed=sum(self._at.values()), description=self._said())
        self._bar.refresh()
