"""Metrics of a model with three or more classes: one-vs-rest score bins and a confusion matrix.

Averages are *macro*: the mean over the classes that occur in the truth, each with equal weight. A
class that occurs but is never predicted has precision 0, as in scikit-learn. Where one class only
occurs, AUROC, AUPRC, specificity and balanced accuracy are undefined. Brier score (Σ over classes,
0 … 2) and calibration error (classwise, Kull et al. 2019, section 2) use all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedward.common.metrics.binary import (
    DECISION_METRICS,
    ScoreBins,
    auprc,
    auroc,
    brier,
    decision_metrics,
    ratio,
)
from fedward.common.metrics.calibration import calibration_error
from fedward.common.metrics.checks import Floats

MULTICLASS_METRICS = ("auroc", "auprc", *DECISION_METRICS, "brier", "calibration_error")


@dataclass(frozen=True, eq=False)
class ClassBins:
    """What all metrics of several classes follow from.

    Attributes:
        confusion: `[..., classes, classes]`, weight of (truth, most probable class).
        classes: one-vs-rest score bins, one for each class.
        decisions: whether `confusion` is shown; without it the decision metrics are undefined.
    """

    confusion: Floats
    classes: tuple[ScoreBins, ...]
    decisions: bool = True


def _macro(values: list[Floats], count: list[Floats] | None = None) -> Floats:
    """Mean over classes `[...]` of those that are defined (and, with `count`, occur)."""
    stacked = np.stack(values)
    if count is not None:
        stacked = np.where(np.stack(count) > 0, np.nan_to_num(stacked), np.nan)
    defined = ~np.isnan(stacked)
    return ratio(
        np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64)
    )


def multiclass_metrics(bins: ClassBins) -> dict[str, Floats]:
    """All `MULTICLASS_METRICS`, each `[...]`, NaN where undefined."""
    each = bins.classes
    found = {
        "auroc": _macro([auroc(c) for c in each]),
        "auprc": _macro([auprc(c) for c in each]),
        **_decisions(bins.confusion),
        "brier": np.sum([brier(c) for c in each], axis=0),
        "calibration_error": np.mean(
            [calibration_error(c.score, c.negative, c.positive) for c in each], axis=0
        ),
    }
    if not bins.decisions:
        found |= {name: np.full_like(found["auroc"], np.nan) for name in DECISION_METRICS}
    return found


def _decisions(confusion: Floats) -> dict[str, Floats]:
    total = confusion.sum(axis=(-2, -1))
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    rows, columns = confusion.sum(axis=-1), confusion.sum(axis=-2)
    tables = [
        decision_metrics(
            hit[..., k],
            columns[..., k] - hit[..., k],
            total - rows[..., k] - columns[..., k] + hit[..., k],
            rows[..., k] - hit[..., k],
        )
        for k in range(confusion.shape[-1])
    ]
    occurs = [rows[..., k] for k in range(confusion.shape[-1])]
    sensitivity = _macro([t["sensitivity"] for t in tables])
    # Specificity of an absent class is about other classes only: leave it out, like its recall.
    specificity = [
        np.where(o > 0, t["specificity"], np.nan) for o, t in zip(occurs, tables, strict=True)
    ]
    single = sum((o > 0).astype(np.float64) for o in occurs) < 2
    return {
        "accuracy": ratio(hit.sum(axis=-1), total),
        "balanced_accuracy": np.where(single, np.nan, sensitivity),
        "sensitivity": sensitivity,
        "specificity": _macro(specificity),
        "precision": _macro([t["precision"] for t in tables], occurs),
        "f1": _macro([t["f1"] for t in tables], occurs),
    }
