"""Small matplotlib charts as inline SVG that takes its colours and its font from the page.

Charts are drawn with marker colours; each is then replaced by a CSS variable, so that one drawing
serves light and dark pages and print. The same chart gives the same bytes: no date, no random ids.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

INK, MUTED, LINE, ACCENT = "#010203", "#010204", "#010205", "#010206"
"""Marker colours: text, quiet text, grid lines, and the accent of charts that compare no arms."""

ARM_COLOURS = {
    "local": "#010211",
    "federated": "#010212",
    "federated_no_dp": "#010213",
    "pooled": "#010214",
}
ARM_DASHES: dict[str, Any] = {
    "local": (0, (1.2, 1.6)),
    "federated": "-",
    "federated_no_dp": (0, (5, 2)),
    "pooled": (0, (7, 2, 1.5, 2)),
}
"""Arms differ in their line as well: for print, and for eyes that tell few colours apart."""

_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--federated)",
} | {colour: f"var(--{arm.replace('_', '-')})" for arm, colour in ARM_COLOURS.items()}

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "lines.solid_capstyle": "round",
}


def arm_colour(arm: str) -> str:
    """The marker colour of an arm; quiet for arms that have none."""
    return ARM_COLOURS.get(arm, MUTED)


class Chart:
    """One set of axes that becomes an SVG.

    Attributes:
        axes: matplotlib axes to draw on.
        svg: the finished element, after the `chart` block has ended.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def chart(key: str, label: str, *, width: int = 320, height: int = 240) -> Iterator[Chart]:
    """Draw one chart.

    Args:
        key: differs between the charts of a page; ids in the SVG are derived from it.
        label: what the chart shows, for those who cannot see it.
        width: natural width in CSS pixels; the page scales it down where there is no room.
        height: natural height.
    """
    # Imported here: matplotlib takes a second, and most commands draw nothing.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE | {"svg.hashsalt": key}), warnings.catch_warnings():
        # Only widths are measured with matplotlib's font; the page has its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        drawn = Chart(figure.add_subplot())
        yield drawn
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    drawn.svg = _inline(stream.getvalue(), label, width, height)


def _inline(document: str, label: str, width: int, height: int) -> str:
    body = document[document.index("<svg") :]
    body = body[body.index(">") + 1 :]
    # matplotlib's own style sheet would apply to the whole page.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _clean(tag[0]), body)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{body.strip()}'
    )


def _clean(tag: str) -> str:
    """One tag without matplotlib's ids and fonts, in the page's colours, with short numbers."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r"font: (?:[a-z0-9]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag).replace("xlink:href", "href")
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag)
    return re.sub(r"#0102\d\d", lambda found: _VARIABLES[found[0]], re.sub(r"\s+", " ", tag))
