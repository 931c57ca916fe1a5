"""The charts of `bench.html`: each takes what was measured and returns inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedward.simulations.bench.results import Bench, Measured, Spread
from fedward.simulations.bench.rivals import BARE, LABELS, PRODUCT
from fedward.simulations.report.svg import (
    ACCENT,
    ARM_COLOURS,
    INK,
    LINE,
    MUTED,
    chart,
)

COLOURS = {
    PRODUCT: ACCENT,
    BARE.name: MUTED,
    "pfl": ARM_COLOURS["local"],
    "pfl-cores": ARM_COLOURS["federated_no_dp"],
    "flower": ARM_COLOURS["pooled"],
}
MARKERS = {PRODUCT: "o", BARE.name: "s", "pfl": "^", "pfl-cores": "v", "flower": "D"}
"""Programs differ in their shape as well: for print, and for eyes that tell few colours apart."""

_WIDTH, _LINE, _REST = 560, 15, 52
"""In CSS pixels: of a chart, of one program's line, of the axis below."""
_GAP = 0.6
"""Between the bands of workloads, in lines."""


def programs(bench: Bench) -> list[str]:
    """All programs that were measured on some workload, fedward first."""
    found = {name for one in bench.measured for name in one.programs}
    return [name for name in LABELS if name in found]


def ratios(bench: Bench) -> str:
    """How many times as fast as each other program fedward is."""
    return _rows(
        bench.measured,
        lambda one: one.ratios,
        "ratios",
        "How many times as fast as each other program fedward is, by workload",
        "times as fast as the other program",
    )


def rounds(bench: Bench) -> str:
    """Milliseconds for a round of each program."""
    return _rows(
        bench.measured,
        lambda one: {name: _thousandfold(pace.round_s) for name, pace in one.programs.items()},
        "rounds",
        "Milliseconds for a round of each program, by workload",
        "milliseconds for a round",
    )


def marker(name: str, place: str) -> str:
    """A program's mark, for the key of the chart at a place of the page."""
    with chart(f"mark-{name}-{place}", LABELS[name], width=14, height=14) as drawn:
        drawn.axes.plot([0], [0], MARKERS[name], color=COLOURS[name], markersize=7, clip_on=False)
        drawn.axes.set_axis_off()
    return drawn.svg


def figure(value: float) -> str:
    """Three significant digits, without a power of ten.

    >>> figure(0.7083), figure(12.345), figure(4771.2)
    ('0.708', '12.3', '4,771')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rows(
    measured: Sequence[Measured],
    values: Callable[[Measured], Mapping[str, Spread]],
    key: str,
    label: str,
    axis: str,
) -> str:
    """A band for each workload, in it a line from least to most for each program."""
    bands = [values(one) for one in measured]
    lines = sum(map(len, bands)) + _GAP * len(bands)
    with chart(key, label, width=_WIDTH, height=round(_REST + _LINE * lines)) as drawn:
        axes, y, middles = drawn.axes, 0.0, []
        axes.set_xscale("log")
        for band in bands:
            if y:
                axes.axhline(y, color=LINE, linewidth=1)
            middles.append(y + (_GAP + len(band)) / 2)
            for index, name in enumerate(name for name in LABELS if name in band):
                _spread(axes, band[name], y + (_GAP + 1) / 2 + index, name)
            y += _GAP + len(band)
        axes.set_yticks(middles, [one.task.name for one in measured])
        axes.tick_params(axis="y", labelcolor=INK, pad=8)
        axes.set_ylim(y, 0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        if key == "ratios":
            axes.axvline(1.0, color=INK, linewidth=1)
        _plain_numbers(axes)
    return drawn.svg


def _spread(axes: Any, spread: Spread, y: float, name: str) -> None:
    colour = COLOURS[name]
    axes.plot([spread.least, spread.most], [y, y], color=colour, linewidth=1.6)
    axes.plot([spread.median], [y], MARKERS[name], color=colour, markersize=6)
    axes.annotate(
        figure(spread.median),
        (spread.most, y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=MUTED,
    )


def _plain_numbers(axes: Any) -> None:
    """1, 2, 5, 10, … instead of powers of ten, with room for the last label."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.08)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _thousandfold(spread: Spread) -> Spread:
    return Spread.of([1e3 * spread.least, 1e3 * spread.median, 1e3 * spread.most])
