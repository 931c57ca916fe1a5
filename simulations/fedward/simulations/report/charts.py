"""The charts of the report: each takes results and returns inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fedward.simulations.report.results import OVERALL, Results
from fedward.simulations.report.selection import chosen_sites
from fedward.simulations.report.svg import (
    ACCENT,
    ARM_DASHES,
    INK,
    LINE,
    MUTED,
    arm_colour,
    chart,
)
from fedward.simulations.report.words import arm_label, epsilon_text, metric_of

Point = TypeVar("Point")

_POINTS = 240
"""More points than that on a line are not seen, only paid for."""
_LABELS = 6
"""So many lines are labelled at their end; more would not be readable."""
_DASHES: Any = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (8, 2, 2, 2)), (0, (3, 1.5)), (0, (12, 3)))


def short(name: str, length: int = 14) -> str:
    """A site's name as a chart can hold it."""
    clean = "".join(letter for letter in name if letter.isprintable())
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def forest(results: Results) -> str:
    """Headline metric of every arm at every shown site, with intervals: the results at a glance."""
    metric = metric_of(results.study.metric).label
    places = (*chosen_sites(results), OVERALL)
    arms = results.arms
    step = 0.16
    height = 60 + len(places) * (18 + 9 * len(arms))
    label = f"{metric} with intervals at each hospital and overall, by way of training"
    with chart("forest", label, width=460, height=height) as drawn:
        axes = drawn.axes
        for row, place in enumerate(places):
            for index, arm in enumerate(arms):
                found = results.estimate(arm, place)
                y = row + (index - (len(arms) - 1) / 2) * step
                _interval(axes, found.value, found.low, found.high, y, arm)
        axes.set_yticks(range(len(places)), [short(p, 18) for p in places[:-1]] + ["Overall"])
        axes.tick_params(axis="y", labelcolor=INK, pad=8)
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.axhline(len(places) - 1.5, color=LINE, linewidth=1)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(metric)
    return drawn.svg


def _interval(
    axes: Any, value: float | None, low: float | None, high: float | None, y: float, arm: str
) -> None:
    if value is None:
        return
    colour = arm_colour(arm)
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
    axes.plot([value], [y], "o", color=colour, markersize=5.5)


def curve(results: Results, arm: str, limits: tuple[float, float] | None) -> str:
    """The headline metric of one arm per round: overall bold, shown sites thin."""
    metric = metric_of(results.study.metric).label
    points = _thin(results.curves[arm])
    rounds = [point.round for point in points]
    colour = arm_colour(arm)
    label = f"{metric} per round, {arm_label(arm)}: overall and by hospital"
    with chart(f"curve-{arm}", label, width=330, height=230) as drawn:
        for site in chosen_sites(results):
            values = _numbers([point.metrics.get(site) for point in points])
            drawn.axes.plot(rounds, values, color=colour, linewidth=0.8, alpha=0.45)
        overall = _numbers([point.metrics.get(OVERALL) for point in points])
        drawn.axes.plot(rounds, overall, color=colour, linewidth=2.4)
        if limits:
            drawn.axes.set_ylim(*limits)
        _rounds_axis(drawn.axes, rounds)
    return drawn.svg


def curve_limits(results: Results) -> tuple[float, float] | None:
    """One vertical range for the curves of all arms, so that they can be compared by eye."""
    shown = (OVERALL, *chosen_sites(results))
    values = [
        value
        for points in results.curves.values()
        for point in points
        for place in shown
        if (value := point.metrics.get(place)) is not None
    ]
    if not values:
        return None
    room = max(0.04 * (max(values) - min(values)), 0.005)
    return min(values) - room, max(values) + room


def roc(results: Results, site: str) -> str:
    """ROC curves of all arms at one site."""
    label = f"ROC curves at {site}"
    with chart(f"roc-{site}", label, width=240, height=240) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for arm in results.arms:
            found = results.roc.get(arm, {}).get(site)
            if found is None:
                continue
            picked = _thin(list(zip(found.fpr, found.tpr, strict=True)))
            x, y = zip(*picked, strict=True) if picked else ((), ())
            drawn.axes.plot(x, y, **_arm_line(arm))
        _unit_square(drawn.axes, "false alarms", "found")
    return drawn.svg


def calibration(results: Results, site: str) -> str:
    """Observed share against predicted risk of all arms at one site."""
    label = f"Calibration at {site}: observed share against predicted risk"
    with chart(f"calibration-{site}", label, width=240, height=240) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for arm in results.arms:
            bins = results.calibration.get(arm, {}).get(site, ())
            kept = [b for b in bins if b.score is not None and b.observed is not None]
            x, y = [b.score for b in kept], [b.observed for b in kept]
            drawn.axes.plot(x, y, marker="o", markersize=3, **_arm_line(arm))
        _unit_square(drawn.axes, "predicted risk", "observed share")
    return drawn.svg


def drift(results: Results, what: str) -> str:
    """Norm or cosine of each shown site's update, per round; `what` is one of these two."""
    shown = chosen_sites(results)
    lines: dict[str, list[tuple[int, float | None]]] = {site: [] for site in shown}
    for point in results.drift:
        if point.site in lines:
            value = point.norm if what == "norm" else point.cosine
            lines[point.site].append((point.round, value))
    title = {"norm": "size of the update (norm)", "cosine": "agreement with the mean (cosine)"}[
        what
    ]
    label = f"{title} per round, by hospital"
    with chart(f"drift-{what}", label, width=430, height=250) as drawn:
        _site_lines(drawn.axes, lines)
        if what == "norm":
            drawn.axes.set_ylim(bottom=0)
        else:
            drawn.axes.axhline(0, color=MUTED, linewidth=0.8)
        _end_labels(drawn.axes, lines)
        drawn.axes.set_title(title, loc="left", fontsize=11, color=INK)
    return drawn.svg


def privacy(results: Results) -> str:
    """ε spent up to each round, by shown site, with the study's budget as a line."""
    lines = {
        site: [(k + 1, value) for k, value in enumerate(results.privacy[site].per_round)]
        for site in chosen_sites(results)
        if site in results.privacy
    }
    label = "ε spent up to each round, by hospital, and the budget"
    with chart("privacy", label, width=460, height=260) as drawn:
        _site_lines(drawn.axes, lines)
        budget = results.study.epsilon
        if budget is not None:
            drawn.axes.axhline(budget, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            drawn.axes.annotate(
                f"budget ε = {epsilon_text(budget)}",
                (0.01, budget),
                xycoords=("axes fraction", "data"),
                xytext=(0, 4),
                textcoords="offset points",
                color=INK,
                fontsize=10,
            )
            drawn.axes.set_ylim(0, max(budget, drawn.axes.get_ylim()[1]) * 1.12)
        else:
            drawn.axes.set_ylim(bottom=0)
        _end_labels(drawn.axes, lines)
    return drawn.svg


def _site_lines(axes: Any, lines: Mapping[str, Sequence[tuple[int, float | None]]]) -> None:
    drawn = {site: _thin(points) for site, points in lines.items() if points}
    few = len(drawn) <= _LABELS
    for index, points in enumerate(drawn.values()):
        values = _numbers([value for _, value in points])
        style = {"linewidth": 1.5, "linestyle": _DASHES[index]} if few else {"linewidth": 0.8}
        axes.plot([k for k, _ in points], values, color=ACCENT, alpha=0.85, **style)
    _rounds_axis(axes, sorted({k for points in drawn.values() for k, _ in points}))


def _end_labels(axes: Any, lines: Mapping[str, Sequence[tuple[int, float | None]]]) -> None:
    """Names at the ends of lines, pushed apart where they would overlap; none if there are many."""
    ends = [(p[-1][1], site, p[-1][0]) for site, p in lines.items() if p]
    order = sorted((value, site, k) for value, site, k in ends if value is not None)
    if not order or len(ends) > _LABELS:
        return
    low, high = axes.get_ylim()
    gap = (high - low) * 0.075
    true = [value for value, _, _ in order]
    places = list(true)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    shift = min(float(np.mean(np.subtract(places, true))), max(0.0, places[0] - low - gap / 2))
    for (_, site, k), place in zip(order, places, strict=True):
        axes.annotate(
            short(site),
            (k, place - shift),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=MUTED,
            annotation_clip=False,
        )


def _arm_line(arm: str) -> dict[str, Any]:
    main = arm == "federated"
    return {
        "color": arm_colour(arm),
        "linestyle": ARM_DASHES.get(arm, "-"),
        "linewidth": 2.2 if main else 1.4,
        "zorder": 4 if main else 3,
    }


def _unit_square(axes: Any, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    ticks = [0, 0.5, 1]
    axes.set_xticks(ticks, ["0", "0.5", "1"])
    axes.set_yticks(ticks, ["0", "0.5", "1"])
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _rounds_axis(axes: Any, rounds: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if rounds and rounds[0] < rounds[-1]:
        axes.set_xlim(rounds[0], rounds[-1])
    axes.set_xlabel("round")


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= _POINTS:
        return points
    picked = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
    return [points[i] for i in picked]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
