"""Which engine computes a run: the one that was asked for, or the one that should be fastest.

The choice depends on the study, the sites and the number of processors, on nothing that is measured
at the start: the same run on the same machine is computed the same way, also when it is resumed.
Where the limits come from is in `docs/performance.md`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from flwr.serverapp import ServerApp

from fedward.client.site import Site
from fedward.common.models.state import count_parameters
from fedward.common.preprocess import Transform
from fedward.simulations.engines.carrier import EngineGrid
from fedward.simulations.engines.executors import Executor, Looped, Stacked
from fedward.simulations.engines.loop import run_in_loop, run_over
from fedward.simulations.engines.pool import can_fork
from fedward.simulations.engines.stacked.program import Program, UnknownLayer

EngineName = Literal["auto", "loop", "stacked", "pool"]
ENGINES: tuple[str, ...] = get_args(EngineName)
STACKED_UP_TO = 100_000
"""Weights of a model up to which many sites at once are faster than one after another."""


@dataclass(frozen=True)
class Used:
    """What computed a run.

    Attributes:
        name: of the engine.
        why: it was that one, in words.
    """

    name: str
    why: str


class Engine:
    """Computes runs of one kind.

    Args:
        wanted: which engine.
    """

    def __init__(self, wanted: EngineName = "auto") -> None:
        self._wanted = wanted
        self.used = Used("loop", "one site after another")
        """What computed the last run."""

    def run(self, app: ServerApp, sites: Iterable[Site]) -> None:
        """Run a server app against sites of this machine.

        Raises:
            FedwardError: whatever ends the run; see `Rounds.run`.
        """
        known = list(sites)
        if self._wanted == "loop" or len(known) == 1:
            run_in_loop(app, known)
            return
        workers = 0 if self._wanted == "stacked" or not can_fork() else processors()
        grid = EngineGrid(known, make=self._make, workers=workers if workers > 1 else 0)
        self._where = f"{min(workers, len(known))} processes" if workers > 1 else "one process"
        try:
            run_over(app, grid)
        finally:
            grid.close()

    def _make(self, sites: Sequence[Site], transform: Transform) -> Executor:
        dataset, _ = sites[0].prepare(transform)
        module = sites[0].module(dataset)
        size, pictures = count_parameters(module), len(dataset.inputs.shape) > 1
        of_size = f"the model has {size:,} weights"
        name = "stacked" if self._where == "one process" else "pool"
        try:
            Program(module)
        except UnknownLayer as unknown:
            self.used = Used(name, f"one site after another in {self._where}: it has {unknown}")
            return Looped(sites, transform)
        private = sites[0].plan is not None
        if self._wanted != "stacked" and not private and (pictures or size > STACKED_UP_TO):
            self.used = Used(name, f"one site after another in {self._where}: {of_size}")
            return Looped(sites, transform)
        self.used = Used(name, f"many sites at once in {self._where}: {of_size}")
        return Stacked(sites, transform)


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
