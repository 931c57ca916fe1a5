"""What the numbers say, in plain sentences that claim no more than the numbers do.

One arm is called better than another only where their confidence intervals do not overlap. That is
a cautious rule: it may miss a true difference, but it seldom invents one.
"""

from __future__ import annotations

from typing import Literal

from fedward.simulations.report.results import OVERALL, Estimate, Results
from fedward.simulations.report.words import (
    decimals,
    delta_text,
    epsilon_text,
    hospitals,
    interval_text,
    main_arm,
    metric_of,
    most_spent,
)

Verdict = Literal["better", "worse", "overlap", "unknown"]


def compare(first: Estimate, second: Estimate, *, lower_is_better: bool = False) -> Verdict:
    """How `first` does against `second`; `unknown` without both intervals.

    >>> compare(Estimate(value=0.9, low=0.85, high=0.95), Estimate(value=0.7, low=0.6, high=0.8))
    'better'
    """
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return "unknown"
    if first.low > second.high:
        return "worse" if lower_is_better else "better"
    if first.high < second.low:
        return "better" if lower_is_better else "worse"
    return "overlap"


def summary(results: Results) -> tuple[str, ...]:
    """The findings in a few sentences, computed from the results."""
    sentences = [_together(results), _alone(results), _pooled(results)]
    sentences += [_without_dp(results), _promise(results)]
    return tuple(sentence for sentence in sentences if sentence)


def _text(results: Results, arm: str) -> str:
    metric = results.study.metric
    return interval_text(results.estimate(arm, OVERALL), decimals(results, metric))


def _verdict(results: Results, arm: str) -> Verdict:
    return compare(
        results.estimate(main_arm(results), OVERALL),
        results.estimate(arm, OVERALL),
        lower_is_better=metric_of(results.study.metric).lower_is_better,
    )


def _has(results: Results, arm: str) -> bool:
    return results.estimate(arm, OVERALL).value is not None


def _together(results: Results) -> str:
    label, count = metric_of(results.study.metric).label, len(results.sites)
    if not _has(results, "federated"):
        return f"The {label} of the federated model could not be measured on these test patients."
    together = f"the {hospitals(count)} reach" if count > 1 else "the one hospital reaches"
    return (
        f"Trained together, {together} an overall {label} of {_text(results, 'federated')} "
        "on test patients that no training has seen."
    )


def _alone(results: Results) -> str:
    if not (_has(results, "local") and _has(results, "federated")):
        return ""
    ending = {
        "better": "the intervals do not overlap, so training together is better here",
        "worse": "the intervals do not overlap, so training together is worse here",
        "overlap": "the intervals overlap, so these test patients do not show which is better",
        "unknown": "without intervals, this does not show which is better",
    }[_verdict(results, "local")]
    return f"Each with its own model, they reach {_text(results, 'local')}: {ending}."


def _pooled(results: Results) -> str:
    if not (_has(results, "pooled") and _has(results, "federated")):
        return ""
    ending = {
        "better": "below the federated model",
        "worse": "above the federated model: here is something that federation has not reached",
        "overlap": "not told apart from the federated model by these test patients",
        "unknown": "not compared, for want of intervals",
    }[_verdict(results, "pooled")]
    return (
        "With all records in one place, which a federation avoids, training gives "
        f"{_text(results, 'pooled')}, {ending}."
    )


def _without_dp(results: Results) -> str:
    if not (results.study.private and _has(results, "federated_no_dp")):
        return ""
    ending = {
        "better": "so privacy did no harm here",
        "worse": "so privacy has a price here",
        "overlap": "a difference that these test patients do not tell from chance",
        "unknown": "a difference without intervals to judge it by",
    }[_verdict(results, "federated_no_dp")]
    return (
        "The same training without differential privacy gives "
        f"{_text(results, 'federated_no_dp')}, {ending}."
    )


def _promise(results: Results) -> str:
    spent = most_spent(results)
    if not results.study.private or spent is None:
        return (
            "No differential privacy was used: such a model may give away something about "
            "single patients."
        )
    units = {privacy.unit for privacy in results.privacy.values()}
    whose = "Every patient" if units == {"patient"} else "Every single record (not every patient)"
    budget = results.study.epsilon
    of = f" of a budget of {epsilon_text(budget)}" if budget is not None else ""
    return (
        f"{whose} is covered by differential privacy: no hospital spent more than "
        f"ε = {epsilon_text(spent)}{of}, at δ = {delta_text(_largest_delta(results))}."
    )


def _largest_delta(results: Results) -> float:
    return max(privacy.delta for privacy in results.privacy.values())
