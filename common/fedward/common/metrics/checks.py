"""What truth and scores must look like before anything is counted: checked once, at the border."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedward.common.errors import DataError, TrainingError
from fedward.common.models.outputs import Kind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROBABILITY_SLACK = 1e-3
"""How far the probabilities of one row may be from summing to 1 (float32 softmax is far closer)."""


def checked(kind: Kind, truth: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Truth `[rows]` and scores `[rows, outputs]` as float64, or a refusal.

    Args:
        kind: of task.
        truth: `[rows]`: class index (0 … classes - 1), or the regression value.
        scores: `[rows, outputs]`: P(positive) or class probabilities in [0, 1], or the predicted
            value; `[rows]` will do for one output.

    Raises:
        DataError: the truth is not finite or no class index, or the lengths differ.
        TrainingError: scores are not finite, or are no probabilities.
    """
    y = np.asarray(truth, dtype=np.float64)
    s = np.asarray(scores, dtype=np.float64)
    s = s[:, None] if s.ndim == 1 else s
    if y.ndim != 1 or s.ndim != 2 or len(y) != len(s):
        raise DataError(
            f"truth of shape {np.shape(truth)} and scores of shape {np.shape(scores)} do not match",
            hint="give one score per row, or one per row and class",
        )
    if (kind == "multiclass") != (s.shape[1] > 1):
        raise DataError(
            f"a {kind} task cannot have {s.shape[1]} scores per row",
            hint="give one column, or for a multiclass task one per class",
        )
    _check_truth(kind, y, s.shape[1])
    _check_scores(kind, s)
    return y, s


def _check_truth(kind: Kind, truth: Floats, outputs: int) -> None:
    if not np.isfinite(truth).all():
        raise DataError("a target is missing or infinite", hint="give every row a target")
    classes = {"binary": 2, "multiclass": outputs, "regression": 0}[kind]
    if classes and not np.isin(truth, np.arange(classes)).all():
        raise DataError(
            "a target is no class of this task", hint=f"give class indices 0 … {classes - 1}"
        )


def _check_scores(kind: Kind, scores: Floats) -> None:
    if not np.isfinite(scores).all():
        raise TrainingError(
            "training diverged: the model's scores are not finite",
            hint="lower [training] learning_rate",
        )
    if kind == "regression":
        return
    if scores.size and (scores.min() < 0.0 or scores.max() > 1.0):
        raise TrainingError(
            "the model's scores are outside [0, 1]", hint="score with probabilities, not raw output"
        )
    if kind == "multiclass" and (np.abs(scores.sum(axis=1) - 1.0) > PROBABILITY_SLACK).any():
        raise TrainingError(
            "the class probabilities of a row do not sum to 1", hint="score with a softmax"
        )


def checked_weights(weights: ArrayLike | None, rows: int) -> Floats:
    """Weights `[rows]`, 1 where none are given.

    Raises:
        DataError: a weight is negative or not finite, or the length differs.
    """
    if weights is None:
        return np.ones(rows)
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (rows,) or not np.isfinite(checked).all() or (checked < 0).any():
        raise DataError("a row's weight is negative or missing", hint="give each row a weight ≥ 0")
    return checked


def checked_ids(ids: NDArray[Any] | None, rows: int) -> Ints:
    """Dense ids 0 … distinct - 1, `[rows]`: every row its own where none are given.

    Raises:
        DataError: the length differs.
    """
    if ids is None:
        return np.arange(rows)
    if np.shape(ids) != (rows,):
        raise DataError("rows and their patients do not match", hint="give one patient per row")
    _, dense = np.unique(ids, return_inverse=True)
    return dense.reshape(-1).astype(np.int64)
