"""The picture of `docs/performance.md`: `python benchmarks/plots.py FOLDER PICTURE`.

FOLDER has what the measurements wrote, each where it was measured:

    fedward bench --repeats 5 --out FOLDER            FOLDER/bench.json
    python benchmarks/engines.py --scale --json FOLDER/scale.json
    python benchmarks/engines.py --grid --json FOLDER/grid.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedward.simulations.bench.results import Bench
from fedward.simulations.bench.rivals import BARE, PEERS

WIDTH, HEIGHT = 11.0, 3.6
MARKS = ("o", "s", "^", "D", "v")
SHADES = ("#1b4f72", "#2874a6", "#5499c7", "#ca6f1e", "#7b241c")


def ratios(axes: Any, bench: Bench) -> None:
    """How many times as fast as each other program, and what is wanted."""
    names = [one.task.name for one in bench.measured]
    programs = [
        rival for rival in (BARE, *PEERS) if any(rival.name in one.ratios for one in bench.measured)
    ]
    for index, program in enumerate(programs):
        for row, one in enumerate(bench.measured):
            if program.name not in one.ratios:
                continue
            place, spread = row + 0.2 * (index - (len(programs) - 1) / 2), one.ratios[program.name]
            axes.plot([spread.least, spread.most], [place] * 2, color=SHADES[index])
            label = program.label if row == 0 else None
            axes.plot(spread.median, place, MARKS[index], color=SHADES[index], label=label)
            if program.name in one.aims:
                axes.plot(one.aims[program.name], place, "|", color="black", markersize=12)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.axvline(1.0, color="grey", linewidth=1)
    axes.set_title("times as fast as other programs ( | wanted)")
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    _plain(axes.xaxis)


def scale(axes: Any, found: list[dict[str, Any]]) -> None:
    """Time for a site and a round, as sites become many."""
    sites = [one["sites"] for one in found]
    spreads = [one["site_round_s"] for one in found]
    axes.vlines(sites, *[[1e6 * s[end] for s in spreads] for end in ("least", "most")])
    axes.plot(sites, [1e6 * s["median"] for s in spreads], "o-", color=SHADES[0])
    for one, spread in zip(found, spreads, strict=True):
        place = (one["sites"], 1e6 * spread["median"])
        axes.annotate(
            f"{one['peak_mb']:.0f} MB", place, (0, 8), textcoords="offset points", ha="center"
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.5e6 * max(s["most"] for s in spreads))
    axes.margins(x=0.2)
    axes.set_title("µs for a site and round, peak memory")
    axes.set_xlabel("sites of 50 rows")
    _plain(axes.xaxis)


def grid(axes: Any, found: list[dict[str, Any]]) -> None:
    """What `auto` chose, beside one site after another."""
    for index, weights in enumerate(dict.fromkeys(one["weights"] for one in found)):
        own = [one for one in found if one["weights"] == weights]
        sites, spreads = [one["sites"] for one in own], [one["ratio"] for one in own]
        axes.plot(
            sites,
            [s["median"] for s in spreads],
            f"{MARKS[index]}-",
            color=SHADES[index],
            label=f"{weights:,} weights",
        )
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("times as fast as one site after another")
    axes.set_xlabel("sites")
    axes.legend(fontsize=8)
    _plain(axes.xaxis)
    _plain(axes.yaxis)


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def main() -> None:
    """Read three files and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    ratios(first, Bench.load(arguments.folder / "bench.json"))
    for axes, draw, name in ((second, scale, "scale"), (third, grid, "grid")):
        draw(axes, json.loads((arguments.folder / f"{name}.json").read_bytes())[name])
    figure.savefig(arguments.picture, dpi=130)


if __name__ == "__main__":
    main()
