"""Runs that are cut short: Ctrl-C, kill -9, a full disk. What was done is kept and can go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FINISHED = {"results.json", "report.html", "predictions.parquet", "model"}
STUDY = "study.toml"
DP = ('mode = "none"', 'mode = "dp"\ndelta = 1e-3\nepsilon = 5.0')


LONG = (
    DP,
    ("compare = []", 'compare = ["local", "federated_no_dp", "pooled"]'),
    ("rounds = 3", "rounds = 8"),
    ('name = "fedavg"', 'name = "fedavgm"\nmomentum = 0.5'),
    ("[evaluation]", '[aggregation]\nweights = "equal"\n[evaluation]'),
)
"""All arms, noise, and momentum at the server: everything that a checkpoint must carry."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, make_files: Any, warm: Any) -> Path:
    """The output of the long study, run without a break."""
    files = make_files(tmp_path_factory.mktemp("unbroken"))
    files.edit(STUDY, *LONG)
    done = warm("simulate", STUDY, cwd=files.folder)
    assert done.code == 0, done.err
    return Path(files.out)


def results(out: Path) -> dict[str, Any]:
    """`results.json` without wall times."""
    content = json.loads((out / "results.json").read_text())
    content.pop("timing")
    return dict(content)


def contents(out: Path) -> dict[str, bytes]:
    """Bytes of the model and the predictions."""
    paths = [out / "predictions.parquet", *sorted((out / "model").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def hidden(out: Path) -> list[str]:
    """Half-written files that nobody removed; the model's own list of files is none."""
    return [path.name for path in out.rglob(".*") if path.name != ".fedward"]


def test_ctrl_c_then_resume_is_as_if_nothing_had_happened(
    files: Any, unbroken: Path, warm: Any, stopped: Any
) -> None:
    files.edit(STUDY, *LONG)
    done = stopped(
        "simulate", STUDY, cwd=files.folder, arm="Federated", round_number=4, signal=signal.SIGINT
    )
    assert done.code == 130
    assert done.out == ""
    message = "stopped by Ctrl-C, every completed round is kept: give the same command again with"
    assert done.errors == [f"error: {message} --resume to continue"]
    assert FINISHED & {path.name for path in files.out.iterdir()} == set()
    assert hidden(files.out) == []
    assert list((files.out / "checkpoints" / "federated").glob("round-*.safetensors"))

    again = warm("simulate", STUDY, "--resume", cwd=files.folder)
    assert (again.code, again.errors) == (0, [])
    assert "Federated: round 1 of" not in again.err, "it began again instead of going on"
    assert results(files.out) == results(unbroken)
    assert contents(files.out) == contents(unbroken)


def test_kill_9_at_any_time_then_resume(
    files: Any, unbroken: Path, warm: Any, stopped: Any
) -> None:
    files.edit(STUDY, *LONG)
    draw = np.random.default_rng(5)
    options: list[str] = []
    for arm in ("Federated", "Federated without DP", "Pooled"):
        done = stopped(
            "simulate",
            STUDY,
            *options,
            cwd=files.folder,
            arm=arm,
            round_number=int(draw.integers(2, 8)),
            signal=signal.SIGKILL,
        )
        assert done.code == -signal.SIGKILL
        assert FINISHED & {path.name for path in files.out.iterdir()} == set()
        options = ["--resume"]
    # What a kill in the middle of a write would leave.
    (files.out / "checkpoints" / "pooled" / f".round-000003.safetensors.{'a' * 16}.partial").touch()
    (files.out / f".results.json.{'b' * 16}.partial").mkdir()
    assert warm("simulate", STUDY, "--resume", cwd=files.folder).code == 0
    assert results(files.out) == results(unbroken)
    assert contents(files.out) == contents(unbroken)
    assert hidden(files.out) == []


def test_a_torn_checkpoint_falls_back_to_the_one_before(files: Any, warm: Any) -> None:
    assert warm("simulate", STUDY, cwd=files.folder).code == 0
    before = results(files.out)
    newest = files.out / "checkpoints" / "federated" / "round-000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-20])
    assert warm("simulate", STUDY, "--resume", cwd=files.folder).code == 0
    assert results(files.out) == before


@pytest.mark.parametrize("limit", [1_100, 2_500, 8_000, 40_000])
def test_no_room_for_a_file(limit: int, files: Any, warm: Any) -> None:
    """Files may not grow beyond a limit: the first, a checkpoint, the model card, the report."""
    done = warm("simulate", STUDY, cwd=files.folder, file_limit=limit)
    assert_cannot_write(done)
    assert FINISHED & {path.name for path in files.out.iterdir()} == set()
    assert hidden(files.out) == []


def assert_cannot_write(done: Any) -> None:
    assert done.code == 10, done.err
    assert len(done.errors) == 1, done.err
    assert done.errors[0].startswith("error: cannot write ")
    assert ".partial" not in done.errors[0]


def test_a_full_disk_keeps_the_results_that_were_there(files: Any, warm: Any) -> None:
    assert warm("simulate", STUDY, cwd=files.folder).code == 0
    before, shown = results(files.out), contents(files.out)
    done = warm("simulate", STUDY, "--seed", "9", cwd=files.folder, file_limit=40_000)
    assert_cannot_write(done)
    assert "report.html" in done.errors[0]
    assert results(files.out) == before
    assert contents(files.out) == shown


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 kB; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a small disk (the same is tested with a file limit)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(files: Any, warm: Any, small_disk: Path) -> None:
    (small_disk / "others").write_bytes(bytes(40_000))
    done = warm("simulate", STUDY, "--out", small_disk / "OUT", cwd=files.folder)
    assert_cannot_write(done)
    assert "the disk is full, free some space" in done.errors[0]
    (small_disk / "others").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = warm("simulate", STUDY, "--out", small_disk / "OUT", "--resume", cwd=files.folder)
    assert again.code == 0, again.err


def test_standard_output_on_a_full_disk(files: Any) -> None:
    fedward = Path(sys.executable).with_name("fedward")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [fedward, "study", "show", STUDY],
            cwd=files.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 10
    assert done.stderr.splitlines() == [
        "error: cannot write the output: the disk is full, free some space and try again"
    ]


# The output folder.


def test_resume_without_a_run(files: Any, warm: Any) -> None:
    done = warm("simulate", STUDY, "--resume", cwd=files.folder)
    assert done.code == 10
    assert done.errors == [
        "error: there is nothing to continue in OUT: check --out, or start without --resume"
    ]
    assert not files.out.exists()


@pytest.mark.parametrize("what", ["seed", "study"])
def test_resume_of_another_run_touches_nothing(what: str, files: Any, warm: Any) -> None:
    assert warm("simulate", STUDY, cwd=files.folder).code == 0
    before = {p: p.read_bytes() for p in files.out.rglob("*") if p.is_file()}
    if what == "study":
        files.edit(STUDY, ("learning_rate = 0.5", "learning_rate = 0.25"))
    options = ["--seed", "5"] if what == "seed" else []
    done = warm("simulate", STUDY, "--resume", *options, cwd=files.folder)
    assert (done.code, len(done.errors)) == (3, 1)
    assert "OUT holds a run of another study or seed" in done.errors[0]
    assert {p: p.read_bytes() for p in files.out.rglob("*") if p.is_file()} == before


def test_wrong_data_do_not_cost_the_run_before(files: Any, warm: Any) -> None:
    assert warm("simulate", STUDY, cwd=files.folder).code == 0
    before = {p: p.read_bytes() for p in files.out.rglob("*") if p.is_file()}
    files.edit("south.csv", (",M,", ",X,"))
    assert warm("simulate", STUDY, cwd=files.folder).code == 5
    assert {p: p.read_bytes() for p in files.out.rglob("*") if p.is_file()} == before


def test_out_is_a_file(files: Any, warm: Any) -> None:
    files.out.write_text("mine")
    done = warm("simulate", STUDY, cwd=files.folder)
    assert (done.code, files.out.read_text()) == (10, "mine")
    assert done.errors == ["error: OUT is a file, not a folder: choose another --out"]
    done = warm("simulate", STUDY, "--out", "OUT/deeper", cwd=files.folder)
    assert (done.code, len(done.errors)) == (10, 1)
    assert "is a file, not a folder" in done.errors[0]


def test_a_model_folder_of_others_is_left_alone(files: Any, warm: Any) -> None:
    (files.out / "model").mkdir(parents=True)
    (files.out / "model" / "thesis.txt").write_text("mine")
    done = warm("simulate", STUDY, cwd=files.folder)
    assert (done.code, len(done.errors)) == (10, 1)
    assert "fedward did not make" in done.errors[0]
    assert [path.name for path in files.out.rglob("*")] == ["model", "thesis.txt"]


def test_out_may_not_be_written(files: Any, warm: Any) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    files.out.mkdir(mode=0o500)
    done = warm("simulate", STUDY, cwd=files.folder)
    assert (done.code, len(done.errors)) == (10, 1)
    assert "may not be written to by this user" in done.errors[0]
