"""Results of a sweep that look real, made from a seed: for looking at pages and for tests."""

from __future__ import annotations

import numpy as np

from fedward.common.study.load import EXAMPLE, parse_study
from fedward.simulations.report.results import StudyInfo
from fedward.simulations.sweep.results import CellResult, RunResult, SweepResults, Verdict
from fedward.simulations.sweep.statistics import Design, Sample, interval, rank

METRICS = {"auroc": 0.9, "accuracy": 0.85, "brier": 0.1, "calibration_slope": 1.1}
EPSILONS = ("1", "3", "8")


def sample_sweep(
    algorithms: tuple[str, ...] = ("fedavg", "fedprox", "fedmedian"),
    *,
    seeds: int = 5,
    gain: float = 0.0,
    failed: bool = True,
) -> SweepResults:
    """Nine cells; the last one failed; `gain` is what the first is better by than the others."""
    rng = np.random.default_rng(3)
    design = Design(same_patients=False, ratio=1 / 3, patients=143)
    division = {name: rng.normal(0, 0.01, seeds) for name in METRICS}
    samples: dict[str, dict[str, Sample]] = {}
    cells = []
    for algorithm in algorithms:
        for epsilon in EPSILONS:
            settings = {"algorithm": algorithm, "privacy.epsilon": epsilon}
            name = ", ".join(f"{key}={value}" for key, value in settings.items())
            bad = failed and (algorithm, epsilon) == (algorithms[-1], EPSILONS[0])
            drawn = {
                metric: value
                + division[metric]
                + rng.normal(0, 0.002, seeds)
                + 0.02 * np.log(float(epsilon)) / 3
                + gain * (not samples)
                for metric, value in METRICS.items()
            }
            if not bad:
                samples[name] = {metric: Sample(v, None) for metric, v in drawn.items()}
            cells.append(
                CellResult(
                    name=name,
                    settings=settings,
                    folder=f"cells/{name.replace(', ', ',')}",
                    dropped=("algorithm.mu",) if algorithm != "fedprox" else (),
                    private=True,
                    epsilon=float(epsilon),
                    spent=None if bad else float(epsilon) - 0.01,
                    metrics={}
                    if bad
                    else {m: interval(s, design, 0.95) for m, s in samples[name].items()},
                    runs=tuple(
                        RunResult(
                            seed=seed,
                            folder=f"cells/{name}/seed-{seed}",
                            metrics={} if bad else {m: float(v[seed]) for m, v in drawn.items()},
                            epsilon=None if bad else float(epsilon) - 0.01,
                            failed="site a: ε = 1 cannot be kept: train fewer rounds" * bad,
                        )
                        for seed in range(seeds)
                    ),
                )
            )
    own = {name: found["auroc"] for name, found in samples.items()}
    found = rank(own, design, 0.95, higher_is_better=True)
    study = parse_study(EXAMPLE)
    return SweepResults(
        study=StudyInfo.of(study, study_hash="0" * 64, simulation_hash="1" * 64),
        versions={"fedward": "0.1.0"},
        keys=("algorithm", "privacy.epsilon"),
        seeds=tuple(range(seeds)),
        train_patients=426,
        test_patients=143,
        design="other patients" if seeds > 1 else "one seed",
        paired=True,
        cells=tuple(cells),
        verdict=Verdict(
            best=found.best,
            winner=found.winner,
            tied=found.tied,
            level=found.level,
            differences=dict(found.differences),
        ),
    )
