"""Metrics of a predicted number from five sums.

With `error = prediction - truth` the sums are: weight, Σ|error|, Σerror², Σtruth, Σtruth². They
are kept in units of `width` above `low`, so that with public bounds each row adds a vector whose
entries are in [0, 1] (what differential privacy needs), and exact sums, taken about the mean, lose
no digits of R².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedward.common.metrics.binary import ratio
from fedward.common.metrics.checks import Floats

REGRESSION_METRICS = ("rmse", "mae", "r2")
SUMS = ("weight", "absolute_error", "squared_error", "truth", "squared_truth")


@dataclass(frozen=True, eq=False)
class ErrorSums:
    """What all regression metrics follow from.

    Attributes:
        sums: `[..., 5]`, in the order of `SUMS`, in scaled units.
        width: what one scaled unit is in the target's unit.
    """

    sums: Floats
    width: float = 1.0


def error_terms(truth: Floats, prediction: Floats, low: float, width: float) -> Floats:
    """What each row adds to the sums, `[rows, 5]`."""
    error, scaled = (prediction - truth) / width, (truth - low) / width
    return np.stack([np.ones_like(error), np.abs(error), error**2, scaled, scaled**2], axis=-1)


def regression_metrics(errors: ErrorSums) -> dict[str, Floats]:
    """All `REGRESSION_METRICS`, each `[...]`, NaN where undefined (R²: a constant truth)."""
    weight, absolute, squared, truth, squared_truth = np.moveaxis(errors.sums, -1, 0)
    spread = squared_truth - ratio(truth**2, weight)
    # A constant truth leaves rounding, not spread.
    spread = np.where(spread > 1e-12 * squared_truth, spread, 0.0)
    return {
        "rmse": np.sqrt(ratio(np.maximum(squared, 0.0), weight)) * errors.width,
        "mae": ratio(np.maximum(absolute, 0.0), weight) * errors.width,
        "r2": 1.0 - ratio(np.maximum(squared, 0.0), spread),
    }
