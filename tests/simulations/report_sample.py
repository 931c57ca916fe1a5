"""Results that look like a real run's, made from a seed: for looking at reports and for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedward.client.spending import Charge
from fedward.common.privacy.events import GaussianRelease, SampledGaussian
from fedward.simulations.report.results import (
    CalibrationBin,
    CrossSite,
    CurvePoint,
    DriftPoint,
    Engine,
    Estimate,
    FeatureSummary,
    FederationView,
    Results,
    Roc,
    Site,
    SitePrivacy,
    StudyInfo,
    Timing,
)

NAMES = ("north", "harbour", "st-mary", "university")
PATIENTS = (48, 96, 120, 163)
SKILL = {"local": 2.9, "federated": 4.0, "federated_no_dp": 4.4, "pooled": 4.5}
FEATURES = tuple(
    f"{kind} {name}"
    for kind in ("mean", "worst")
    for name in (
        "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity",
        "concave points", "symmetry", "fractal dimension",
    )
)  # fmt: skip


def sample_results(
    count: int = 4, *, rounds: int = 40, private: bool = True, seed: int = 7, **changes: Any
) -> Results:
    """A finished simulation of a binary task; `changes` replace whole fields."""
    rng = np.random.default_rng(seed)
    names = NAMES if count == 4 else tuple(f"site-{i + 1:04d}" for i in range(count))
    patients = [PATIENTS[i % 4] for i in range(count)]
    arms = tuple(SKILL) if private else ("local", "federated", "pooled")
    tests = {n: _draw(rng, p // 3, 0.2 + 0.5 * (i % 4) / 3) for i, (n, p) in
             enumerate(zip(names, patients, strict=True))}  # fmt: skip
    scores = {arm: {n: _score(rng, t, SKILL[arm]) for n, t in tests.items()} for arm in arms}
    fields: dict[str, Any] = {
        "study": _study(private, rounds),
        "versions": {"fedward": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "flwr": "1.41.0",
                     "opacus": "1.6.0", "dp_accounting": "0.6.0"},
        "seed": seed,
        "engine": Engine(name="loop", why="4 sites and a small model: one process is fastest"),
        "sites": [_site(rng, i, n, p, tests[n]) for i, (n, p) in
                  enumerate(zip(names, patients, strict=True))],
        "metrics": {arm: _metrics(tests, scores[arm]) for arm in arms},
        "curves": {arm: _curves(rng, names, rounds, SKILL[arm]) for arm in arms if arm != "local"},
        "drift": [
            DriftPoint(round=k, site=n, norm=(1.2 + i % 4) / np.sqrt(k) * rng.uniform(0.8, 1.2),
                       cosine=np.clip(0.9 - 0.015 * k - 0.1 * (i % 4) + rng.normal(0, 0.05), -1, 1))
            for k in range(1, rounds + 1) for i, n in enumerate(names)
        ],
        "privacy": {n: _privacy(i, rounds) for i, n in enumerate(names)} if private else {},
        "roc": {arm: {n: _roc(tests[n], scores[arm][n]) for n in names} for arm in arms},
        "calibration": {arm: {n: _bins(tests[n], scores[arm][n]) for n in names} for arm in arms},
        "cross_site": _cross(rng, names) if 1 < count <= 20 else None,
        "federation_view": _view(names, patients),
        "timing": Timing(seconds=31.4, rounds=dict.fromkeys(arms, 7.5)),
    }  # fmt: skip
    return Results(**(fields | changes))


def _study(private: bool, rounds: int) -> StudyInfo:
    return StudyInfo(
        name="breast-cancer",
        title="Is this breast mass malignant?",
        purpose="Tell malignant from benign breast masses from the shape of cell nuclei in a fine "
        "needle aspirate, so that fewer women wait for a second biopsy.",
        hash="3f1c9a" + "0b77" * 14 + "d2",
        simulation_hash="9be0" * 16,
        task="binary",
        labels=("benign", "malignant"),
        metric="auroc",
        model="logistic",
        algorithm="fedavg",
        rounds=rounds,
        private=private,
        epsilon=1.9 if private else None,
        delta=1e-3 if private else None,
    )


def _draw(rng: np.random.Generator, count: int, share: float) -> Any:
    truth = rng.random(count) < share
    truth[:2] = (False, True)
    return truth


def _score(rng: np.random.Generator, truth: Any, skill: float) -> Any:
    return 1 / (1 + np.exp(-(skill * (truth - 0.5) + rng.normal(0, 1.3, len(truth)))))


def _auroc(truth: Any, score: Any) -> float:
    return float(np.mean(score[truth][:, None] > score[~truth][None, :]))


def _near(value: float, count: int) -> Estimate:
    half = 1.96 * np.sqrt(max(value * (1 - value), 0.002) / count)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _one(truth: Any, score: Any) -> dict[str, Estimate]:
    said = score > 0.5
    figures = {
        "auroc": _auroc(truth, score),
        "accuracy": float(np.mean(said == truth)),
        "balanced_accuracy": float(np.mean(said[truth]) + np.mean(~said[~truth])) / 2,
        "sensitivity": float(np.mean(said[truth])),
        "specificity": float(np.mean(~said[~truth])),
        "brier": float(np.mean((score - truth) ** 2)),
    }
    found = {name: _near(value, len(truth)) for name, value in figures.items()}
    return found | {"calibration_slope": Estimate(value=1.13, low=0.8, high=1.6)}


def _metrics(tests: Any, scores: Any) -> dict[str, dict[str, Estimate]]:
    found = {name: _one(tests[name], scores[name]) for name in tests}
    truth = np.concatenate(list(tests.values()))
    return found | {"overall": _one(truth, np.concatenate(list(scores.values())))}


def _site(rng: np.random.Generator, i: int, name: str, patients: int, test: Any) -> Site:
    sick = int(test.sum())
    return Site(
        name=name,
        train_patients=patients - len(test),
        test_patients=len(test),
        train_rows=patients - len(test),
        test_rows=len(test),
        classes={"benign": patients - 3 * sick, "malignant": 3 * sick},
        features={
            f: FeatureSummary(
                mean=10 * k + rng.normal(0, 0.25) + (i % 4 - 1.5) * 0.5 * (k % 3 == 0),
                sd=1 + 0.05 * k,
                missing=0.0 if k else 0.04,
            )
            for k, f in enumerate(FEATURES)
        },
    )


def _curves(rng: Any, names: Any, rounds: int, skill: float) -> list[CurvePoint]:
    top = 0.80 + skill / 25
    noise = 0.025 if skill == SKILL["federated"] else 0.01
    lag = {n: rng.uniform(-0.03, 0.02) for n in names}

    def value(k: int, shift: float, scale: float) -> float:
        grown = top - (top - 0.55) * np.exp(-k / 6) + shift
        return float(np.clip(grown + rng.normal(0, scale) / np.sqrt(k), 0, 1))

    return [
        CurvePoint(
            round=k,
            metrics={n: value(k, lag[n], noise * 2) for n in names}
            | {"overall": value(k, 0.0, noise)},
        )
        for k in range(1, rounds + 1)
    ]


def _privacy(i: int, rounds: int) -> SitePrivacy:
    last = 1.9 - 0.12 * (i % 4)
    steps = np.arange(1, rounds + 1)
    spent = 0.3 + (last - 0.3) * np.sqrt(steps / rounds)
    step = SampledGaussian(sampling_probability=0.125, noise_multiplier=2.31, steps=8)
    charges = [
        Charge(0, "training", GaussianRelease(14.2, 1, "statistics")),
        *(Charge(number, "training", step) for number in range(1, rounds + 1)),
        Charge(rounds, "testing", GaussianRelease(19.0, 1, "evaluation")),
    ]
    return SitePrivacy(
        epsilon=last,
        delta=1e-3,
        unit="patient",
        crosscheck=last + 0.01,
        events=tuple(charge.to_dict() for charge in charges),
        per_round=tuple(float(x) for x in spent),
        training=last,
        testing=last / 2,
    )


def _roc(truth: Any, score: Any) -> Roc:
    order = np.argsort(-score)
    tpr = np.concatenate([[0], np.cumsum(truth[order]) / truth.sum()])
    fpr = np.concatenate([[0], np.cumsum(~truth[order]) / (~truth).sum()])
    return Roc(fpr=tuple(fpr.tolist()), tpr=tuple(tpr.tolist()))


def _bins(truth: Any, score: Any) -> tuple[CalibrationBin, ...]:
    groups = np.array_split(np.argsort(score), 5)
    return tuple(
        CalibrationBin(score=score[g].mean(), observed=truth[g].mean(), count=len(g))
        for g in groups
    )


def _cross(rng: Any, names: tuple[str, ...]) -> CrossSite:
    values = [[float(np.clip(0.9 + 0.07 * (a == b) + rng.normal(0, 0.03), 0, 1)) for b in names]
              for a in names]  # fmt: skip
    values[0][1] = None  # type: ignore[call-overload]
    values.append([0.98] * len(names))
    return CrossSite(
        metric="auroc",
        models=(*names, "federated"),
        sites=names,
        values=tuple(tuple(row) for row in values),
    )


def _view(names: Any, patients: Any) -> FederationView:
    seen = {n: {"auroc": None if p < 50 else 0.96, "accuracy": None if p < 50 else 0.93}
            for n, p in zip(names, patients, strict=True)}  # fmt: skip
    return FederationView(
        resolution="Histograms of scores in 100 bins, cells below 10 patients left out, Gaussian "
        "noise of standard deviation 19 on every count.",
        metrics=seen | {"overall": {"auroc": 0.971, "accuracy": 0.94}},
    )
