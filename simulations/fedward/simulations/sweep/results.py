"""`sweep.json` and `sweep.csv`: what a sweep found, as one frozen value.

Nothing in it depends on when or in which order the runs were done: a sweep that was broken off and
continued gives the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedward.common.files import write_atomic
from fedward.common.models.provenance import NOTICE
from fedward.simulations.report.results import Count, Estimate, Fraction, Number, Part, StudyInfo

SWEEP_JSON, SWEEP_CSV = "sweep.json", "sweep.csv"


class RunResult(Part):
    """One training: a cell with a seed. `failed` is the one-line reason, empty if it finished."""

    seed: int
    folder: str
    metrics: dict[str, Number] = Field(default_factory=dict)
    epsilon: Number = None
    failed: str = ""


class CellResult(Part):
    """One combination of values.

    `epsilon` is what the study of the cell promises, `spent` the most that any hospital spent in
    any of its runs, both null without differential privacy. `metrics` are means over the finished
    runs, with an interval if all are finished. `dropped` are keys of the study file that do not
    belong to this cell's algorithm or model.
    """

    name: str
    settings: dict[str, str]
    folder: str
    dropped: tuple[str, ...] = ()
    private: bool = False
    epsilon: Number = None
    spent: Number = None
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    runs: tuple[RunResult, ...]

    @property
    def failed(self) -> str:
        """The first reason why a run failed; empty if all finished."""
        return next((run.failed for run in self.runs if run.failed), "")


class Verdict(Part):
    """Who is best by the headline metric; see `sweep.statistics`.

    `best` has the best mean; `winner` is the same cell if it is told apart from every other one.
    `differences` are best less other, with intervals of `level` each, so that they hold together.
    """

    best: str
    winner: str | None
    tied: tuple[str, ...]
    level: Fraction
    differences: dict[str, Estimate]


class SweepResults(Part):
    """All results of a sweep.

    `design` says where the intervals come from: `one seed`, `other patients` or `same patients`
    for each seed. `paired` is false where cells have not the same test patients, so that only seeds
    tell them apart. `verdict` is null where fewer than two cells can be compared.
    """

    schema_version: Literal[1] = 1
    study: StudyInfo
    versions: dict[str, str]
    simulated: Literal[True] = True
    notice: str = NOTICE
    keys: tuple[str, ...]
    seeds: tuple[int, ...]
    train_patients: Count
    test_patients: Count
    design: Literal["one seed", "other patients", "same patients"]
    paired: bool
    cells: tuple[CellResult, ...]
    verdict: Verdict | None

    @property
    def private(self) -> bool:
        """Whether any cell was trained with differential privacy."""
        return any(cell.private for cell in self.cells)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All metrics, the headline metric first, then in the order of the simulation."""
        found = dict.fromkeys(name for cell in self.cells for name in cell.metrics)
        return tuple(dict.fromkeys([self.study.metric, *found])) if found else ()

    def cell(self, name: str) -> CellResult:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def estimate(self, cell: CellResult, metric: str | None = None) -> Estimate:
        """One figure; all null where there is none."""
        return cell.metrics.get(metric or self.study.metric) or Estimate(value=None)

    def save(self, folder: Path) -> None:
        """Write `sweep.json` and `sweep.csv`, each whole or not at all.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        write_atomic(folder / SWEEP_CSV, self.csv())
        write_atomic(folder / SWEEP_JSON, self.model_dump_json(indent=1) + "\n")

    def csv(self) -> str:
        """One row for each cell and metric; empty where there is no figure."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["cell", *self.keys, "metric", "seeds", "mean", "low", "high", "failed"])
        for cell in self.cells:
            values = [cell.settings[key] for key in self.keys]
            done = sum(not run.failed for run in cell.runs)
            for name in self.metric_names or ("",):
                found = self.estimate(cell, name)
                figures = [found.value, found.low, found.high]
                table.writerow([cell.name, *values, name, done, *figures, cell.failed])
        return text.getvalue()
