"""`fedward bench` as a process: small workloads, the files it writes, the comparison, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    """A tabular and a private picture workload, then one of them against what was found."""

    def bench(*arguments: str) -> Any:
        return fedward("bench", *arguments, *SMALL, cwd=tmp_path, timeout_s=1800.0)

    done = bench("--only", "W1", "--only", "W4", "--json", "first.json")
    assert done.code == 0, done.err
    assert done.errors == [
        f"{name}, turn 1 of 1: {program}"
        for name in ("W1", "W4")
        for program in ("bare PyTorch loop", "fedward")
    ]
    assert "Page: BENCH/bench.html" in done.out
    assert (tmp_path / "BENCH" / "bench.html").read_text().startswith("<!doctype html>")
    first = json.loads((tmp_path / "first.json").read_text())
    assert first == json.loads((tmp_path / "BENCH" / "bench.json").read_text())
    w1, w4 = first["measured"]
    assert (w1["task"]["sites"], w1["task"]["rounds"], w4["task"]["private"]) == (3, 2, True)
    for one in (w1, w4):
        rounds = [one["programs"][name]["round_s"]["median"] for name in ("bare", "fedward")]
        assert one["ratios"]["bare"]["median"] == pytest.approx(rounds[0] / rounds[1])

    # Whatever this machine does meanwhile, no ratio changes a thousandfold.
    for factor, code in ((1e3, 17), (1e-3, 0)):
        ratio = {key: factor * value for key, value in w1["ratios"]["bare"].items()}
        earlier = {**first, "measured": [{**w1, "ratios": {"bare": ratio}}]}
        (tmp_path / "earlier.json").write_text(json.dumps(earlier))
        again = bench("--only", "W1", "--baseline", "earlier.json")
        assert again.code == code, again.err
        assert ("W1: " in again.errors[-1]) == (code == 17)
