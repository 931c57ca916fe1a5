"""Whether probabilities mean what they say: slope, intercept and expected calibration error.

Slope and intercept are those of Van Calster et al. 2016 ("A calibration hierarchy for risk models",
J Clin Epidemiol 74, section 2.3): the slope b of logit P(y=1) = a + b·logit(score), which is below
1 for an over-confident model; and the intercept a of logit P(y=1) = a + logit(score)
("calibration in the large"), which is above 0 for a model whose risks are too low.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedward.common.metrics.checks import Floats, Ints

CLIP = 1e-6
"""Scores are clipped to [CLIP, 1 - CLIP] before their logit is taken."""
GROUPS = 10
"""Equal-width groups of the calibration error."""
_STEPS = 60
_HALVINGS = 30
_TOLERANCE = 1e-14
"""Newton decrement, of a mean loss in nats, at which a fit has converged."""
_SLACK = 1e-13
"""How much worse, by rounding alone, the mean loss may look after a step."""
_RIDGE = 1e-12
"""Keeps the Hessian invertible where every probability is 0 or 1; moves no reported digit."""


@dataclass(frozen=True, eq=False)
class CalibrationFit:
    """Slope and intercept, each `[...]`, NaN where undefined."""

    slope: Floats
    intercept: Floats


def calibration_groups(score: Floats, groups: int = GROUPS) -> Ints:
    """Which of the equal-width groups each score `[bins]` belongs to; 1.0 is in the last."""
    return np.minimum(np.floor(score * groups).astype(np.int64), groups - 1)


def calibration_error(score: Floats, negative: Floats, positive: Floats) -> Floats:
    """Expected calibration error, `[...]`: Σ over groups of share × |observed - mean score|.

    Args:
        score: `[bins]`, ascending.
        negative: `[..., bins]`, weights.
        positive: `[..., bins]`, weights.
    """
    if not len(score):
        return np.full(positive.shape[:-1], np.nan)
    gap = positive - score * (positive + negative)
    starts = np.flatnonzero(np.diff(calibration_groups(score), prepend=-1))
    total = (positive + negative).sum(axis=-1)
    error = np.abs(np.add.reduceat(gap, starts, axis=-1)).sum(axis=-1)
    return np.where(total > 0, error / np.where(total > 0, total, 1.0), np.nan)


def calibration_fit(score: Floats, negative: Floats, positive: Floats) -> CalibrationFit:
    """Fit slope and intercept by maximum likelihood, for each leading index.

    Undefined (NaN): one class only; for the slope also scores that are all the same, and scores
    that separate the classes (the likelihood then has no maximum: the slope is infinite).

    Args:
        score: `[bins]`, ascending.
        negative: `[..., bins]`, weights.
        positive: `[..., bins]`, weights.
    """
    lead = positive.shape[:-1]
    if not len(score):
        return CalibrationFit(np.full(lead, np.nan), np.full(lead, np.nan))
    neg, pos = negative.reshape(-1, len(score)), positive.reshape(-1, len(score))
    clipped = np.clip(score, CLIP, 1 - CLIP)
    logit = np.log(clipped) - np.log1p(-clipped)
    slope, intercept = np.full(len(pos), np.nan), np.full(len(pos), np.nan)
    both = np.flatnonzero((pos.sum(axis=1) > 0) & (neg.sum(axis=1) > 0))
    if len(both):
        intercept[both] = _newton(np.ones((1, len(logit))), logit, neg[both], pos[both])[:, 0]
        overlap = both[_overlapping(logit, neg[both], pos[both])]
        scale = float(logit.std()) or 1.0
        centred = np.stack([np.ones_like(logit), (logit - logit.mean()) / scale])
        fitted = _newton(centred, np.zeros_like(logit), neg[overlap], pos[overlap])
        slope[overlap] = fitted[:, 1] / scale
    return CalibrationFit(slope.reshape(lead), intercept.reshape(lead))


def _overlapping(logit: Floats, negative: Floats, positive: Floats) -> NDArray[np.bool_]:
    """Where the classes' ranges of scores share more than one point, so that a slope exists."""
    low_neg, high_neg = _range(logit, negative)
    low_pos, high_pos = _range(logit, positive)
    return (high_neg > low_pos) & (high_pos > low_neg)


def _range(logit: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest score that has weight, each `[batch]`; every row has some."""
    present = weight > 0
    return logit[present.argmax(axis=1)], logit[len(logit) - 1 - present[:, ::-1].argmax(axis=1)]


def _newton(design: Floats, offset: Floats, negative: Floats, positive: Floats) -> Floats:
    """Maximum-likelihood coefficients `[batch, k]` of logit P = offset + coefficients @ design.

    Newton's method with step halving, which cannot diverge on this convex loss; a row that has not
    converged is NaN.

    Args:
        design: `[k, bins]`.
        offset: `[bins]`.
        negative: `[batch, bins]`, weights.
        positive: `[batch, bins]`, weights.
    """
    total = (positive + negative).sum(axis=1, keepdims=True)
    neg, pos = negative / total, positive / total
    beta, done = np.zeros((len(pos), len(design))), np.zeros(len(pos), dtype=np.bool_)
    loss = _loss(beta, design, offset, neg, pos)
    for _ in range(_STEPS):
        rows = np.flatnonzero(~done)
        if not len(rows):
            break
        step, gain = _direction(beta[rows], design, offset, neg[rows], pos[rows])
        done[rows[gain < _TOLERANCE]] = True
        beta[rows], loss[rows] = _halved(
            beta[rows],
            step,
            loss[rows],
            partial(_loss, design=design, offset=offset, negative=neg[rows], positive=pos[rows]),
        )
    beta[~done] = np.nan
    return beta


def _loss(
    beta: Floats, design: Floats, offset: Floats, negative: Floats, positive: Floats
) -> Floats:
    """Mean negative log-likelihood, `[batch]`."""
    z = beta @ design + offset
    # softplus(z) = log(1 + e^z); softplus(-z) = softplus(z) - z
    softplus = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    loss: Floats = ((positive + negative) * softplus - positive * z).sum(axis=1)
    return loss


def _direction(
    beta: Floats, design: Floats, offset: Floats, negative: Floats, positive: Floats
) -> tuple[Floats, Floats]:
    """Newton step `[batch, k]` and the decrement `[batch]`, half of which the step should gain."""
    z = beta @ design + offset
    probability = 1.0 / (1.0 + np.exp(-np.clip(z, -500, 500)))
    weight = positive + negative
    gradient = (weight * probability - positive) @ design.T
    curvature = weight * probability * (1.0 - probability)
    outer = (design[:, None, :] * design[None, :, :]).reshape(-1, design.shape[1])
    hessian = (curvature @ outer.T).reshape(-1, len(design), len(design))
    hessian += _RIDGE * np.eye(len(design))
    solved = np.linalg.solve(hessian, gradient[..., None]).astype(np.float64)
    step = -solved[..., 0]
    decrement: Floats = -(step * gradient).sum(axis=1)
    return step, decrement


def _halved(
    beta: Floats, step: Floats, loss: Floats, loss_at: Callable[[Floats], Floats]
) -> tuple[Floats, Floats]:
    """Take the step, halved until it no longer makes the loss worse."""
    scale: Floats = np.ones(len(beta))
    for _ in range(_HALVINGS):
        candidate: Floats = beta + scale[:, None] * step
        found: Floats = loss_at(candidate)
        worse = found > loss + _SLACK
        if not worse.any():
            break
        scale = np.where(worse, scale / 2, scale)
    kept: Floats = np.where(worse[:, None], beta, candidate)
    least: Floats = np.where(worse, loss, found)
    return kept, least
