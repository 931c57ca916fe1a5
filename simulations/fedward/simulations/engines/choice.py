"""Which engine computes a run: the one that was asked for, or the one that should be fastest.

The choice depends on the study, the sites and the number of processors, by limits that
`docs/performance.md` explains. A longer run tries out both ways on a few sites, once on a machine,
and takes the other only where that is clearly faster here. A run that is resumed is computed as it
began.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from flwr.serverapp import ServerApp
from pydantic import BaseModel, ConfigDict, ValidationError

from fedward.client.site import Site
from fedward.common.files import write_atomic
from fedward.common.models.state import count_parameters
from fedward.common.preprocess import Transform
from fedward.simulations.engines.calibration import paces, worthwhile
from fedward.simulations.engines.carrier import EngineGrid
from fedward.simulations.engines.cluster.session import address_of, connected
from fedward.simulations.engines.executors import Executor, Looped, Stacked
from fedward.simulations.engines.loop import run_in_loop, run_over
from fedward.simulations.engines.pool import can_fork
from fedward.simulations.engines.stacked.program import Program, UnknownLayer

EngineName = Literal["auto", "loop", "stacked", "pool", "ray"]
ENGINES: tuple[str, ...] = get_args(EngineName)
STACKED_UP_TO = 100_000
"""Weights of a model up to which many sites at once are faster than one after another."""
DOUBTFUL = (STACKED_UP_TO // 32, STACKED_UP_TO * 32)
"""Weights of the models for which it is tried out what is faster."""
CLEARLY = 1.3
"""Times as fast the other way must be to be taken: less may be noise, and change by the day."""


class Used(BaseModel):
    """What computes a run.

    Attributes:
        name: of the engine.
        why: it is that one, in words.
        looped: one site after another, not many at once.
        workers: processes; 0 if it is the one that asks.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    why: str
    looped: bool = True
    workers: int = 0


RAY = "ray"
REFERENCE = Used(name="loop", why="one site after another")


class Engine:
    """Computes runs of one kind.

    Args:
        wanted: which engine.
        memo: where the choice is kept, so that a run that is resumed is computed as it began, bit
            for bit; None to choose anew each time.
        ray_address: `HOST:PORT` of the Ray cluster that computes `ray`; None for what the
            environment says, or else this machine.
    """

    def __init__(
        self,
        wanted: EngineName = "auto",
        *,
        memo: Path | None = None,
        ray_address: str | None = None,
    ) -> None:
        self._wanted = wanted
        self._memo = memo
        self._ray_address = ray_address
        self.used = self._remembered() or REFERENCE
        """What computed the last run."""

    def run(self, app: ServerApp, sites: Iterable[Site]) -> None:
        """Run a server app against sites of this machine.

        Raises:
            FedwardError: whatever ends the run; see `Rounds.run`.
        """
        known = list(sites)
        remembered = self._remembered()
        reference = remembered == REFERENCE if remembered else self._wanted == "loop"
        if reference or len(known) == 1:
            self._remember(REFERENCE)
            run_in_loop(app, known)
            return
        if (remembered.name if remembered else self._wanted) == RAY:
            self._run_on_ray(app, known)
            return
        workers = 0 if self._wanted == "stacked" or not can_fork() else processors()
        workers = remembered.workers if remembered else workers if workers > 1 else 0
        workers = min(workers, len(known))
        make = partial(self._make, workers)
        grid = EngineGrid(known, make=make, workers=workers)
        try:
            run_over(app, grid)
        finally:
            grid.close()

    def _run_on_ray(self, app: ServerApp, sites: Sequence[Site]) -> None:
        address = address_of(self._ray_address)
        with connected(address, processors=processors()):
            # Imported here: most who simulate have no Ray.
            from fedward.simulations.engines.cluster.grid import RayGrid

            grid = RayGrid(sites)
            where = "of this machine" if address is None else "of a cluster"
            why = f"one site after another in {grid.workers} Ray workers {where}"
            self._remember(Used(name=RAY, why=why, workers=grid.workers))
            try:
                run_over(app, grid)
            finally:
                grid.close()

    def _make(self, workers: int, sites: Sequence[Site], transform: Transform) -> Executor:
        self._remember(self._remembered() or self._choose(workers, sites, transform))
        return Looped(sites, transform) if self.used.looped else Stacked(sites, transform)

    def _choose(self, workers: int, sites: Sequence[Site], transform: Transform) -> Used:
        dataset = sites[0].training(transform)
        module = sites[0].module(dataset)
        size, pictures = count_parameters(module), len(dataset.inputs.shape) > 1
        name = "pool" if workers else "stacked"
        where = f"in {workers} processes" if workers else "in one process"
        try:
            Program(module)
        except UnknownLayer as unknown:
            why = f"one site after another {where}: it has {unknown}"
            return Used(name=name, why=why, looped=True, workers=workers)
        private = sites[0].plan is not None
        looped = self._wanted != "stacked" and not private and (pictures or size > STACKED_UP_TO)
        why = f"the model has {size:,} weights"
        if self._wanted != "stacked" and DOUBTFUL[0] <= size <= DOUBTFUL[1] and worthwhile(sites):
            tried = paces(sites, transform, module)
            gain = tried.looped / tried.stacked
            looped = gain * CLEARLY < 1.0 if not looped else gain < CLEARLY
            more, less = max(gain, 1 / gain), "one after another" if gain > 1.0 else "at once"
            why += f", and as tried out here sites {less} take {more:.1f} times as long"
        how = "one site after another" if looped else "many sites at once"
        return Used(name=name, why=f"{how} {where}: {why}", looped=looped, workers=workers)

    def _remember(self, used: Used) -> None:
        self.used = used
        if self._memo is not None:
            self._memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._memo, used.model_dump_json())

    def _remembered(self) -> Used | None:
        if self._memo is None or not self._memo.exists():
            return None
        try:
            return Used.model_validate_json(self._memo.read_bytes())
        except (OSError, ValidationError):
            return None  # chosen anew: the same, unless the machine is another


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
