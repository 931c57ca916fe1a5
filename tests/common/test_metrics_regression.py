"""Metrics of a predicted number: scikit-learn is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from fedward.common.errors import DataError, TrainingError
from fedward.common.metrics import count, evaluate, exact_counts, metric_names

values = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(values, values, st.sampled_from([0.5, 1.0, 2.0])), min_size=2))
def test_exact_metrics_are_those_of_scikit_learn(rows: list[tuple[float, float, float]]) -> None:
    truth, predicted, weight = (np.array(column) for column in zip(*rows, strict=True))
    found = evaluate(exact_counts("regression", truth, predicted, weight))
    assert tuple(found) == metric_names("regression")
    rmse = oracle.root_mean_squared_error(truth, predicted, sample_weight=weight)
    mae = oracle.mean_absolute_error(truth, predicted, sample_weight=weight)
    assert found["rmse"] == pytest.approx(rmse, rel=1e-9, abs=1e-12)
    assert found["mae"] == pytest.approx(mae, rel=1e-9, abs=1e-12)
    spread = np.abs(truth - truth.mean()).max()
    if spread > 1e-3 * max(1.0, np.abs(truth).max()):
        r2 = oracle.r2_score(truth, predicted, sample_weight=weight)
        assert found["r2"] == pytest.approx(r2, rel=1e-6, abs=1e-9)


def test_r2_keeps_its_digits_far_from_zero() -> None:
    generator = np.random.default_rng(0)
    truth = 1e8 + generator.normal(size=200)
    predicted = truth + 0.3 * generator.normal(size=200)
    found = evaluate(exact_counts("regression", truth, predicted))["r2"]
    assert found == pytest.approx(oracle.r2_score(truth, predicted), rel=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_truth_has_no_r2(constant: float) -> None:
    for function in (exact_counts, count):
        assert evaluate(function("regression", [constant] * 7, [1.0] * 7))["r2"] is None


def test_counts_of_sites_add_up_to_the_metrics_of_all() -> None:
    generator = np.random.default_rng(3)
    truth = generator.uniform(20, 80, 300)
    predicted = truth + generator.normal(size=300)
    for bounds in (None, (20.0, 80.0)):
        halves = [
            count("regression", truth[s], predicted[s], bounds=bounds)
            for s in (slice(0, 90), slice(90, 300))
        ]
        clipped = predicted if bounds is None else np.clip(predicted, *bounds)
        wanted = evaluate(exact_counts("regression", truth, clipped))
        assert evaluate(halves[0] + halves[1]) == pytest.approx(wanted)


def test_no_rows_and_refusals() -> None:
    for function in (exact_counts, count):
        assert set(evaluate(function("regression", [], [])).values()) == {None}
    with pytest.raises(TrainingError, match="finite"):
        exact_counts("regression", [0.0], [np.nan])
    with pytest.raises(DataError, match="missing or infinite"):
        exact_counts("regression", [np.nan], [0.0])
