"""`fedward simulate --sweep`: run every cell with every seed, then compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedward.simulations.engines.choice import EngineName, processors
from fedward.simulations.simulate import Simulation
from fedward.simulations.sweep.comparison import compare, read_runs
from fedward.simulations.sweep.folder import SweepFolder
from fedward.simulations.sweep.grid import Cell, Grid
from fedward.simulations.sweep.page import write_page
from fedward.simulations.sweep.results import SweepResults
from fedward.simulations.sweep.runs import Failure, RunsListener, Task, run_all

SWEEP_HTML = "sweep.html"


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    Attributes:
        results: what was written to `sweep.json`.
        failures: why runs failed, by cell and seed, in the order of the cells.
    """

    results: SweepResults
    failures: Mapping[tuple[str, int], Failure]

    @property
    def exit_code(self) -> int:
        """0 unless no run at all finished: then what the first one would have ended with."""
        if any(not run.failed for cell in self.results.cells for run in cell.runs):
            return 0
        return next(iter(self.failures.values())).exit_code


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes:
        grid: what is run.
        out: where it goes.
        resume: continue what is there.
        engine: what computes the sites of each run.
        jobs: runs at once; as many as there are processors if None.
    """

    grid: Grid
    out: Path
    resume: bool = False
    engine: EngineName = "auto"
    jobs: int | None = None

    @property
    def at_once(self) -> int:
        """Runs at once."""
        count = len(self.grid.cells) * len(self.grid.seeds)
        return max(1, min(self.jobs or processors(), count))

    def check(self) -> None:
        """Refuse what cannot be begun or continued in `out`; see `SweepFolder.check`."""
        SweepFolder(self.out).check(self.grid, resume=self.resume)

    def left(self) -> int:
        """Runs that are still to be done."""
        return len(self._tasks())

    def run(self, listener: RunsListener) -> Swept:
        """Do what is left to do, compare, and write the outputs.

        Raises:
            FedwardError: the folder refuses, or data changed between runs. A run that fails is
                none: it is in the results.
            Interrupted: Ctrl-C; says how to continue.
        """
        folder = SweepFolder(self.out)
        self.check()
        with folder.held(self.grid):
            tasks = self._tasks()
            names = {_name(c, s): (c.name, s) for c in self.grid.cells for s in self.grid.seeds}
            failed = run_all(tasks, self.at_once, listener)
            failures = {key: failed[name] for name, key in names.items() if name in failed}
            results = compare(self.grid, read_runs(self.grid, folder), failures)
            write_page(results, self.out / SWEEP_HTML)
            results.save(self.out)
        return Swept(results, failures)

    def _tasks(self) -> list[Task]:
        folder = SweepFolder(self.out)
        return [
            Task(
                _name(cell, seed),
                Simulation(
                    cell.with_seed(seed),
                    self.grid.folder,
                    folder.run(cell, seed),
                    resume=folder.begun(cell, seed),
                    engine=self.engine,
                ),
            )
            for cell in self.grid.cells
            for seed in self.grid.seeds
            if not folder.finished(cell, seed)
        ]


def _name(cell: Cell, seed: int) -> str:
    return f"{cell.name}, seed {seed}"
