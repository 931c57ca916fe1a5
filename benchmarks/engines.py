"""How fast simulations are, against a loop written by hand: `python benchmarks/engines.py`.

Each run is a process of its own with one thread for torch. The product runs a whole study from a
file, as `fedward simulate` does: the round loop with all its checks, a checkpoint and exact test
metrics after every round, the report at the end. The bare loop (`bare_loop.py`) does the same
training on the same rows and nothing else. They take turns, so that a busy machine hurts both.

A ratio is the median round of the bare loop by the median round of the product in the same turn;
first rounds do not count for either. Printed are the median ratio over turns, the smallest and the
largest; the same for the mean over all rounds of the product, in which the first one prepares and
the last one evaluates at the sites; seconds until the first round is over, from the start of the
process; and how well both models do on the same held-out rows.

    python benchmarks/engines.py                      W1 … W5
    python benchmarks/engines.py --only W1 W5 --engine loop --repeats 5
    python benchmarks/engines.py --scale              100, 1,000 and 10,000 sites
    python benchmarks/engines.py --grid               `loop` beside `auto`, for sizes of models
    python benchmarks/engines.py --json engines.json  for other programs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engines_data import MLP, WORKLOADS, Workload, write
from engines_process import run_bare, run_product

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


def measure(load: Workload, engine: str, repeats: int, place: Path) -> dict[str, Any]:
    """The product against the bare loop, taking turns."""
    folder = write(load, place / load.name)
    turns = [(run_bare(folder), run_product(folder, engine)) for _ in range(repeats)]
    bare = [statistics.median(one["seconds"][1:]) for one, _ in turns]
    ours = [statistics.median(one["seconds"]) for _, one in turns]
    means = [one["mean_s"] for _, one in turns]
    product = turns[-1][1]
    return {
        "workload": load.name,
        "aim": load.aim,
        "ratio": spread([b / o for b, o in zip(bare, ours, strict=True)]),
        "ratio_of_means": spread([b / o for b, o in zip(bare, means, strict=True)]),
        "bare_s": spread(bare),
        "round_s": spread(ours),
        "first_round_s": spread([one["first_round_s"] for _, one in turns]),
        "whole_s": spread([one["whole_s"] for _, one in turns]),
        "accuracy": statistics.mean(one["accuracy"] for _, one in turns),
        "bare_accuracy": statistics.mean(one["accuracy"] for one, _ in turns),
        "engine": product["engine"],
        "why": product["why"],
        "load": os.getloadavg()[0],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def compare(arguments: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """All workloads, one line each."""
    print(
        f"{'':4}{'ratio':>7} {'least':>7} {'most':>7} {'aim':>5} {'all rounds':>11} {'bare ms':>9}"
        f" {'ours ms':>9} {'1st s':>6} {'accuracy (bare)':>17} {'load':>5}  engine"
    )
    for load in WORKLOADS:
        if arguments.only and load.name not in arguments.only:
            continue
        found = measure(load, arguments.engine, arguments.repeats, place)
        ratio = found["ratio"]
        print(
            f"{load.name:4}{ratio['median']:7.2f} {ratio['least']:7.2f} {ratio['most']:7.2f}"
            f" {load.aim or 0:5.1f} {found['ratio_of_means']['median']:11.2f}"
            f" {found['bare_s']['median'] * 1e3:9.1f} {found['round_s']['median'] * 1e3:9.1f}"
            f" {found['first_round_s']['median']:6.1f}"
            f" {found['accuracy']:9.3f} ({found['bare_accuracy']:.3f})"
            f" {found['load']:5.1f}  {found['engine']}: {found['why']}",
            flush=True,
        )
        yield found


def scale(arguments: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """Time per site and round, and memory, as sites become many."""
    print(f"{'sites':>6} {'µs/site':>8} {'least':>8} {'1st s':>7} {'whole s':>8} {'peak MB':>8}")
    for sites in arguments.sites or SCALE_SITES:
        load = Workload(f"scale-{sites}", MLP, sites, SCALE_ROWS, SCALE_ROUNDS)
        folder = write(load, place / load.name)
        turns = [
            run_product(folder, arguments.engine, memory=True) for _ in range(arguments.repeats)
        ]
        each = spread([statistics.median(one["seconds"][:-1]) / sites for one in turns])
        found = {
            "sites": sites,
            "site_round_s": each,
            "first_round_s": statistics.median(one["first_round_s"] for one in turns),
            "whole_s": statistics.median(one["whole_s"] for one in turns),
            "peak_mb": max(one["peak_mb"] for one in turns),
            "engine": turns[-1]["engine"],
            "load": os.getloadavg()[0],
        }
        print(
            f"{sites:6} {each['median'] * 1e6:8.1f} {each['least'] * 1e6:8.1f}"
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
        "ratio": spread([loop / ours for loop, ours in medians]),
        "ratio_with_start": spread([a["all_rounds_s"] / b["all_rounds_s"] for a, b in turns]),
        "engine": turns[-1][1]["engine"],
        "why": turns[-1][1]["why"],
        "load": os.getloadavg()[0],
    }


def weights_of(hidden: Sequence[int]) -> int:
    """Weights of an MLP on the features of `engines_data`, one output.

    >>> weights_of((64, 32))
    4097
    """
    widths = (30, *hidden, 1)
    return sum((a + 1) * b for a, b in pairwise(widths))


def main() -> None:
    """Read the command line, run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--scale", action="store_true", help="from 100 to 10,000 sites")
    kind.add_argument("--grid", action="store_true", help="loop beside the engine")
    parser.add_argument("--only", nargs="+", choices=[load.name for load in WORKLOADS])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sites", type=int, nargs="+", help="other than usual, for the two modes")
    parser.add_argument("--private", action="store_true", help="DP-SGD in the grid")
    parser.add_argument("--most-s", type=float, default=120.0, help="longest run of the grid")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    mode = scale if arguments.scale else grid if arguments.grid else compare
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="engines-") as place:
        found = list(mode(arguments, Path(place)))
    if arguments.json:
        arguments.json.write_text(json.dumps({mode.__name__: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
