"""What a round costs when nobody trains: `python benchmarks/link.py`.

The server is the product itself, `fedward server run`, in a process of its own: link, conductor,
mailbox, the round loop with all its checks, the registry in SQLite, the signed audit log and a
checkpoint after every round, all on a real disk. A site is a process with the product's link, over
mutual TLS on loopback. It keeps its reply as durably as the product does and says how long its logs
are; instead of training it answers with the weights that it was sent.

Printed for each size and number of sites: median and largest seconds of a round, as the registry
has them; what bare grpcio takes (the same bytes down and up over mutual TLS, hashed once at each
end, and nothing else: `link_bare.py`) and how many times that a round is; processor seconds of
server and sites per round; the server's peak memory from its start to the release; and how busy the
machine was with other things when it began.

    python benchmarks/link.py                      the table
    python benchmarks/link.py --case "50 MB" 4     one row of it
    python benchmarks/link.py --idle 200           what idle connected sites cost
    python benchmarks/link.py --flower             Flower's own SuperLink beside it, a few minutes
    python benchmarks/link.py --json link.json     for other programs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import link_bare
import link_flower
from link_consortium import BenchConsortium, Measured, Processor

CASES = (
    ("100 kB", 4, 155, 201),
    ("50 MB", 4, 3532, 11),
    ("50 MB", 16, 3532, 7),
)
"""Name, sites, width of the two hidden layers, rounds. The last round evaluates, too."""
IDLE_S = 30.0
SETTLE_S = 3.0
LOOP_S = 0.009
"""What a core of usual speed takes to add up a million numbers in Python."""


__all__ = ["Measured", "idle", "measure"]


def measure(sites: int, *, width: int, rounds: int) -> dict[str, Any]:
    """Figures of one case, from fresh processes."""
    names = [f"site-{index}" for index in range(sites)]
    with tempfile.TemporaryDirectory() as place:
        consortium = BenchConsortium(Path(place), names, width=width, rounds=rounds)
        with consortium.served() as server, consortium.attended([[name] for name in names]) as ours:
            consortium.wait_until_connected()
            consortium.approve()
            at_ms, used_s = consortium.follow(Processor([server, *ours]))
            size, peak_mb = consortium.model_bytes(), server.peak_mb
    # The first round finds everything cold, the last one evaluates.
    seconds = [(after - before) / 1000 for before, after in pairwise(at_ms[1:-1])]
    return {
        "median_s": statistics.median(seconds),
        "largest_s": max(seconds),
        "rounds": len(seconds),
        "server_cpu_s": used_s[0] / rounds,
        "sites_cpu_s": sum(used_s[1:]) / rounds,
        "peak_mb": peak_mb,
        "bytes": size,
    }


def idle(sites: int, *, seconds: float = IDLE_S) -> dict[str, Any]:
    """What connected sites cost when nothing is done."""
    names = [f"site-{index}" for index in range(sites)]
    with tempfile.TemporaryDirectory() as place:
        consortium = BenchConsortium(Path(place), names, width=8, rounds=1)
        with consortium.served() as server, consortium.attended([names]):
            consortium.wait_until_connected()
            time.sleep(SETTLE_S)
            before, begun = server.cpu_s, time.monotonic()
            time.sleep(seconds)
            share = (server.cpu_s - before) / (time.monotonic() - begun)
            connected = consortium.connected()
            return {
                "sites": sites,
                "connected": connected,
                "cpu_share": share,
                "usual_share": share * LOOP_S / loop_s(),
                "peak_mb": server.peak_mb,
            }


def loop_s() -> float:
    """What this machine takes to add up a million numbers in Python, at best."""
    best = float("inf")
    for _ in range(20):
        begun = time.process_time()
        sum(range(1_000_000))
        best = min(best, time.process_time() - begun)
    return best


def table(cases: list[tuple[str, int, int, int]]) -> list[dict[str, Any]]:
    """Measure and print."""
    print(
        f"{'model':>8} {'sites':>6} {'median':>9} {'largest':>9} {'bare gRPC':>10} {'ratio':>6} "
        f"{'server CPU':>11} {'sites CPU':>10} {'peak':>7} {'load':>5}"
    )
    results: list[dict[str, Any]] = []
    for label, sites, width, rounds in cases:
        load = os.getloadavg()[0]
        figures = measure(sites, width=width, rounds=rounds)
        figures |= {"model": label, "sites": sites, "load": load}
        figures["bare_s"] = link_bare.seconds(sites, figures["bytes"])
        results.append(figures)
        print(
            f"{label:>8} {sites:>6} {1e3 * figures['median_s']:>6.0f} ms "
            f"{1e3 * figures['largest_s']:>6.0f} ms {1e3 * figures['bare_s']:>7.0f} ms "
            f"{figures['median_s'] / figures['bare_s']:>6.1f} "
            f"{1e3 * figures['server_cpu_s']:>8.0f} ms {1e3 * figures['sites_cpu_s']:>7.0f} ms "
            f"{figures['peak_mb']:>4.0f} MB {load:>5.1f}",
            flush=True,
        )
    return results


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs=2, metavar=("MODEL", "SITES"), help="one row only")
    parser.add_argument("--idle", type=int, metavar="SITES", help="measure idle sites instead")
    parser.add_argument("--flower", action="store_true", help="measure Flower's SuperLink too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    if chosen.idle:
        load = os.getloadavg()[0]
        figures = idle(chosen.idle)
        results = [{**figures, "load": load}]
        print(
            f"{chosen.idle} idle sites: {100 * figures['cpu_share']:.1f} % of a core, "
            f"{100 * figures['usual_share']:.1f} % of one of usual speed, "
            f"peak {figures['peak_mb']:.0f} MB, load {load:.1f}"
        )
    else:
        wanted = chosen.case and (chosen.case[0], int(chosen.case[1]))
        results = table([case for case in CASES if not wanted or case[:2] == wanted])
    if chosen.flower:
        results += link_flower.measure()
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
