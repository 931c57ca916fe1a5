"""The benchmark of the link still runs: its sites are not the product's, and can fall behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 300


@pytest.mark.slow
def test_a_round_that_trains_nothing_is_timed(tmp_path: Path) -> None:
    found = tmp_path / "link.json"
    case = ["--case", "100 kB", "4", "--json", str(found)]
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "link.py"), *case],
        check=True,
        cwd=ROOT,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        timeout=LIMIT_S,
    )
    assert json.loads(found.read_text())
