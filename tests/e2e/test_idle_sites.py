"""200 hospitals that are connected and have nothing to do cost the server next to nothing.

The server is `fedward server run`; the hospitals are links of the product, each with a key, a
certificate and a connection of its own, in one other process.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SITES = 200
WATCHED_S = 20.0
SHARE = 0.05
"""Of a core of usual speed: a slow machine is no reason to fail, nor a fast one to pass."""
PEAK_MB = 400.0


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `benchmarks/link.py` is made of."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # it finds its own parts there
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "link.py"))


def test_idle_sites_cost_little(benchmark: dict[str, Any]) -> None:
    figures = benchmark["idle"](SITES, seconds=WATCHED_S)
    assert figures["connected"] == SITES  # at the end, too
    assert figures["usual_share"] < SHARE
    assert figures["peak_mb"] < PEAK_MB


def test_a_busy_process_is_seen_to_be_busy(benchmark: dict[str, Any]) -> None:
    """What measures idle sites would notice if they were not."""
    held = "x = bytearray(300 << 20); print(flush=True)\nwhile True: pass"
    child = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        measured, begun = benchmark["Measured"](child.pid), time.monotonic()
        before = measured.cpu_s
        while (used_s := measured.cpu_s - before) < 0.5 and time.monotonic() - begun < 60:
            time.sleep(0.05)
        assert used_s / (time.monotonic() - begun) > SHARE
        assert measured.peak_mb > 300
    finally:
        child.kill()
        child.communicate()
