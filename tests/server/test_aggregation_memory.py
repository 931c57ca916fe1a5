"""The server's memory does not grow with the number of sites, and holds no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fedward.common.study import canonical_json
from fedward.simulations.fakes import small_study

CHILD = Path(__file__).with_name("memory_child.py")
LIMIT_MB = 350


def measure(algorithm: dict[str, Any], sites: int, folder: Path) -> dict[str, Any]:
    study = small_study(algorithm=algorithm, training={"rounds": 3}, evaluation={"every": 1})
    (folder / "study.json").write_text(canonical_json(study))
    with tempfile.TemporaryDirectory(dir=folder) as work:  # half a gigabyte, gone at once
        done = subprocess.run(
            [sys.executable, CHILD, folder / "study.json", work, str(sites)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["participants"] == [sites] * 3
    assert found["weight"] != 0.0
    assert not found["torch"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedmedian", "fedadam"])
def test_sixteen_sites_take_as_much_as_four(name: str, tmp_path: Path) -> None:
    rate = {"fedadam": {"server_learning_rate": 0.1}, "fedprox": {"mu": 0.1}}
    algorithm = {"name": name, **rate.get(name, {})}
    four, sixteen = (measure(algorithm, sites, tmp_path) for sites in (4, 16))
    assert four["peak_mb"] <= LIMIT_MB
    assert sixteen["peak_mb"] <= LIMIT_MB
    assert abs(sixteen["peak_mb"] - four["peak_mb"]) <= 0.2 * four["peak_mb"]
