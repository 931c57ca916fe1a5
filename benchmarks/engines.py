"""How simulations grow: `python benchmarks/engines.py --scale` or `--grid`.

Each run is a process of its own with one thread for torch, and a whole study, as `fedward simulate`
does it. How fast that is beside other programs is what `fedward bench` measures.

    python benchmarks/engines.py --scale              100, 1,000 and 10,000 sites
    python benchmarks/engines.py --grid               `loop` beside `auto`, for sizes of models
    python benchmarks/engines.py --grid --json grid.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedward.simulations.bench.processes import run_product
from fedward.simulations.bench.results import Spread
from fedward.simulations.bench.workloads import MLP, Workload, write

SCALE_SITES = (100, 1_000, 10_000)
SCALE_ROWS = 50
SCALE_ROUNDS = 6
GRID_SITES = (4, 20, 100, 1_000)
GRID_WIDTHS = ((64, 32), (256, 128), (512, 256), (1024, 768), (4096, 2300))
"""Of the hidden layers: 4 thousand weights, 41, 147, 819 thousand, 9.6 million."""
GRID_ROUNDS = 4
GRID_ROWS = 50
_FLOPS = 1e10
"""A guess of what a core does in a second on such models, to know which runs to leave out."""


def scale(arguments: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """Time per site and round, and memory, as sites become many."""
    print(f"{'sites':>6} {'µs/site':>8} {'least':>8} {'1st s':>7} {'whole s':>8} {'peak MB':>8}")
    for sites in arguments.sites or SCALE_SITES:
        load = Workload(f"scale-{sites}", MLP, sites, SCALE_ROWS, SCALE_ROUNDS)
        folder = write(load, place / load.name)
        turns = [
            run_product(folder, arguments.engine, memory=True) for _ in range(arguments.repeats)
        ]
        each = Spread.of([statistics.median(one["seconds"][:-1]) / sites for one in turns])
        found = {
            "sites": sites,
            "site_round_s": each.model_dump(),
            "first_round_s": statistics.median(one["first_round_s"] for one in turns),
            "whole_s": statistics.median(one["whole_s"] for one in turns),
            "peak_mb": max(one["peak_mb"] for one in turns),
            "engine": turns[-1]["engine"],
            "load": os.getloadavg()[0],
        }
        print(
            f"{sites:6} {each.median * 1e6:8.1f} {each.least * 1e6:8.1f}"
            f" {found['first_round_s']:7.1f} {found['whole_s']:8.1f} {found['peak_mb']:8.0f}",
            flush=True,
        )
        yield found


def grid(arguments: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """`loop` beside another engine, for sizes of models and numbers of sites."""
    print(
        f"{'weights':>9} {'sites':>6} {'loop ms':>9} {'ours ms':>9} {'ratio':>6} {'least':>6}"
        f" {'most':>6} {'with start':>10}  engine"
    )
    for widths in GRID_WIDTHS:
        model = {"name": "mlp", "hidden": list(widths)}
        size = weights_of(widths)
        for sites in arguments.sites or GRID_SITES:
            if 2 * 6.0 * size * sites * GRID_ROWS * GRID_ROUNDS / _FLOPS > arguments.most_s:
                print(f"{size:9,} {sites:6}  left out, see --most-s", flush=True)
                continue
            load = Workload("grid", model, sites, GRID_ROWS, GRID_ROUNDS, learning_rate=0.05)
            if arguments.private:
                load = replace(load, private=True)
            folder = write(load, place / f"grid-{size}-{sites}")
            found = beside(folder, arguments)
            print(
                f"{size:9,} {sites:6} {found['loop_s'] * 1e3:9.1f} {found['round_s'] * 1e3:9.1f}"
                f" {found['ratio']['median']:6.2f} {found['ratio']['least']:6.2f}"
                f" {found['ratio']['most']:6.2f} {found['ratio_with_start']['median']:10.2f}"
                f"  {found['engine']}: {found['why']}",
                flush=True,
            )
            yield {"weights": size, "sites": sites, **found}


def beside(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`loop` and the wanted engine, taking turns."""
    turns = [
        (run_product(folder, "loop"), run_product(folder, arguments.engine))
        for _ in range(arguments.repeats)
    ]
    # Without the last round, which evaluates in the same way with every engine.
    medians = [[statistics.median(one["seconds"][:-1]) for one in turn] for turn in turns]
    return {
        "loop_s": statistics.median(loop for loop, _ in medians),
        "round_s": statistics.median(ours for _, ours in medians),
        "ratio": _spread([loop / ours for loop, ours in medians]),
        "ratio_with_start": _spread([a["all_rounds_s"] / b["all_rounds_s"] for a, b in turns]),
        "engine": turns[-1][1]["engine"],
        "why": turns[-1][1]["why"],
        "load": os.getloadavg()[0],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return Spread.of(values).model_dump()


def weights_of(hidden: Sequence[int]) -> int:
    """Weights of an MLP on the features of the workloads, one output.

    >>> weights_of((64, 32))
    4097
    """
    widths = (30, *hidden, 1)
    return sum((a + 1) * b for a, b in pairwise(widths))


def main() -> None:
    """Read the command line, run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--scale", action="store_true", help="from 100 to 10,000 sites")
    kind.add_argument("--grid", action="store_true", help="loop beside the engine")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sites", type=int, nargs="+", help="other than usual, for the two modes")
    parser.add_argument("--private", action="store_true", help="DP-SGD in the grid")
    parser.add_argument("--most-s", type=float, default=120.0, help="longest run of the grid")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    mode = scale if arguments.scale else grid
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="engines-") as place:
        found = list(mode(arguments, Path(place)))
    if arguments.json:
        arguments.json.write_text(json.dumps({mode.__name__: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
