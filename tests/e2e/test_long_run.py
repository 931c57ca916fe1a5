"""Thousands of rounds of the service as it runs: it is no larger at the end than after the first.

Nobody trains, so a round takes a twentieth of a second; all else is the product: the link, the
conductor, checkpoints, registry, audit log. What other processes do besides, and what happens to
the service in a day and a half, is looked at by `test_soak`, over fewer rounds.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedward.server.registry import Registry

from .growth import growth, resident_bytes, with_leak

pytestmark = pytest.mark.slow

WARM_UP = 300
"""Rounds in which bounded caches fill."""
MOST = 3000
LEAST = 600
"""Rounds after those: as many as there is time for, and no fewer."""
WITHIN_S = 90.0
"""Looked at no longer, unless there were too few."""
LONGEST_S = 600.0


def watch(consortium: Any, pids: list[int]) -> tuple[list[float], list[list[float]]]:
    """Rounds and resident bytes of each process, some times a second."""
    rounds: list[float] = []
    resident: list[list[float]] = [[] for _ in pids]
    begun = time.monotonic()
    with Registry.open(consortium.folder.database) as registry:
        while True:
            runs, passed_s = registry.runs(), time.monotonic() - begun
            done = runs[0].round - WARM_UP if runs else 0
            assert not runs or runs[0].state.active, runs[0].reason
            if done >= MOST or (done >= LEAST and passed_s > WITHIN_S):
                return rounds, resident
            assert passed_s < LONGEST_S, f"{done} rounds are too few to tell"
            if done >= 0 and (not rounds or done > rounds[-1]):
                rounds.append(done)
                for found, pid in zip(resident, pids, strict=True):
                    found.append(resident_bytes(pid))
            time.sleep(0.2)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[list[float]]]:
    """Of the service, and of the process with both sites' links."""
    before = [*sys.path]  # the benchmark finds its own parts there
    try:
        path = Path(__file__).resolve().parents[2] / "benchmarks" / "link.py"
        bench = runpy.run_path(str(path))
    finally:
        sys.path[:] = before
    names = ["north", "south"]
    consortium = bench["BenchConsortium"](
        tmp_path_factory.mktemp("long"), names, width=4, rounds=100_000
    )
    with consortium.served() as server, consortium.attended([names]) as sites:
        consortium.wait_until_connected()
        consortium.approve()
        return watch(consortium, [server.pid, sites[0].pid])


@pytest.mark.parametrize("process", [0, 1], ids=["server", "sites"])
def test_memory_does_not_grow(grown: tuple[list[float], list[list[float]]], process: int) -> None:
    rounds, resident = grown[0], grown[1][process]
    found, leaking = growth(rounds, resident), with_leak(rounds, resident)
    sys.stdout.write(f"\n{found} over {rounds[-1]:.0f} rounds, {resident[-1] / 1e6:.0f} MB\n")
    assert not found.leaks, found
    assert leaking.leaks, f"too much noise to see a leak: {leaking}"
