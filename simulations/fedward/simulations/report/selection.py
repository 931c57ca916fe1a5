"""Which sites to show when there are too many to show all."""

from __future__ import annotations

import math

from fedward.simulations.report.results import Results
from fedward.simulations.report.words import main_arm, metric_of

MOST = 12
"""So many sites are shown one by one; beyond that a selection, and the report says which."""


def ranked_sites(results: Results) -> tuple[str, ...]:
    """Names of all sites, best first by the headline metric; undefined ones last."""
    sign = 1.0 if metric_of(results.study.metric).lower_is_better else -1.0
    arm = main_arm(results)

    def rank(name: str) -> tuple[float, str]:
        value = results.estimate(arm, name).value
        return (math.inf if value is None else sign * value), name

    return tuple(sorted((site.name for site in results.sites), key=rank))


def chosen_sites(results: Results, most: int = MOST) -> tuple[str, ...]:
    """At most `most` sites: all in the study's order, or evenly from the best to the worst.

    With `most = 3` these are the best, the median and the worst site. Sites whose headline metric
    is undefined are left out unless there are no others.
    """
    names = tuple(site.name for site in results.sites)
    if len(names) <= most:
        return names
    arm = main_arm(results)
    ranked = ranked_sites(results)
    defined = tuple(n for n in ranked if results.estimate(arm, n).value is not None) or ranked
    if len(defined) <= most:
        return defined
    return tuple(defined[round(i * (len(defined) - 1) / (most - 1))] for i in range(most))


def selection_note(results: Results, most: int = MOST) -> str:
    """A sentence that says which sites are shown; empty if it is all of them."""
    total, shown = len(results.sites), len(chosen_sites(results, most))
    if total <= most:
        return ""
    label = metric_of(results.study.metric).label
    return (
        f"Shown: {shown} of {total:,} hospitals, picked evenly from the best to the worst "
        f"{label} of the federated model."
    )
