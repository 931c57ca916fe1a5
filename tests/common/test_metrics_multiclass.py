"""Metrics of several classes: scikit-learn is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as oracle

from fedward.common.errors import DataError, TrainingError
from fedward.common.metrics import count, evaluate, exact_counts, metric_names

Rows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Truth, probabilities (often tied), weights; some classes may be absent."""
    classes = draw(st.integers(3, 5))
    size = draw(st.integers(1, 40))
    present = draw(st.integers(1, classes))
    truth = draw(st.lists(st.integers(0, present - 1), min_size=size, max_size=size))
    raw = draw(
        st.lists(
            st.lists(st.integers(0, 6), min_size=classes, max_size=classes),
            min_size=size,
            max_size=size,
        )
    )
    share = np.array(raw) + 0.125
    weights = draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=size, max_size=size))
    return np.array(truth), share / share.sum(axis=1, keepdims=True), np.array(weights)


def sklearn_multiclass(
    truth: NDArray[np.int64], score: NDArray[np.float64], weight: NDArray[np.float64]
) -> dict[str, float | None]:
    said, arguments = score.argmax(axis=1), {"sample_weight": weight}
    labels = np.unique(truth)
    several = len(labels) > 1
    macro = {"labels": labels, "average": "macro", "zero_division": 0, **arguments}
    auroc = [oracle.roc_auc_score(truth == k, score[:, k], **arguments) for k in labels if several]
    auprc = [
        oracle.average_precision_score(truth == k, score[:, k], **arguments)
        for k in labels
        if several
    ]
    specificity = [
        oracle.recall_score(truth != k, said != k, **arguments) for k in labels if several
    ]
    hot = np.eye(score.shape[1])[truth]
    recall = oracle.recall_score(truth, said, **macro)
    return {
        "auroc": float(np.mean(auroc)) if several else None,
        "auprc": float(np.mean(auprc)) if several else None,
        "accuracy": oracle.accuracy_score(truth, said, **arguments),
        "balanced_accuracy": recall if several else None,
        "sensitivity": recall,
        "specificity": float(np.mean(specificity)) if several else None,
        "precision": oracle.precision_score(truth, said, **macro),
        "f1": oracle.f1_score(truth, said, **macro),
        "brier": float(weight @ ((score - hot) ** 2).sum(axis=1) / weight.sum()),
    }


@settings(max_examples=100, deadline=None)
@given(rows())
def test_exact_metrics_are_those_of_scikit_learn(data: Rows) -> None:
    truth, score, weight = data
    found = evaluate(exact_counts("multiclass", truth, score, weight))
    assert tuple(found) == metric_names("multiclass")
    for name, value in sklearn_multiclass(truth, score, weight).items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


def test_auroc_is_scikit_learns_one_vs_rest() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, 200)
    score = generator.dirichlet(np.ones(4), 200)
    found = evaluate(exact_counts("multiclass", truth, score))
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth, score, multi_class="ovr"))


def test_calibration_error_is_the_mean_over_classes() -> None:
    generator = np.random.default_rng(2)
    truth, score = generator.integers(0, 3, 100), generator.dirichlet(np.ones(3), 100)
    each = [
        evaluate(exact_counts("binary", truth == k, score[:, k]))["calibration_error"] or 0.0
        for k in range(3)
    ]
    found = evaluate(exact_counts("multiclass", truth, score))["calibration_error"]
    assert found == pytest.approx(np.mean(each))


@settings(max_examples=50, deadline=None)
@given(rows())
def test_histograms_keep_decisions_and_nearly_the_rest(data: Rows) -> None:
    truth, score, _ = data
    near = evaluate(count("multiclass", truth, score, bins=1000))
    exact = evaluate(exact_counts("multiclass", truth, score))
    for name in ("accuracy", "balanced_accuracy", "specificity", "precision", "f1"):
        assert near[name] == (None if exact[name] is None else pytest.approx(exact[name])), name
    assert near["brier"] == pytest.approx(exact["brier"], abs=score.shape[1] / 1000)


def test_no_rows() -> None:
    for function in (exact_counts, count):
        assert set(evaluate(function("multiclass", [], np.empty((0, 3)))).values()) == {None}


def test_refusals() -> None:
    with pytest.raises(TrainingError, match="sum to 1"):
        exact_counts("multiclass", [0], [[0.5, 0.5, 0.5]])
    with pytest.raises(TrainingError, match="finite"):
        exact_counts("multiclass", [0], [[0.5, 0.5, np.nan]])
    with pytest.raises(DataError, match="no class"):
        exact_counts("multiclass", [3], [[0.5, 0.5, 0.0]])
    with pytest.raises(DataError, match="scores per row"):
        exact_counts("multiclass", [0], [[1.0]])
