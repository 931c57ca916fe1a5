"""Metrics of a yes/no model from weighted counts over score bins.

There is one implementation of each metric. What differs is where the bins come from: the sorted
distinct scores (exact), or equal-width bins that sites can add up (see `counts.py`). All arrays may
have leading axes, so that a bootstrap evaluates a thousand resamples at once. Inside this module
NaN means "undefined"; `evaluate` turns it into None.

    >>> import numpy as np
    >>> bins = ScoreBins(np.array([0.2, 0.6, 0.9]), np.array([1.0, 1, 0]), np.array([0.0, 1, 2]))
    >>> round(float(binary_metrics(bins)["auroc"]), 4)  # 5.5 of 6 pairs in the right order
    0.9167

Resolution: with equal-width bins, a positive and a negative in the same bin count as a tie. The
AUROC is therefore off by at most half the share of (positive, negative) pairs in a common bin
(`auroc_resolution`); a Brier score by at most the width of a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedward.common.metrics.calibration import calibration_error, calibration_fit
from fedward.common.metrics.checks import Floats

THRESHOLD = 0.5
"""Scores at or above this are called positive."""

DECISION_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "f1",
)
"""Metrics of decisions (score ≥ 0.5, or the most probable class), not of scores."""

BINARY_METRICS = (
    "auroc",
    "auprc",
    *DECISION_METRICS,
    "brier",
    "calibration_slope",
    "calibration_intercept",
    "calibration_error",
)


@dataclass(frozen=True, eq=False)
class ScoreBins:
    """Weighted counts over ascending scores.

    Attributes:
        score: `[bins]`, ascending, in [0, 1].
        negative: `[..., bins]`, weight of the negatives with that score, ≥ 0.
        positive: `[..., bins]`, weight of the positives.
        decisions: whether the two sides of the threshold may be told apart.
    """

    score: Floats
    negative: Floats
    positive: Floats
    decisions: bool = True


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """`numerator / denominator`, NaN where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, np.nan)


def auroc(bins: ScoreBins) -> Floats:
    """Area under the ROC curve = Mann-Whitney U / (P·N), ties count one half."""
    below = np.cumsum(bins.negative, axis=-1) - bins.negative / 2
    pairs = bins.positive.sum(axis=-1) * bins.negative.sum(axis=-1)
    return ratio((bins.positive * below).sum(axis=-1), pairs)


def auroc_resolution(bins: ScoreBins) -> Floats:
    """Upper bound of |AUROC of these bins - AUROC of the scores that fell into them|."""
    pairs = bins.positive.sum(axis=-1) * bins.negative.sum(axis=-1)
    return ratio((bins.positive * bins.negative).sum(axis=-1) / 2, pairs)


def auprc(bins: ScoreBins) -> Floats:
    """Average precision: Σ (recall gained at a threshold) × (precision there)."""
    true = np.cumsum(bins.positive[..., ::-1], axis=-1)[..., ::-1]
    called = true + np.cumsum(bins.negative[..., ::-1], axis=-1)[..., ::-1]
    precision = np.where(called > 0, true / np.where(called > 0, called, 1.0), 0.0)
    total = bins.positive.sum(axis=-1)
    # Without negatives every precision is 1, which says nothing about the model.
    defined = np.where(bins.negative.sum(axis=-1) > 0, total, 0.0)
    return ratio((bins.positive * precision).sum(axis=-1), defined)


def brier(bins: ScoreBins) -> Floats:
    """Mean squared distance between score and outcome (0 or 1)."""
    wrong = bins.positive @ (1.0 - bins.score) ** 2 + bins.negative @ bins.score**2
    return ratio(wrong, (bins.positive + bins.negative).sum(axis=-1))


def decision_metrics(
    true_positive: Floats, false_positive: Floats, true_negative: Floats, false_negative: Floats
) -> dict[str, Floats]:
    """`DECISION_METRICS` of the four cells of a decision table, each `[...]`."""
    positives, negatives = true_positive + false_negative, true_negative + false_positive
    sensitivity = ratio(true_positive, positives)
    specificity = ratio(true_negative, negatives)
    return {
        "accuracy": ratio(true_positive + true_negative, positives + negatives),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": ratio(true_positive, true_positive + false_positive),
        "f1": ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
    }


def binary_metrics(bins: ScoreBins, *, calibration: bool = True) -> dict[str, Floats]:
    """All `BINARY_METRICS`, each `[...]`, NaN where undefined.

    Args:
        bins: the counts.
        calibration: whether to fit slope and intercept (the only metrics that iterate).
    """
    high = bins.score >= THRESHOLD
    positive, negative = bins.positive, bins.negative
    tp, fp = positive[..., high].sum(axis=-1), negative[..., high].sum(axis=-1)
    tn, fn = negative[..., ~high].sum(axis=-1), positive[..., ~high].sum(axis=-1)
    found = {"auroc": auroc(bins), "auprc": auprc(bins), **decision_metrics(tp, fp, tn, fn)}
    if not bins.decisions:
        found |= {name: np.full_like(found["auroc"], np.nan) for name in DECISION_METRICS}
    found["brier"] = brier(bins)
    if calibration:
        fit = calibration_fit(bins.score, negative, positive)
        found["calibration_slope"], found["calibration_intercept"] = fit.slope, fit.intercept
    found["calibration_error"] = calibration_error(bins.score, negative, positive)
    return found
