"""The bootstrap: against a slow one, and whether its intervals cover the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedward.common.errors import DataError, TrainingError
from fedward.common.metrics import Interval, bootstrap, evaluate, exact_counts, metric_names
from fedward.common.metrics.checks import checked
from fedward.common.metrics.counting import summary_metrics
from fedward.common.metrics.intervals import EXACT_ROWS, _Patients, _summariser
from fedward.common.models.outputs import Kind


def some_rows(kind: Kind, rows: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(seed)
    if kind == "regression":
        value = generator.normal(10, 2, rows)
        return value, value + generator.normal(size=rows)
    classes = 2 if kind == "binary" else 3
    truth = generator.integers(0, classes, rows)
    raw = np.exp(generator.normal(size=(rows, classes)) + np.eye(classes)[truth])
    share = (raw / raw.sum(axis=1, keepdims=True)).round(2)
    if kind == "binary":
        return truth, share[:, 1]
    share[:, 0] = 1 - share[:, 1:].sum(axis=1)
    return truth, np.clip(share, 0, 1)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_a_resample_is_what_repeating_its_rows_gives(kind: Kind) -> None:
    truth, score = some_rows(kind, 60, 4)
    patient = np.random.default_rng(5).integers(0, 25, 60)
    site = patient % 2
    patients = _Patients.of(patient, site)
    times = patients.draw(12, np.random.default_rng(6))
    fast = summary_metrics(_summariser(kind, *checked(kind, truth, score))(times))
    assert tuple(fast) == metric_names(kind)
    for place, weight in enumerate(times.astype(int)):
        for who in np.unique(patient):
            assert len(np.unique(weight[patient == who])) == 1  # all rows of a patient, or none
        rows = np.repeat(np.arange(60), weight)
        for name, value in evaluate(exact_counts(kind, truth[rows], score[rows])).items():
            found = fast[name][place]
            assert np.isnan(found) if value is None else found == pytest.approx(value, abs=1e-6)


def test_each_site_keeps_its_number_of_patients() -> None:
    site = np.repeat([0, 1, 2], [3, 30, 60])
    # The same numbers at different sites are different patients; one row each.
    patients = _Patients.of(np.concatenate([np.arange(3), np.arange(30), np.arange(60)]), site)
    times = patients.draw(400, np.random.default_rng(0))
    for place, size in enumerate((3, 30, 60)):
        assert (times[:, site == place].sum(axis=1) == size).all()
    assert times.mean(axis=0) == pytest.approx(1.0, abs=0.3)
    # Multinomial: a patient is left out of a resample with probability (1 - 1/60)^60.
    assert (times[:, site == 2] == 0).mean() == pytest.approx((1 - 1 / 60) ** 60, abs=0.02)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_same_seed_same_intervals(kind: Kind) -> None:
    truth, score = some_rows(kind, 80, 7)
    one = bootstrap(kind, truth, score, None, resamples=50, seed=3)
    assert one == bootstrap(kind, truth, score, np.arange(80), resamples=50, seed=3)
    assert one != bootstrap(kind, truth, score, None, resamples=50, seed=4)
    assert {name: found.value for name, found in one.items()} == evaluate(
        exact_counts(kind, truth, score)
    )
    for found in one.values():
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.high


def test_narrower_with_less_confidence_and_more_patients() -> None:
    def width(rows: int, confidence: float) -> float:
        truth, score = some_rows("binary", rows, 8)
        found = bootstrap("binary", truth, score, None, resamples=300, confidence=confidence)
        return (found["auroc"].high or 0.0) - (found["auroc"].low or 0.0)

    assert width(100, 0.5) < 0.6 * width(100, 0.95)
    assert width(1600, 0.95) < 0.4 * width(100, 0.95)


def test_many_rows_are_binned_without_moving_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = EXACT_ROWS + 1
    generator = np.random.default_rng(9)
    truth = generator.integers(0, 2, rows)
    score = 1 / (1 + np.exp(-(generator.normal(size=rows) + truth - 0.5)))
    binned = bootstrap("binary", truth, score, None, resamples=100)
    monkeypatch.setattr("fedward.common.metrics.intervals.EXACT_ROWS", rows)
    exact = bootstrap("binary", truth, score, None, resamples=100)
    for name, found in exact.items():
        assert binned[name].value == found.value
        assert binned[name].low == pytest.approx(found.low, abs=2e-3), name
        assert binned[name].high == pytest.approx(found.high, abs=2e-3), name
    assert binned["accuracy"] == exact["accuracy"]  # no bin crosses the threshold


def test_what_is_undefined_has_no_interval() -> None:
    one_class = bootstrap("binary", [1] * 20, np.linspace(0, 1, 20), None, resamples=50)
    assert one_class["auroc"] == Interval(None, None, None)
    assert one_class["sensitivity"].low is not None
    # One positive in three: missing from 30 % of the resamples, which are left out.
    rare = bootstrap("binary", [0, 0, 1], [0.1, 0.7, 0.6], None, resamples=200)
    assert rare["auroc"].low == 0.0
    empty = bootstrap("binary", [], [], None)
    assert set(empty.values()) == {Interval(None, None, None)}
    values = bootstrap("binary", [0, 1], [0.1, 0.9], None, resamples=0)
    assert values["auroc"] == Interval(1.0, None, None)


def test_refusals() -> None:
    with pytest.raises(DataError, match="confidence"):
        bootstrap("binary", [0, 1], [0.1, 0.9], None, confidence=1.0)
    with pytest.raises(DataError, match="one patient per row"):
        bootstrap("binary", [0, 1], [0.1, 0.9], np.array([0]))
    with pytest.raises(TrainingError):
        bootstrap("binary", [0, 1], [0.1, np.nan], None)


# --- coverage ------------------------------------------------------------------------------------

STUDIES = 400


def mae_coverage(*, by_patient: bool) -> float:
    """How often the 95 % interval of the MAE covers it: 50 patients with 8 much-alike rows."""
    generator = np.random.default_rng(10)
    patient = np.repeat(np.arange(50), 8)
    wanted = np.sqrt(2 / np.pi) * np.sqrt(1.0**2 + 0.3**2)  # E|e| of a normal error
    covered = 0
    for study in range(STUDIES):
        error = generator.normal(size=50)[patient] + 0.3 * generator.normal(size=400)
        truth = generator.normal(size=400)
        found = bootstrap(
            "regression",
            truth,
            truth + error,
            patient if by_patient else None,
            resamples=300,
            seed=study,
        )["mae"]
        covered += (found.low or 0.0) <= wanted <= (found.high or 0.0)
    return covered / STUDIES


def test_intervals_over_patients_cover_the_truth() -> None:
    # 400 studies: the standard error of a coverage of 0.95 is 0.011.
    assert 0.90 <= mae_coverage(by_patient=True) <= 0.99


def test_intervals_over_rows_would_not() -> None:
    assert mae_coverage(by_patient=False) < 0.75


def test_intervals_of_the_auroc_cover_the_truth() -> None:
    # Scores N(0, 1) and N(1, 1): AUROC = Φ(1/√2) = 0.7602.
    generator = np.random.default_rng(11)
    covered = 0
    for study in range(150):
        truth = np.repeat([0, 1], 60)
        score = 1 / (1 + np.exp(-(generator.normal(size=120) + truth)))
        found = bootstrap("binary", truth, score, None, resamples=150, seed=study)["auroc"]
        covered += (found.low or 0.0) <= 0.76025 <= (found.high or 0.0)
    assert 0.88 <= covered / 150 <= 0.99
