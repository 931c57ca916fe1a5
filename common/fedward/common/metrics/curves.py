"""Points of the pictures in a report: ROC curve and reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedward.common.metrics.calibration import calibration_groups
from fedward.common.metrics.checks import Floats, checked

MAX_POINTS = 200
"""A ROC curve has at most so many points."""


@dataclass(frozen=True)
class ReliabilityGroup:
    """Rows with similar scores: how probable the model called it, and how often it was."""

    mean_score: float
    observed: float
    count: int


def roc_points(truth: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """The ROC curve as (false positive rate, true positive rate), each `[points]`, from 0 to 1.

    Points on a straight line are left out; of what remains at most `MAX_POINTS` are kept, evenly
    along the curve, which moves the area by less than 1/`MAX_POINTS`.

    Args:
        truth: `[rows]`, 0 or 1.
        scores: `[rows]` or `[rows, 1]`, P(positive).

    Returns:
        Two empty arrays where only one class occurs.

    Raises:
        DataError: truth is no class index or lengths differ.
        TrainingError: scores are not finite or no probabilities.
    """
    y, s = checked("binary", truth, scores)
    positives = y.sum()
    if positives in (0, len(y)):
        return np.empty(0), np.empty(0)
    distinct, place = np.unique(-s[:, 0], return_inverse=True)
    place, bins = place.reshape(-1), len(distinct)
    tpr = np.concatenate([[0.0], np.cumsum(np.bincount(place, y, minlength=bins)) / positives])
    called = np.cumsum(np.bincount(place, 1 - y, minlength=bins))
    fpr = np.concatenate([[0.0], called / (len(y) - positives)])
    bend = np.diff(fpr)[:-1] * np.diff(tpr)[1:] != np.diff(fpr)[1:] * np.diff(tpr)[:-1]
    corners = np.concatenate([[0], np.flatnonzero(bend) + 1, [bins]])
    if len(corners) > MAX_POINTS:
        # fpr + tpr grows by 2 along the curve: evenly spaced in it, steps are short everywhere.
        along = (fpr + tpr)[corners]
        wanted = np.linspace(0.0, 2.0, MAX_POINTS)
        corners = corners[np.unique(np.searchsorted(along, wanted).clip(0, len(along) - 1))]
    return fpr[corners], tpr[corners]


def reliability(truth: ArrayLike, scores: ArrayLike, bins: int = 10) -> list[ReliabilityGroup]:
    """Mean score and observed frequency in equal-width groups of scores; empty groups are left out.

    Args:
        truth: `[rows]`, 0 or 1.
        scores: `[rows]` or `[rows, 1]`, P(positive).
        bins: number of groups over [0, 1].

    Raises:
        DataError: truth is no class index or lengths differ.
        TrainingError: scores are not finite or no probabilities.
    """
    y, s = checked("binary", truth, scores)
    group = calibration_groups(s[:, 0], bins)
    rows = np.bincount(group, minlength=bins)
    score, hits = (np.bincount(group, v, minlength=bins) for v in (s[:, 0], y))
    return [
        ReliabilityGroup(float(score[g] / rows[g]), float(hits[g] / rows[g]), int(rows[g]))
        for g in np.flatnonzero(rows)
    ]
