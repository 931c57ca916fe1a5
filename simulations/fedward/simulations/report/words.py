"""Names and numbers as people read them: arms, metrics, intervals, ε.

>>> from fedward.simulations.report.results import Estimate
>>> interval_text(Estimate(value=0.97, low=0.95, high=0.99))
'0.97 (0.95–0.99)'
>>> interval_text(Estimate(value=None))
'–'
>>> epsilon_text(1.8934), epsilon_text(0.01234)
('1.90', '0.013')
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedward.simulations.report.results import ARMS, OVERALL, Estimate, Results

ABSENT = "–"
"""Stands where a figure is undefined."""


class Metric(NamedTuple):
    """A metric's name in a table and in a sentence, and which direction is good."""

    label: str
    lower_is_better: bool = False


METRICS = {
    "auroc": Metric("AUROC"),
    "accuracy": Metric("accuracy"),
    "auprc": Metric("AUPRC"),
    "balanced_accuracy": Metric("balanced accuracy"),
    "sensitivity": Metric("sensitivity"),
    "specificity": Metric("specificity"),
    "precision": Metric("precision"),
    "f1": Metric("F1"),
    "brier": Metric("Brier score", lower_is_better=True),
    "calibration_slope": Metric("calibration slope"),
    "calibration_error": Metric("calibration error", lower_is_better=True),
    "rmse": Metric("RMSE", lower_is_better=True),
    "mae": Metric("MAE", lower_is_better=True),
    "r2": Metric("R²"),
}
"""The metrics that have a name of their own, in the order of tables."""

_ARM_LABELS = {
    "local": "Local only",
    "federated": "Federated",
    "federated_no_dp": "Federated without DP",
    "pooled": "Pooled",
}
_SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def arm_label(arm: str) -> str:
    """An arm's name in a heading."""
    return _ARM_LABELS.get(arm, arm.replace("_", " ").capitalize())


def metric_of(name: str) -> Metric:
    """A metric's name and direction; `macro_x` is the mean of x over classes."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith("macro_"):
        inner = metric_of(name.removeprefix("macro_"))
        return Metric(f"macro {inner.label}", inner.lower_is_better)
    return Metric(name.replace("_", " "))


def metric_names(results: Results) -> tuple[str, ...]:
    """All metrics that were measured: the headline metric, then in the order of `METRICS`."""
    found = {name for arm in results.metrics.values() for place in arm.values() for name in place}
    order = (results.study.metric, *METRICS)
    known = [name for name in dict.fromkeys(order) if name in found]
    return tuple(known) + tuple(sorted(found - set(known)))


def decimals(results: Results, metric: str) -> int:
    """How many decimals a metric deserves overall; see `precision`."""
    return precision(metric, [results.estimate(arm, OVERALL, metric) for arm in results.arms])


def precision(metric: str, estimates: Sequence[Estimate]) -> int:
    """How many decimals estimates of a metric deserve: 3 where all intervals are narrow, else 2.

    Errors in the target's own unit get three significant digits.
    """
    if metric in ("rmse", "mae"):
        largest = max((abs(e.value) for e in estimates if e.value), default=1.0)
        return min(6, max(0, 2 - math.floor(math.log10(largest))))
    widths = [e.high - e.low for e in estimates if e.low is not None and e.high is not None]
    return 3 if widths and max(widths) < 0.02 else 2


def number_text(value: float | None, places: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign."""
    if value is None:
        return ABSENT
    text = f"{value:,.{places}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.removeprefix("-")  # no minus zero
    return text.replace("-", "−")


def range_text(estimate: Estimate, places: int = 2) -> str:
    """Only the interval: `0.95–0.99`, or nothing where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = number_text(estimate.low, places), number_text(estimate.high, places)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def interval_text(estimate: Estimate, places: int = 2) -> str:
    """A value with its interval: `0.97 (0.95–0.99)`."""
    between = range_text(estimate, places)
    value = number_text(estimate.value, places)
    return f"{value} ({between})" if between else value


def epsilon_text(value: float | None) -> str:
    """ε rounded **up**, so that a privacy cost is never understated.

    Two decimals; below 0.1 two significant digits, but at most six decimals.
    """
    if value is None:
        return ABSENT
    places = 2
    if 0.0 < value < 0.1:
        places = min(6, 1 - math.floor(math.log10(value)))
    return number_text(math.ceil(value * 10**places - 1e-6) / 10**places, places)


def delta_text(value: float | None) -> str:
    """δ without padding: `1e-5`."""
    return ABSENT if value is None else f"{value:g}".replace("e-0", "e-")


def count_word(count: int) -> str:
    """Small counts as words, large ones with separators."""
    return _SMALL[count] if 0 <= count < len(_SMALL) else f"{count:,}"


def duration_text(seconds: float) -> str:
    """A duration in the two largest units that matter."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def hospitals(count: int) -> str:
    """`one hospital`, `four hospitals`."""
    return f"{count_word(count)} hospital{'' if count == 1 else 's'}"


def most_spent(results: Results) -> float | None:
    """The largest ε that any site spent; null without differential privacy."""
    spent = [p.epsilon for p in results.privacy.values() if p.epsilon is not None]
    return max(spent, default=None)


def main_arm(results: Results) -> str:
    """The arm that the report is about: `federated`, or the first one that was run."""
    return "federated" if "federated" in results.metrics else (*results.arms, ARMS[1])[0]
