"""The folder of a sweep: held by one sweep, continued only by the same.

SWEEP/sweep.lock             held while a sweep lasts
SWEEP/grid.json              what the sweep is: study, cells, seeds
SWEEP/cells/<cell>/seed-<n>/ a simulation's output folder for each run
SWEEP/sweep.html, sweep.json, sweep.csv   the comparison, when all runs have ended
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward.common.errors import OutputError, StudyError
from fedward.common.files import output_error, read_bytes, write_atomic
from fedward.common.lock import held
from fedward.common.study import simulation_hash
from fedward.simulations.outputs import RESULTS, check_output
from fedward.simulations.run_folder import RunFolder
from fedward.simulations.sweep.grid import Cell, Grid

GRID = "grid.json"
_OTHER = "continue with the study, --sweep and --seeds it was started with, or choose another --out"


class SweepFolder:
    """Where a sweep keeps what it has done.

    Args:
        out: need not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, cell: Cell, seed: int) -> Path:
        """The output folder of one run."""
        return self.out / self.run_name(cell, seed)

    @staticmethod
    def run_name(cell: Cell, seed: int) -> str:
        """The same, relative to the folder of the sweep."""
        return f"cells/{cell.folder}/seed-{seed}"

    def check(self, grid: Grid, *, resume: bool) -> None:
        """Refuse what cannot be begun or continued here; make nothing.

        Raises:
            OutputError: the folder cannot be written, holds something else, holds a sweep that
                nobody asked to continue, or none although somebody did.
            StudyError: it holds another sweep.
        """
        check_output(self.out)
        mark = self.out / GRID
        if not resume:
            if mark.exists():
                raise OutputError(
                    f"{self.out} holds a sweep already",
                    hint="continue it with --resume, or choose another --out",
                )
            for other in (RESULTS, "checkpoints", "cells"):
                if (self.out / other).exists():
                    raise OutputError(
                        f"{self.out} holds something else ({other})", hint="choose another --out"
                    )
            return
        if not mark.exists():
            raise OutputError(
                f"there is no sweep to continue in {self.out}",
                hint="check --out, or start without --resume",
            )
        try:
            known = json.loads(read_bytes(mark, error=OutputError))
        except ValueError as error:
            raise OutputError(
                f"{mark} is damaged", hint="choose another --out and start without --resume"
            ) from error
        wanted = _identity(grid)
        for part, what in (
            ("study", "another study"),
            ("cells", "another grid"),
            ("seeds", "other seeds"),
        ):
            if not isinstance(known, dict) or known.get(part) != wanted[part]:
                raise StudyError(f"{self.out} holds a sweep of {what}", hint=_OTHER)

    @contextmanager
    def held(self, grid: Grid) -> Iterator[None]:
        """Begin or continue the sweep, and keep other sweeps out while it lasts.

        Raises:
            StateError: another sweep runs in this folder.
            OutputError: the folder cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.out, error) from error
        with held(self.out / "sweep.lock", who="another sweep"):
            write_atomic(self.out / GRID, json.dumps(_identity(grid), indent=1) + "\n")
            yield

    def finished(self, cell: Cell, seed: int) -> bool:
        """Whether a run has its results: they are written last."""
        return (self.run(cell, seed) / RESULTS).exists()

    def begun(self, cell: Cell, seed: int) -> bool:
        """Whether a run left something to continue."""
        return RunFolder(self.run(cell, seed)).begun


def _identity(grid: Grid) -> dict[str, object]:
    return {
        "study": simulation_hash(grid.base),
        "cells": {cell.folder: simulation_hash(cell.study) for cell in grid.cells},
        "seeds": list(grid.seeds),
    }
