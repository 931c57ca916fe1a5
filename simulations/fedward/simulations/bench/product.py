"""One run of the product on a workload's folder, in a process of its own: prints JSON.

    python -m fedward.simulations.bench.product FOLDER ENGINE [STARTED]

STARTED is the clock (`time.monotonic`) at which the process was asked for.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import cast

_STARTED = time.monotonic()
from fedward.simulations.engines.choice import EngineName  # noqa: E402
from fedward.simulations.simulate import Simulation  # noqa: E402


class Clock:
    """Notes when each round was over."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        """See `simulate.Listener`."""
        del arm, round_number, metric
        self.at.append(time.monotonic())


def main() -> None:
    """Run a workload's study as `fedward simulate` does."""
    folder, engine = Path(sys.argv[1]), cast("EngineName", sys.argv[2])
    called = float(sys.argv[3]) if len(sys.argv) > 3 else _STARTED
    imported, clock = time.monotonic(), Clock()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        simulation = Simulation.of(folder / "study.toml", Path(out), engine=engine)
        results = simulation.run(clock)
    ended = time.monotonic()
    rounds = results.timing.rounds["federated"]
    found = {
        "seconds": [after - before for before, after in pairwise(clock.at)],
        "all_rounds_s": rounds,
        "mean_s": rounds / len(clock.at),
        "import_s": imported - called,
        "first_round_s": clock.at[0] - called,
        "whole_s": ended - called,
        "accuracy": results.metrics["federated"]["overall"]["accuracy"].value,
        "engine": results.engine.name,
        "why": results.engine.why,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
