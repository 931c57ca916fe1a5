"""From rows to counts, and from counts to metrics.

>>> import numpy as np
>>> truth, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.5, 0.9])
>>> evaluate(exact_counts("binary", truth, scores))["auroc"]
0.75
>>> counts = count("binary", truth, scores, bins=10)
>>> counts.cells["hist"].astype(int).tolist()
[[0, 1, 0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]]
>>> evaluate(counts + counts)["auroc"]
0.75
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedward.common.errors import DataError
from fedward.common.metrics.binary import BINARY_METRICS, ScoreBins, binary_metrics
from fedward.common.metrics.checks import Floats, Ints, checked, checked_ids, checked_weights
from fedward.common.metrics.counts import Bounds, Counts, Summary, cell_shapes
from fedward.common.metrics.multiclass import MULTICLASS_METRICS, ClassBins, multiclass_metrics
from fedward.common.metrics.regression import (
    REGRESSION_METRICS,
    ErrorSums,
    error_terms,
    regression_metrics,
)
from fedward.common.models.outputs import Kind

_LOWER_IS_BETTER = ("brier", "calibration_error", "rmse", "mae")
_TARGET_VALUE = ("calibration_slope", "calibration_intercept")


def metric_names(kind: Kind) -> tuple[str, ...]:
    """The metrics of a kind of task, in the order of the report."""
    names = {
        "binary": BINARY_METRICS,
        "multiclass": MULTICLASS_METRICS,
        "regression": REGRESSION_METRICS,
    }
    return names[kind]


def higher_is_better(metric: str) -> bool | None:
    """Which direction of a metric is good; None where a value in the middle is best.

    The best calibration slope is 1, the best calibration intercept 0.

    Raises:
        DataError: there is no such metric.
    """
    if metric not in {*BINARY_METRICS, *MULTICLASS_METRICS, *REGRESSION_METRICS}:
        raise DataError(f"there is no metric named {metric!r}", hint="see metric_names(kind)")
    return None if metric in _TARGET_VALUE else metric not in _LOWER_IS_BETTER


def count(
    kind: Kind,
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    outputs: int | None = None,
    bins: int = 100,
    bounds: Bounds | None = None,
    patient: NDArray[Any] | None = None,
    per: Literal["row", "patient"] = "row",
) -> Counts:
    """Count rows into cells that can be added over sites.

    Args:
        kind: of task.
        truth: `[rows]`: class index or regression value.
        scores: `[rows, outputs]`: P(positive), class probabilities, or the predicted value.
        outputs: that the model must have had; checked where given (a site without rows needs it).
        bins: of the score histograms over [0, 1], even.
        bounds: public limits of a regression target; truth and predictions are clipped to them.
        patient: `[rows]`, whom a row belongs to; None says that every row is another patient.
        per: what weighs 1: a row, or a patient (each row then weighs 1 / rows of its patient).

    Raises:
        DataError: rows, patients, classes or bins do not fit.
        TrainingError: scores are not finite or no probabilities.
    """
    y, s = checked(kind, truth, scores)
    if outputs is not None and s.shape[1] != outputs:
        raise DataError(
            f"the model has {s.shape[1]} outputs, the task {outputs}", hint="score with its model"
        )
    who = checked_ids(patient, len(y))
    weight = np.ones(len(y))
    if per == "patient":
        weight = 1.0 / np.bincount(who)[who] if len(who) else weight
    shapes = cell_shapes(kind, s.shape[1], bins)
    if kind == "regression":
        cells, homes = _count_errors(y, s[:, 0], weight, who, bounds)
    elif kind == "binary":
        cells, homes = _count_binary(y.astype(np.int64), s[:, 0], weight, who, shapes["hist"])
    else:
        cells, homes = _count_classes(y.astype(np.int64), s, weight, who, shapes)
    return Counts(
        kind=kind,
        cells=cells,
        bounds=bounds if kind == "regression" else None,
        per_patient=per == "patient",
        homes=homes,
    )


_Cells = dict[str, Floats]


def _tally(cell: Ints, weight: Floats, shape: tuple[int, ...]) -> Floats:
    """Sum of weights per flat cell index."""
    total: Floats = np.bincount(cell, weight, minlength=int(np.prod(shape))).astype(np.float64)
    return total.reshape(shape)


def _tally_homes(cell: Ints, group: Ints, shape: tuple[int, ...]) -> Floats:
    """One for each group (a patient within a class), in the cell of its first row."""
    _, first = np.unique(group, return_index=True)
    return _tally(cell[first], np.ones(len(first)), shape)


def _bin(score: Floats, bins: int) -> Ints:
    found: Ints = np.floor(score * bins).astype(np.int64)
    return np.minimum(found, bins - 1)


def _count_binary(
    truth: Ints, score: Floats, weight: Floats, who: Ints, shape: tuple[int, ...]
) -> tuple[_Cells, _Cells]:
    cell = truth * shape[-1] + _bin(score, shape[-1])
    return {"hist": _tally(cell, weight, shape)}, {
        "hist": _tally_homes(cell, who * 2 + truth, shape)
    }


def _count_classes(
    truth: Ints, scores: Floats, weight: Floats, who: Ints, shapes: dict[str, tuple[int, ...]]
) -> tuple[_Cells, _Cells]:
    classes, _, bins = shapes["hist"]
    each = [
        _count_binary((truth == k).astype(np.int64), scores[:, k], weight, who, (2, bins))
        for k in range(classes)
    ]
    said = scores.argmax(axis=1)
    cell = truth * classes + said
    group = (who * classes + truth) * 2 + (said == truth)
    cells = {
        "hist": np.stack([counted["hist"] for counted, _ in each]),
        "confusion": _tally(cell, weight, shapes["confusion"]),
    }
    homes = {
        "hist": np.stack([home["hist"] for _, home in each]),
        "confusion": _tally_homes(cell, group, shapes["confusion"]),
    }
    return cells, homes


def _count_errors(
    truth: Floats, prediction: Floats, weight: Floats, who: Ints, bounds: Bounds | None
) -> tuple[_Cells, _Cells]:
    low, width = 0.0, 1.0
    if bounds is not None:
        low, width = bounds[0], bounds[1] - bounds[0]
        truth, prediction = np.clip(truth, *bounds), np.clip(prediction, *bounds)
    sums = weight @ error_terms(truth, prediction, low, width)
    return {"sums": sums}, {"sums": np.array([float(len(np.unique(who)))])}


def exact_counts(
    kind: Kind, truth: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> Summary:
    """Counts whose bins are the distinct scores: metrics without any loss of resolution.

    They hold the scores themselves, so they stay where the rows are.

    Args:
        kind: of task.
        truth: `[rows]`.
        scores: `[rows, outputs]`.
        weights: `[rows]`, ≥ 0; 1 each if absent.

    Raises:
        DataError: rows, weights or classes do not fit.
        TrainingError: scores are not finite or no probabilities.
    """
    y, s = checked(kind, truth, scores)
    weight = checked_weights(weights, len(y))
    if kind == "regression":
        low = float(y.mean()) if len(y) else 0.0
        return ErrorSums(weight @ error_terms(y, s[:, 0], low, 1.0))
    label = y.astype(np.int64)
    if kind == "binary":
        return _exact_bins(label, s[:, 0], weight)
    classes = s.shape[1]
    each = tuple(
        _exact_bins((label == k).astype(np.int64), s[:, k], weight) for k in range(classes)
    )
    cell = label * classes + s.argmax(axis=1)
    return ClassBins(_tally(cell, weight, (classes, classes)), each)


def _exact_bins(truth: Ints, score: Floats, weight: Floats) -> ScoreBins:
    distinct, place = np.unique(score, return_inverse=True)
    hist = _tally(truth * len(distinct) + place.reshape(-1), weight, (2, len(distinct)))
    return ScoreBins(distinct, hist[0], hist[1])


def summary_metrics(summary: Summary, *, calibration: bool = True) -> dict[str, Floats]:
    """All metrics of a summary, each `[...]`, NaN where undefined."""
    if isinstance(summary, ErrorSums):
        return regression_metrics(summary)
    if isinstance(summary, ClassBins):
        return multiclass_metrics(summary)
    return binary_metrics(summary, calibration=calibration)


def evaluate(counts: Counts | Summary) -> dict[str, float | None]:
    """All metrics of `metric_names(kind)`.

    None where a metric is undefined: no rows, one class only, nothing called positive (precision),
    scores that separate the classes (calibration slope), decisions that are not shown (`coarsen`).
    """
    summary = counts.summary() if isinstance(counts, Counts) else counts
    found = {name: float(value) for name, value in summary_metrics(summary).items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def evaluate_each(counts: Sequence[Counts]) -> list[dict[str, float | None]]:
    """`evaluate` of many, those of a yes/no task in one go: fits iterate for all together."""
    summaries = [own.summary() for own in counts]
    found: list[dict[str, float | None]] = [{} for _ in summaries]
    alike: dict[tuple[int, bool], list[int]] = {}
    for place, summary in enumerate(summaries):
        if isinstance(summary, ScoreBins):
            alike.setdefault((len(summary.score), summary.decisions), []).append(place)
        else:
            found[place] = evaluate(summary)
    for (_, decisions), places in alike.items():
        bins = [bins for place in places if isinstance(bins := summaries[place], ScoreBins)]
        negative, positive = (
            np.stack([b.negative for b in bins]),
            np.stack([b.positive for b in bins]),
        )
        together = summary_metrics(ScoreBins(bins[0].score, negative, positive, decisions))
        for index, place in enumerate(places):
            values = {name: float(value[index]) for name, value in together.items()}
            found[place] = {name: v if np.isfinite(v) else None for name, v in values.items()}
    return found


def one_metric(counts: Counts | Summary, name: str) -> float | None:
    """One metric of `evaluate`, without the work for those that iterate."""
    summary = counts.summary() if isinstance(counts, Counts) else counts
    fitted = name in ("calibration_slope", "calibration_intercept")
    value = float(summary_metrics(summary, calibration=fitted)[name])
    return value if np.isfinite(value) else None
