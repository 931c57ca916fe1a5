"""`fedward simulate --sweep`: a grid of small studies, broken off, continued, and compared."""

from __future__ import annotations

import csv
import json
import os
import re
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import FEDWARD, _environment

STUDY = "study.toml"
SWEEP = ("--sweep", "algorithm=fedavg,fedmedian", "training.learning_rate=1", "--seeds", "2")
OUTPUTS = {"sweep.html", "sweep.json", "sweep.csv"}
WAIT_S = 180.0


def sweep(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "sweep.json").read_text()))


def lines(err: str) -> list[str]:
    """Standard error without the plan and the runs."""
    return [
        line
        for line in err.splitlines()
        if not line.startswith(("Sweep: ", "Run ", "  ")) and line.strip()
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, make_files: Any, warm: Any) -> Any:
    """The sweep of this file without a break, and what it printed."""
    files = make_files(tmp_path_factory.mktemp("unbroken"))
    files.edit(STUDY, ("rounds = 3", "rounds = 20"))
    done = warm("simulate", STUDY, *SWEEP, cwd=files.folder)
    assert done.code == 0, done.err
    return files, done


def test_a_sweep_says_what_it_does_and_what_came_of_it(unbroken: Any) -> None:
    files, done = unbroken
    assert "Sweep: 2 cells × 2 seeds = 4 runs" in done.err
    assert "  training.learning_rate: 1\n" in done.err
    assert "Run 4 of 4 finished: " in done.err
    assert lines(done.err) == []
    assert "AUROC" in done.out
    assert "inner" in done.out  # Winner, or No winner
    assert "Report: OUT/sweep.html" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert {path.name for path in files.out.iterdir()} >= OUTPUTS


def test_every_cell_is_a_simulation_and_the_means_are_those_of_its_runs(unbroken: Any) -> None:
    files, _ = unbroken
    found = sweep(files.out)
    assert [cell["name"] for cell in found["cells"]] == [
        "algorithm=fedavg, training.learning_rate=1",
        "algorithm=fedmedian, training.learning_rate=1",
    ]
    assert (found["design"], found["paired"], found["seeds"]) == ("other patients", True, [1, 2])
    for cell in found["cells"]:
        values = []
        for run in cell["runs"]:
            results = json.loads((files.out / run["folder"] / "results.json").read_text())
            assert results["seed"] == run["seed"]
            assert list(results["metrics"]) == ["federated"]
            assert results["engine"]["name"] != "pool", "workers would fight for processors"
            values.append(results["metrics"]["federated"]["overall"]["auroc"]["value"])
        assert cell["metrics"]["auroc"]["value"] == pytest.approx(sum(values) / 2)
    assert found["verdict"]["winner"] is None
    rows = list(csv.DictReader((files.out / "sweep.csv").read_text().splitlines()))
    assert {row["algorithm"] for row in rows} == {"fedavg", "fedmedian"}


def stop(folder: Path, number: signal.Signals) -> tuple[int, list[str]]:
    """Run the sweep, and send a signal when the first run has ended; wait for all processes."""
    with subprocess.Popen(
        [FEDWARD, "simulate", STUDY, *SWEEP, "--jobs", "2"],
        cwd=folder,
        env=_environment(None),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        found: list[str] = []
        runs: list[int] = []
        for line in process.stderr:
            found.append(line)
            if line.startswith("Run 1 of 4 finished"):
                listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                runs = [os.pidfd_open(int(word)) for word in listed.split()]
                process.send_signal(number)
        code = process.wait(WAIT_S)
    assert runs
    try:
        for run in runs:
            assert select.select([run], [], [], WAIT_S)[0], "a run goes on"
    finally:
        for run in runs:
            os.close(run)
    return code, lines("".join(found))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_broken_off_and_resumed_is_as_if_nothing_had_happened(
    number: signal.Signals, unbroken: Any, files: Any, warm: Any
) -> None:
    files.edit(STUDY, ("rounds = 3", "rounds = 20"))
    code, said = stop(files.folder, number)
    if number == signal.SIGINT:
        assert code == 130
        assert len(said) == 1
        assert "every completed round of the others are kept: give the same command" in said[0]
    else:
        assert (code, said) == (-signal.SIGKILL, [])
    assert not OUTPUTS & {path.name for path in files.out.iterdir()}
    finished = {path: path.stat().st_mtime_ns for path in files.out.rglob("results.json")}
    assert 1 <= len(finished) < 4
    done = warm("simulate", STUDY, *SWEEP, "--resume", cwd=files.folder)
    assert (done.code, lines(done.err)) == (0, [])
    assert f"{len(finished)} of 4 runs finished before" in done.err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for name in OUTPUTS:
        assert (files.out / name).read_bytes() == (unbroken[0].out / name).read_bytes(), name


def test_a_finished_sweep_is_continued_by_nothing(unbroken: Any, warm: Any) -> None:
    files, _ = unbroken
    before = (files.out / "sweep.json").read_bytes()
    done = warm("simulate", STUDY, *SWEEP, "--resume", "--json", cwd=files.folder)
    assert done.code == 0
    assert json.loads(done.out) == json.loads(before)
    assert "Run " not in done.err
    assert (files.out / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (SWEEP, 10, "OUT holds a sweep already: continue it with --resume"),
        (("--sweep", "training.learning_rate=0.01,1", "--resume"), 3, "a sweep of another grid"),
        ((*SWEEP[:-1], "3", "--resume"), 3, "a sweep of other seeds"),
        ((*SWEEP, "--seed", "4"), 2, "give --seeds instead"),
        (("--jobs", "2"), 2, "it is for --sweep"),
        (("--sweep", "algorithm"), 2, "not key=value"),
        (("--sweep", "training.rouns=1"), 3, "unknown key training.rouns: did you mean rounds?"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_touched(
    options: tuple[str, ...], code: int, message: str, unbroken: Any, warm: Any
) -> None:
    files, _ = unbroken
    before = {p: p.stat().st_mtime_ns for p in files.out.rglob("*")}
    done = warm("simulate", STUDY, *options, cwd=files.folder)
    assert done.code == code
    assert message in " ".join(done.err.split())
    assert {p: p.stat().st_mtime_ns for p in files.out.rglob("*")} == before


def test_another_study_is_not_continued(files: Any, warm: Any) -> None:
    one = ("--sweep", "training.learning_rate=0.01,1")
    assert warm("simulate", STUDY, *one, cwd=files.folder).code == 0
    files.edit(STUDY, ("batch_size = 8", "batch_size = 9"))
    done = warm("simulate", STUDY, *one, "--resume", cwd=files.folder)
    assert (done.code, lines(done.err)[0].startswith("error: OUT holds a sweep of another")) == (
        3, True,
    )  # fmt: skip


def test_a_cell_that_fails_is_reported_and_costs_no_other(files: Any, warm: Any) -> None:
    done = warm("simulate", STUDY, "--sweep", "aggregation.min_sites=1,2,3", cwd=files.folder)
    assert done.code == 0, done.err
    assert re.search(r"Run \d of 3 failed: aggregation\.min_sites=3, seed 1", done.err)
    bad = sweep(files.out)["cells"][2]
    assert bad["runs"][0]["failed"]
    assert bad["metrics"] == {}
    assert bad["runs"][0]["failed"] in " ".join(done.out.split())
    assert bad["runs"][0]["failed"] in (files.out / "sweep.html").read_text()
    assert sweep(files.out)["verdict"]["differences"].keys() == {"aggregation.min_sites=2"}


def test_if_all_fail_the_first_one_s_code_is_the_command_s(files: Any, warm: Any) -> None:
    done = warm("simulate", STUDY, "--sweep", "aggregation.min_sites=3,4", cwd=files.folder)
    assert done.code == 8
    assert lines(done.err)[0].startswith("error: no run finished; the first one: ")
    assert sweep(files.out)["verdict"] is None


def test_data_that_changed_between_runs_are_noticed(files: Any, warm: Any) -> None:
    options = ("--sweep", "training.learning_rate=0.01,1")
    assert warm("simulate", STUDY, *options, cwd=files.folder).code == 0
    (files.out / "cells" / "training.learning_rate=1" / "seed-1" / "results.json").unlink()
    files.edit("south.csv", (",M,", ",F,"))
    done = warm("simulate", STUDY, *options, "--resume", cwd=files.folder)
    assert done.code == 0, done.err
    assert "the data of site south changed since the run began" in " ".join(done.out.split())
    checkpoints = files.out / "cells" / "training.learning_rate=1" / "seed-1" / "checkpoints"
    (checkpoints / "simulation.sha256").unlink()  # as if it had not begun
    done = warm("simulate", STUDY, *options, "--resume", cwd=files.folder)
    assert (done.code, lines(done.err)) == (
        5,
        [
            "error: the data changed between two runs with seed 1: sweep again, into another --out",
        ],
    )
