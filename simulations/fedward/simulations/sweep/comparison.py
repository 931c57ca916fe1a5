"""From the output folders of the runs to the comparison of their cells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from fedward.common.errors import DataError, OutputError
from fedward.common.metrics import higher_is_better, metric_names, replicates
from fedward.common.study import Study, simulation_hash, study_hash
from fedward.common.version import versions
from fedward.simulations.outputs import PREDICTIONS, RESULTS, score_names
from fedward.simulations.report.results import OVERALL, Estimate, Results, StudyInfo
from fedward.simulations.report.words import METRICS, most_spent
from fedward.simulations.run_folder import RunFolder
from fedward.simulations.sweep.folder import SweepFolder
from fedward.simulations.sweep.grid import Cell, Grid
from fedward.simulations.sweep.results import CellResult, RunResult, SweepResults, Verdict
from fedward.simulations.sweep.runs import Failure
from fedward.simulations.sweep.statistics import (
    RESAMPLES,
    Design,
    Floats,
    Sample,
    interval,
    rank,
)

ARM = "federated"
"""What cells are compared by."""
_SHARES = tuple(name for name in METRICS if name not in ("rmse", "mae", "r2", "calibration_slope"))
"""Metrics that lie between 0 and 1: their intervals are cut there."""


@dataclass(frozen=True)
class Run:
    """What a finished run says.

    Attributes:
        metrics: over all test patients.
        epsilon: the most that any hospital spent; None without differential privacy.
        train_patients, test_patients: of all sites.
        tested: a digest of who was tested: site, patient and truth of every row.
        resampled: `[resamples]` of each metric; the same patients for all runs with equal `tested`.
        data: digests of the sites' data.
    """

    metrics: Mapping[str, float | None]
    epsilon: float | None
    train_patients: int
    test_patients: int
    tested: str
    resampled: Mapping[str, Floats] = field(repr=False)
    data: Mapping[str, str]


Runs = Mapping[tuple[str, int], Run]
"""By the name of a cell, and seed."""


def read_runs(grid: Grid, folder: SweepFolder) -> dict[tuple[str, int], Run]:
    """The finished runs of a sweep.

    Raises:
        OutputError: a file of a finished run is missing or damaged.
        DataError: the data changed between two runs that are to be compared.
    """
    runs = {}
    for cell in grid.cells:
        for seed in grid.seeds:
            if folder.finished(cell, seed):
                runs[cell.name, seed] = _read(folder, cell, seed)
    if grid.same_data():
        for seed in grid.seeds:
            found = [runs[cell.name, seed].data for cell in grid.cells if (cell.name, seed) in runs]
            if any(data != found[0] for data in found[1:]):
                raise DataError(
                    f"the data changed between two runs with seed {seed}",
                    hint="sweep again, into another --out",
                )
    return runs


def compare(grid: Grid, runs: Runs, failures: Mapping[tuple[str, int], Failure]) -> SweepResults:
    """Compare the cells of a sweep.

    Args:
        grid: what was to be run.
        runs: what finished.
        failures: why the others did not.
    """
    whole = [c for c in grid.cells if all((c.name, seed) in runs for seed in grid.seeds)]
    paired = all(len({runs[cell.name, seed].tested for cell in whole}) <= 1 for seed in grid.seeds)
    same = len({runs[cell.name, seed].tested for cell in whole for seed in grid.seeds}) == 1
    train, test = (
        round(float(np.mean(counts))) if counts else 0
        for counts in (
            [run.train_patients for run in runs.values()],
            [run.test_patients for run in runs.values()],
        )
    )
    design = Design(same, test / max(1, train), test)
    samples = {cell.name: _samples(cell, grid, runs) for cell in whole}
    base = grid.base
    return SweepResults(
        study=StudyInfo.of(
            base, study_hash=study_hash(base), simulation_hash=simulation_hash(base)
        ),
        versions=versions(),
        keys=grid.keys,
        seeds=grid.seeds,
        train_patients=train,
        test_patients=test,
        design="one seed"
        if len(grid.seeds) == 1
        else "same patients"
        if same
        else "other patients",
        paired=paired,
        cells=tuple(
            _cell(cell, grid, runs, failures, samples.get(cell.name, {}), design)
            for cell in grid.cells
        ),
        verdict=_verdict(base, samples, design, paired=paired),
    )


def _read(folder: SweepFolder, cell: Cell, seed: int) -> Run:
    out = folder.run(cell, seed)
    results = Results.load(out / RESULTS)
    study = cell.with_seed(seed)
    if results.study.simulation_hash != simulation_hash(study):
        raise OutputError(
            f"{folder.run_name(cell, seed)} holds results of another study or seed",
            hint="choose another --out and start without --resume",
        )
    names = score_names(study)
    try:
        rows = pl.read_parquet(out / PREDICTIONS).filter(pl.col("arm") == ARM)
        site, truth = rows["site"].to_numpy(), rows["truth"].to_numpy()
        patient, scores = rows["patient"].to_numpy(), rows.select(names).to_numpy()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OutputError(
            f"the predictions of {folder.run_name(cell, seed)} cannot be read",
            hint="remove the folder of this run, and continue with --resume",
        ) from error
    stratum = np.unique(site, return_inverse=True)[1].reshape(-1)
    digest = hashlib.sha256()
    for part in (*site.tolist(), stratum.tobytes(), patient.tobytes(), truth.tobytes()):
        digest.update(part.encode() if isinstance(part, str) else part)
    found = results.metrics[ARM][OVERALL]
    return Run(
        metrics={name: estimate.value for name, estimate in found.items()},
        epsilon=most_spent(results),
        train_patients=sum(site.train_patients for site in results.sites),
        test_patients=sum(site.test_patients for site in results.sites),
        tested=digest.hexdigest(),
        resampled=replicates(
            study.task.kind, truth, scores, patient, resamples=RESAMPLES, stratum=stratum
        ),
        data=RunFolder(out).known_data(),
    )


def _samples(cell: Cell, grid: Grid, runs: Runs) -> dict[str, Sample]:
    """The metrics of a cell that are defined in every run."""
    mine = [runs[cell.name, seed] for seed in grid.seeds]
    samples = {}
    for name in metric_names(grid.base.task.kind):
        values = [run.metrics.get(name) for run in mine]
        if any(value is None for value in values):
            continue
        samples[name] = Sample(
            np.array(values, dtype=np.float64), np.stack([run.resampled[name] for run in mine])
        )
    return samples


def _cell(
    cell: Cell,
    grid: Grid,
    runs: Runs,
    failures: Mapping[tuple[str, int], Failure],
    samples: Mapping[str, Sample],
    design: Design,
) -> CellResult:
    mine = [run for seed in grid.seeds if (run := runs.get((cell.name, seed))) is not None]
    spent = [run.epsilon for run in mine if run.epsilon is not None]
    return CellResult(
        name=cell.name,
        settings=dict(cell.settings),
        folder=f"cells/{cell.folder}",
        dropped=cell.dropped,
        private=cell.study.private,
        epsilon=cell.study.privacy.epsilon if cell.study.private else None,
        spent=max(spent, default=None),
        metrics=_estimates(grid.base, mine, samples, design),
        runs=tuple(_run(cell, seed, runs, failures) for seed in grid.seeds),
    )


def _run(
    cell: Cell, seed: int, runs: Runs, failures: Mapping[tuple[str, int], Failure]
) -> RunResult:
    where = SweepFolder.run_name(cell, seed)
    run, failure = runs.get((cell.name, seed)), failures.get((cell.name, seed))
    if run is None:
        reason = failure.reason if failure else "it was not run"
        return RunResult(seed=seed, folder=where, failed=reason)
    return RunResult(seed=seed, folder=where, metrics=dict(run.metrics), epsilon=run.epsilon)


def _estimates(
    study: Study, mine: Sequence[Run], samples: Mapping[str, Sample], design: Design
) -> dict[str, Estimate]:
    """Means over the finished runs; with an interval where all runs have a value."""
    found = {}
    for name in metric_names(study.task.kind):
        if name in samples:
            found[name] = _within(
                name, interval(samples[name], design, study.evaluation.confidence)
            )
            continue
        values = [value for run in mine if (value := run.metrics.get(name)) is not None]
        if mine:
            found[name] = Estimate(value=float(np.mean(values)) if values else None)
    return found


def _within(name: str, found: Estimate, least: float = 0.0) -> Estimate:
    """An interval cut to where the metric can be: from `least` to 1 for shares."""
    if name.removeprefix("macro_") not in _SHARES or found.low is None or found.high is None:
        return found
    return Estimate(value=found.value, low=max(least, found.low), high=min(1.0, found.high))


def _verdict(
    study: Study, samples: Mapping[str, Mapping[str, Sample]], design: Design, *, paired: bool
) -> Verdict | None:
    metric = study.evaluation.metric
    own = {name: found[metric] for name, found in samples.items() if metric in found}
    if len(own) < 2:
        return None
    if not paired:  # the same resample would be of other patients in another cell
        own = {name: Sample(sample.values, None) for name, sample in own.items()}
    higher = higher_is_better(metric) is not False
    found = rank(own, design, study.evaluation.confidence, higher_is_better=higher)
    return Verdict(
        best=found.best,
        winner=found.winner,
        tied=found.tied,
        level=found.level,
        differences={
            name: _within(metric, difference, -1.0)
            for name, difference in found.differences.items()
        },
    )
