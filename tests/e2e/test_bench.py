"""`fedward bench` as a process: small workloads, the files it writes, the comparison, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--sites", "3", "--rounds", "2", "--repeats", "1", "--no-peers")


def test_unknown_workloads_are_refused_before_anything_runs(warm: Any) -> None:
    done = warm("bench", "--only", "W9")
    assert done.code == 2
    assert "W9 is no workload: choose from W1, W2, W3, W4, W5" in done.err


def test_a_bad_baseline_is_refused_before_anything_runs(warm: Any, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    done = warm("bench", "--baseline", "old.json", cwd=tmp_path)
    assert done.code == 15
    assert done.err.count("\n") == 1
    assert "old.json is not the JSON of a `fedward bench`" in done.err


def test_other_peoples_folders_are_refused_before_anything_runs(warm: Any, tmp_path: Path) -> None:
    (tmp_path / "BENCH").mkdir()
    (tmp_path / "BENCH" / "thesis.txt").write_text("mine")
    done = warm("bench", cwd=tmp_path)
    assert done.code == 10
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_small_workloads_end_to_end(fedward: Any, tmp_path: Path) -> None:
    """A tabular and a private picture workload, then against themselves made faster."""
    which = ("--only", "W1", "--only", "W4", *SMALL)
    done = fedward("bench", *which, "--json", "first.json", cwd=tmp_path)
    assert (done.code, done.errors) == (
        0,
        [
            f"{name}, turn 1 of 1: {program}"
            for name in ("W1", "W4")
            for program in ("bare PyTorch loop", "fedward")
        ],
    )
    assert "Page: BENCH/bench.html" in done.out
    assert (tmp_path / "BENCH" / "bench.html").read_text().startswith("<!doctype html>")
    first = json.loads((tmp_path / "first.json").read_text())
    assert first == json.loads((tmp_path / "BENCH" / "bench.json").read_text())
    w1, w4 = first["measured"]
    assert (w1["task"]["sites"], w1["task"]["rounds"], w4["task"]["private"]) == (3, 2, True)
    for one in (w1, w4):
        ratio = one["programs"]["bare"]["round_s"]["median"]
        ratio /= one["programs"]["fedward"]["round_s"]["median"]
        assert one["ratios"]["bare"]["median"] == pytest.approx(ratio)
    # Whatever this machine does meanwhile, nothing is a thousand times as fast as before.
    for one in first["measured"]:
        one["ratios"]["bare"] = {key: 1e3 * v for key, v in one["ratios"]["bare"].items()}
    (tmp_path / "faster.json").write_text(json.dumps(first))
    again = fedward("bench", *which, "--baseline", "faster.json", cwd=tmp_path)
    assert again.code == 17
    assert "W1: " in again.errors[-1]
    assert "W4: " in again.errors[-1]
    # And compared with a thousandth it is fast enough.
    for one in first["measured"]:
        one["ratios"]["bare"] = {key: 1e-6 * v for key, v in one["ratios"]["bare"].items()}
    (tmp_path / "slower.json").write_text(json.dumps(first))
    last = fedward("bench", *which, "--baseline", "slower.json", cwd=tmp_path)
    assert last.code == 0
