"""Metrics with one implementation for two resolutions: exact, and from counts that sites add up.

`count` makes mergeable `Counts` at a site, `exact_counts` keeps every distinct score, `evaluate`
turns either into metrics, `bootstrap` gives intervals over patients, and `replicates` what
they are made of.
"""

from fedward.common.metrics.binary import DECISION_METRICS, auroc_resolution
from fedward.common.metrics.counting import (
    count,
    evaluate,
    evaluate_each,
    exact_counts,
    higher_is_better,
    metric_names,
    one_metric,
)
from fedward.common.metrics.counts import Counts, cell_shapes
from fedward.common.metrics.curves import ReliabilityGroup, reliability, roc_points
from fedward.common.metrics.intervals import Interval, bootstrap, replicates

__all__ = [
    "DECISION_METRICS",
    "Counts",
    "Interval",
    "ReliabilityGroup",
    "auroc_resolution",
    "bootstrap",
    "cell_shapes",
    "count",
    "evaluate",
    "evaluate_each",
    "exact_counts",
    "higher_is_better",
    "metric_names",
    "one_metric",
    "reliability",
    "replicates",
    "roc_points",
]
