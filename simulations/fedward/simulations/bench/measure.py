"""Measures workloads: the product and its rivals take turns, so that a busy machine hurts all."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedward.simulations.bench.processes import run_product, run_rival
from fedward.simulations.bench.results import Measured, Pace, Spread, Task
from fedward.simulations.bench.rivals import BARE, LABELS, PRODUCT, against
from fedward.simulations.bench.workloads import Workload, write
from fedward.simulations.report.results import Engine

Turn = Mapping[str, Mapping[str, Any]]
"""What each program printed, by its name."""


def measure(
    load: Workload,
    place: Path,
    *,
    engine: str = "auto",
    repeats: int = 3,
    peers: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure one workload.

    Args:
        load: what to train.
        place: a folder for its data.
        engine: of the product.
        repeats: turns.
        peers: the Python environment of the peers, if they are to be measured.
        tell: is given a line before each run.

    Raises:
        StateError: a program cannot be run, or failed.
    """
    folder = write(load, place / load.name)
    rivals = against(private=load.private, peers=peers)

    def turn(number: int) -> Turn:
        found: dict[str, Mapping[str, Any]] = {}
        where = f"{load.name}, turn {number} of {repeats}"
        for rival in rivals:
            tell(f"{where}: {rival.label}")
            found[rival.name] = run_rival(rival, folder, peers)
        tell(f"{where}: {LABELS[PRODUCT]}")
        found[PRODUCT] = run_product(folder, engine)
        return found

    return summarise(load, [turn(number) for number in range(1, repeats + 1)])


def summarise(load: Workload, turns: Sequence[Turn]) -> Measured:
    """What the turns found, as ratios and spreads."""
    rounds = [{name: _typical(name, one["seconds"]) for name, one in t.items()} for t in turns]
    ours = [turn[PRODUCT] for turn in turns]
    rivals = [name for name in turns[0] if name != PRODUCT]
    return Measured(
        task=Task.of(load),
        engine=Engine(name=ours[-1]["engine"], why=ours[-1]["why"]),
        turns=len(turns),
        programs={
            name: Pace(
                round_s=Spread.of([each[name] for each in rounds]),
                accuracy=statistics.mean(turn[name]["accuracy"] for turn in turns),
            )
            for name in (PRODUCT, *rivals)
        },
        ratios={
            name: Spread.of([each[name] / each[PRODUCT] for each in rounds]) for name in rivals
        },
        all_rounds=Spread.of(
            [each[BARE.name] / one["mean_s"] for each, one in zip(rounds, ours, strict=True)]
        ),
        aims=dict(load.aims),
        first_round_s=Spread.of([one["first_round_s"] for one in ours]),
        whole_s=Spread.of([one["whole_s"] for one in ours]),
        load=os.getloadavg()[0],
    )


def _typical(name: str, seconds: Sequence[float]) -> float:
    """The median round but the first; the product does not print its first."""
    return statistics.median(seconds if name == PRODUCT else seconds[1:])
