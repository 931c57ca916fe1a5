"""ROC curve and reliability diagram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from fedward.common.errors import TrainingError
from fedward.common.metrics import reliability, roc_points
from fedward.common.metrics.curves import MAX_POINTS


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=80))
def test_short_curves_keep_the_area_exactly(rows: list[tuple[int, int]]) -> None:
    truth, score = np.array([r[0] for r in rows]), np.array([r[1] / 12 for r in rows])
    fpr, tpr = roc_points(truth, score)
    if truth.min() == truth.max():
        assert len(fpr) == len(tpr) == 0
        return
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert oracle.auc(fpr, tpr) == pytest.approx(oracle.roc_auc_score(truth, score), abs=1e-12)


@pytest.mark.parametrize("signal", [0.0, 1.0, 4.0])
def test_long_curves_are_thinned_and_keep_the_area(signal: float) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 20_000)
    score = 1 / (1 + np.exp(-(signal * truth + generator.normal(size=20_000))))
    fpr, tpr = roc_points(truth, score)
    assert len(fpr) <= MAX_POINTS
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    area = oracle.roc_auc_score(truth, score)
    assert oracle.auc(fpr, tpr) == pytest.approx(area, abs=1e-3)
    every = oracle.roc_curve(truth, score, drop_intermediate=False)
    known = set(zip(every[0].round(9), every[1].round(9), strict=True))
    assert set(zip(fpr.round(9), tpr.round(9), strict=True)) <= known


def test_reliability_counts_every_row_once() -> None:
    generator = np.random.default_rng(1)
    score = generator.random(5_000) ** 2
    truth = generator.random(5_000) < score
    groups = reliability(truth, score)
    assert sum(group.count for group in groups) == 5_000
    for place, group in enumerate(groups):
        assert place / 10 <= group.mean_score <= (place + 1) / 10
        assert group.observed == pytest.approx(group.mean_score, abs=0.08)


def test_reliability_leaves_out_empty_groups_and_keeps_1() -> None:
    (low, high) = reliability([0, 1, 1], [0.05, 1.0, 0.95])
    assert (low.mean_score, low.observed, low.count) == (0.05, 0.0, 1)
    assert (high.mean_score, high.observed, high.count) == (0.975, 1.0, 2)
    assert reliability([], np.empty((0, 1))) == []


def test_scores_that_are_no_probabilities_are_refused() -> None:
    for function in (roc_points, reliability):
        with pytest.raises(TrainingError):
            function([0, 1], [0.1, 1.1])
