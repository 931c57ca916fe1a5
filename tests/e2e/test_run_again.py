"""Running into a folder that holds a run already, or is just being written to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STUDY = "study.toml"
DP = ('mode = "none"', 'mode = "dp"\ndelta = 1e-3\nepsilon = 5.0')
TOO_LARGE = ("batch_size = 8", "batch_size = 59")


def contents(out: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_second_run_at_the_same_time_is_refused(files: Any, warm: Any) -> None:
    """The first is halted in the middle of a round, then goes on to the results of a lone run."""
    files.edit(STUDY, ("rounds = 3", "rounds = 60"))
    assert warm("simulate", STUDY, "--out", "ALONE", cwd=files.folder).code == 0
    process = subprocess.Popen(
        [Path(sys.executable).with_name("fedward"), "simulate", STUDY],
        cwd=files.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert "round 1 of" in process.stderr.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            refused = [
                warm("simulate", STUDY, *option, cwd=files.folder) for option in ([], ["--resume"])
            ]
        finally:
            process.send_signal(signal.SIGCONT)
        process.communicate(timeout=300)
    assert process.returncode == 0
    problem = "another run is writing to OUT: wait for its end, or choose another --out"
    for done in refused:
        assert (done.code, done.errors) == (10, [f"error: {problem}"])
    for path in ("predictions.parquet", "model"):
        ours, alone = files.out / path, files.folder / "ALONE" / path
        names = [p.name for p in alone.iterdir()] if alone.is_dir() else [""]
        for name in names:
            assert (ours / name).read_bytes() == (alone / name).read_bytes()


def test_changed_data_are_not_continued(files: Any, warm: Any) -> None:
    assert warm("simulate", STUDY, cwd=files.folder).code == 0
    before = contents(files.out)
    original = (files.folder / "south.csv").read_text()
    files.rows("south", lambda cells: ",".join([cells[0], "33", *cells[2:]]))
    done = warm("simulate", STUDY, "--resume", cwd=files.folder)
    assert (done.code, len(done.errors)) == (5, 1)
    assert "error: the data of site south changed since the run began: " in done.errors[0]
    assert contents(files.out) == before
    # The same data under another path and name of file are the same data.
    (files.folder / "moved").mkdir()
    (files.folder / "moved" / "s.csv").write_text(original)
    files.edit("south.toml", ("south.csv", "moved/s.csv"))
    assert warm("simulate", STUDY, "--resume", cwd=files.folder).code == 0


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_promise_that_cannot_be_kept_costs_nothing(
    options: list[str], files: Any, warm: Any
) -> None:
    files.edit(STUDY, DP)
    assert warm("simulate", STUDY, cwd=files.folder).code == 0
    before = contents(files.out)
    files.edit(STUDY, TOO_LARGE)
    done = warm("simulate", STUDY, *options, cwd=files.folder)
    assert (done.code, len(done.errors)) == (3 if options else 6, 1)
    assert contents(files.out) == before


def test_a_promise_that_cannot_be_kept_leaves_no_folder(files: Any, warm: Any) -> None:
    files.edit(STUDY, DP, TOO_LARGE)
    done = warm("simulate", STUDY, "--out", "runs/first", cwd=files.folder)
    assert (done.code, len(done.errors)) == (6, 1)
    assert "2 of 2 sites cannot keep the privacy promise (north, south); " in done.errors[0]
    assert "take a smaller batch_size" in done.errors[0]
    assert not (files.folder / "runs").exists()


def test_wrong_data_leave_no_folder(files: Any, warm: Any) -> None:
    files.edit("south.csv", (",M,", ",X,"))
    assert warm("simulate", STUDY, cwd=files.folder).code == 5
    assert not files.out.exists()


def test_the_template_runs_on_four_small_hospitals(files: Any, warm: Any) -> None:
    """The study as `study new` writes it, over 400 patients divided as it says."""
    assert warm("study", "new", "--modality", "tabular", "small.toml", cwd=files.folder).code == 0
    draw = np.random.default_rng(0)
    lines = ["patient_id,age,creatinine,smoking,diabetes,died"]
    for i in range(400):
        age, sick = draw.integers(20, 95), draw.random() < 0.4
        smoking = draw.choice(["never", "former", "current"])
        died = draw.random() < 1 / (1 + np.exp(-(age - 60) / 10))
        lines.append(
            f"p{i},{age},{draw.uniform(0.5, 3):.2f},{smoking},{'yes' if sick else 'no'},"
            f"{'yes' if died else 'no'}"
        )
    (files.folder / "all.csv").write_text("\n".join(lines) + "\n")
    text = (files.folder / "south.toml").read_text()
    (files.folder / "site.toml").write_text(text.replace("south.csv", "all.csv"))
    done = warm("simulate", "small.toml", cwd=files.folder)
    assert done.code == 0, done.err
