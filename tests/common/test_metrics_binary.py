"""Binary metrics: scikit-learn, scipy and counting pairs are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn import metrics as oracle

from fedward.common.errors import DataError, TrainingError
from fedward.common.metrics import (
    auroc_resolution,
    count,
    evaluate,
    exact_counts,
    higher_is_better,
    metric_names,
)
from fedward.common.metrics.binary import ScoreBins

Rows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Truth, scores (with ties, 0, 0.5 and 1) and weights."""
    size = draw(st.integers(1, 60))
    score = draw(
        st.sampled_from(
            [
                st.sampled_from([0.0, 0.25, 0.5, 1.0]),
                st.floats(0, 1, width=32),
                st.sampled_from([0.3]),
                st.integers(0, 20).map(lambda i: i / 20),
            ]
        )
    )
    truth = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    scores = draw(st.lists(score, min_size=size, max_size=size))
    weights = draw(st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=size, max_size=size))
    return np.array(truth), np.array(scores), np.array(weights)


def sklearn_binary(
    truth: NDArray[np.int64], score: NDArray[np.float64], weight: NDArray[np.float64]
) -> dict[str, float | None]:
    said = (score >= 0.5).astype(int)
    arguments = {"sample_weight": weight}
    both = 0 < truth.sum() < len(truth)
    tables = {"zero_division": np.nan, **arguments}
    found: dict[str, float | None] = {
        "auroc": oracle.roc_auc_score(truth, score, **arguments) if both else None,
        "auprc": oracle.average_precision_score(truth, score, **arguments) if both else None,
        "accuracy": oracle.accuracy_score(truth, said, **arguments),
        "balanced_accuracy": (
            oracle.balanced_accuracy_score(truth, said, **arguments) if both else None
        ),
        "sensitivity": oracle.recall_score(truth, said, **tables),
        "specificity": oracle.recall_score(truth, said, pos_label=0, **tables),
        "precision": oracle.precision_score(truth, said, **tables),
        "f1": oracle.f1_score(truth, said, **tables),
        "brier": oracle.brier_score_loss(truth, score, pos_label=1, **arguments),
    }
    return {k: None if v is None or np.isnan(v) else float(v) for k, v in found.items()}


@settings(max_examples=150, deadline=None)
@given(rows())
def test_exact_metrics_are_those_of_scikit_learn(data: Rows) -> None:
    truth, score, weight = data
    found = evaluate(exact_counts("binary", truth, score, weight))
    assert tuple(found) == metric_names("binary")
    for name, value in sklearn_binary(truth, score, weight).items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


@settings(max_examples=50, deadline=None)
@given(rows())
def test_auroc_counts_pairs(data: Rows) -> None:
    truth, score, weight = data
    positive, negative = truth == 1, truth == 0
    assume(positive.any() and negative.any())
    difference = score[positive][:, None] - score[negative][None, :]
    pairs = weight[positive][:, None] * weight[negative][None, :]
    wanted = (pairs * ((difference > 0) + 0.5 * (difference == 0))).sum() / pairs.sum()
    found = evaluate(exact_counts("binary", truth, score, weight))["auroc"]
    assert found == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(rows())
def test_calibration_error_groups_by_tenths(data: Rows) -> None:
    truth, score, weight = data
    error = 0.0
    for group in range(10):
        inside = np.array([min(int(s * 10), 9) == group for s in score])
        error += abs((weight * (truth - score))[inside].sum()) / weight.sum()
    found = evaluate(exact_counts("binary", truth, score, weight))["calibration_error"]
    assert found == pytest.approx(error, abs=1e-12)


def logistic_oracle(truth: NDArray[np.int64], score: NDArray[np.float64]) -> tuple[float, float]:
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    logit = np.log(clipped / (1 - clipped))

    def loss(a: float, b: float) -> float:
        z = a + b * logit
        return float(np.mean(np.logaddexp(0, z) - truth * z))

    both = minimize(lambda v: loss(v[0], v[1]), [0.0, 0.5], method="BFGS", options={"gtol": 1e-9})
    large = minimize(lambda v: loss(v[0], 1.0), [0.0], method="BFGS", options={"gtol": 1e-9})
    return float(both.x[1]), float(large.x[0])


@pytest.mark.parametrize("seed", range(8))
def test_calibration_fit_is_the_maximum_of_the_likelihood(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, 60)
    score = generator.beta(0.3, 0.3, 60)  # many scores close to 0 and 1
    slope, intercept = logistic_oracle(truth, score)
    found = evaluate(exact_counts("binary", truth, score))
    assert found["calibration_slope"] == pytest.approx(slope, abs=1e-4)
    assert found["calibration_intercept"] == pytest.approx(intercept, abs=1e-4)


def test_calibration_finds_an_overconfident_and_too_low_model() -> None:
    generator = np.random.default_rng(0)
    logit = generator.normal(size=40_000)
    truth = generator.random(40_000) < 1 / (1 + np.exp(-logit))
    twice = evaluate(exact_counts("binary", truth, 1 / (1 + np.exp(-2 * logit))))
    assert twice["calibration_slope"] == pytest.approx(0.5, abs=0.03)
    lower = evaluate(exact_counts("binary", truth, 1 / (1 + np.exp(-(logit - 1)))))
    assert lower["calibration_intercept"] == pytest.approx(1.0, abs=0.05)
    assert lower["calibration_slope"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("truth", "score"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),  # separable
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]),  # separable but for a tie
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]),  # separable the wrong way
        ([0, 1, 0, 1], [0.4, 0.4, 0.4, 0.4]),  # constant
        ([0, 1, 1, 0], [0.0, 1e-9, 0.0, 0.0]),  # the same after clipping
        ([1, 1, 1, 1], [0.1, 0.2, 0.8, 0.9]),  # one class
    ],
)
def test_a_slope_that_does_not_exist_is_none(truth: list[int], score: list[float]) -> None:
    found = evaluate(exact_counts("binary", truth, score))
    assert found["calibration_slope"] is None
    assert (found["calibration_intercept"] is None) == (min(truth) == 1)


def test_scores_of_0_and_1_and_the_wrong_way_are_stable() -> None:
    truth, score = np.array([0, 1, 0, 1, 1, 0]), np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    slope, intercept = logistic_oracle(truth, score)
    found = evaluate(exact_counts("binary", truth, score))
    assert found["calibration_slope"] == pytest.approx(slope, abs=1e-4)
    assert found["calibration_intercept"] == pytest.approx(intercept, abs=1e-3)


def test_nothing_is_known_of_no_rows() -> None:
    for counts in (
        exact_counts("binary", [], np.empty((0, 1))),
        count("binary", [], np.empty((0, 1))),
        exact_counts("binary", [0, 1], [0.1, 0.9], [0.0, 0.0]),
    ):
        assert set(evaluate(counts).values()) == {None}


@settings(max_examples=100, deadline=None)
@given(rows(), st.sampled_from([2, 10, 34, 100]))
def test_histograms_are_off_by_no_more_than_promised(data: Rows, bins: int) -> None:
    truth, score, _ = data
    counts = count("binary", truth, score, bins=bins)
    near, exact = evaluate(counts), evaluate(exact_counts("binary", truth, score))
    for name in ("accuracy", "sensitivity", "specificity", "precision", "f1"):
        assert near[name] == (None if exact[name] is None else pytest.approx(exact[name]))
    assert near["brier"] == pytest.approx(exact["brier"], abs=1 / bins)
    if exact["auroc"] is not None:
        summary = counts.summary()
        assert isinstance(summary, ScoreBins)
        bound = float(auroc_resolution(summary)) + 1e-12
        assert near["auroc"] == pytest.approx(exact["auroc"], abs=bound)


def test_the_bound_of_the_resolution_is_reached() -> None:
    counts = count("binary", [0, 1], [0.41, 0.42], bins=10)
    assert evaluate(counts)["auroc"] == 0.5
    assert evaluate(exact_counts("binary", [0, 1], [0.41, 0.42]))["auroc"] == 1.0
    summary = counts.summary()
    assert isinstance(summary, ScoreBins)
    assert float(auroc_resolution(summary)) == 0.5


@pytest.mark.parametrize("bins", [2, 34, 100, 10_000])
def test_half_is_positive_and_a_hair_less_is_not(bins: int) -> None:
    scores = np.array([0.5, np.nextafter(0.5, 0), np.float64(np.nextafter(np.float32(0.5), 0))])
    hist = count("binary", [1, 0, 0], scores, bins=bins).cells["hist"]
    assert hist[1, bins // 2] == 1
    assert hist[0, bins // 2 - 1] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_scores_that_are_no_probabilities_are_refused(bad: float) -> None:
    for function in (exact_counts, count):
        with pytest.raises(TrainingError):
            function("binary", [0, 1], [0.5, bad])


@pytest.mark.parametrize(
    ("truth", "scores"),
    [([0, 2], [0.1, 0.2]), ([0, np.nan], [0.1, 0.2]), ([0, 0.5], [0.1, 0.2]), ([0], [0.1, 0.2])],
)
def test_truth_that_is_no_class_is_refused(truth: list[float], scores: list[float]) -> None:
    with pytest.raises(DataError):
        exact_counts("binary", truth, scores)


def test_other_refusals() -> None:
    with pytest.raises(DataError, match="scores per row"):
        exact_counts("binary", [0, 1], np.full((2, 2), 0.5))
    with pytest.raises(DataError, match="weight"):
        exact_counts("binary", [0, 1], [0.1, 0.2], [1.0, -1.0])
    with pytest.raises(DataError, match="even"):
        count("binary", [0, 1], [0.1, 0.2], bins=11)
    with pytest.raises(DataError, match="outputs"):
        count("binary", [0, 1], [0.1, 0.2], outputs=3)
    with pytest.raises(DataError, match="one patient per row"):
        count("binary", [0, 1], [0.1, 0.2], patient=np.array([1]))
    with pytest.raises(DataError, match="no metric"):
        higher_is_better("auc")


def test_directions() -> None:
    assert higher_is_better("auroc") is True
    assert higher_is_better("brier") is False
    assert higher_is_better("calibration_slope") is None
