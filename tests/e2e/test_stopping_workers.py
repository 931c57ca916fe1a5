"""Ctrl-C and kill -9 while worker processes train: none is left, and the run goes on from there."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import FEDWARD, PROGRESS, _environment
from tests.e2e.test_stopping import LONG, STUDY, contents, results

from fedward.simulations.engines.pool import can_fork

WAIT_S = 180.0
COMMAND = [FEDWARD, "simulate", STUDY, "--engine", "pool"]
pytestmark = pytest.mark.skipif(
    not can_fork() or len(os.sched_getaffinity(0)) < 2, reason="needs workers"
)


def children(process: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def stop(folder: Path, number: signal.Signals) -> tuple[int, list[str]]:
    """Send a signal when round 4 is reported, as a terminal does; wait for all that there was.

    Returns:
        Exit code, and what was written to standard error that is no progress.
    """
    with subprocess.Popen(
        COMMAND,
        cwd=folder,
        env=_environment(None),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        workers: list[int] = []
        for line in process.stderr:
            match = PROGRESS.match(line)
            if match is None:
                lines.append(line)
            elif line.startswith("Federated:") and int(match[1]) == 4:
                workers = [os.pidfd_open(worker) for worker in children(process.pid)]
                if number == signal.SIGINT:
                    os.killpg(process.pid, number)  # Ctrl-C reaches the workers, too
                else:
                    process.send_signal(number)
        code = process.wait(WAIT_S)
    assert workers, "nothing was computed by workers"
    try:
        for worker in workers:
            assert select.select([worker], [], [], WAIT_S)[0], "a worker is left"
    finally:
        for worker in workers:
            os.close(worker)
    return code, [line.strip() for line in lines]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_run_which_can_go_on(
    number: signal.Signals, files: Any, make_files: Any, tmp_path: Path, warm: Any
) -> None:
    (tmp_path / "unbroken").mkdir()
    unbroken = make_files(tmp_path / "unbroken")
    for made in (files, unbroken):
        made.edit(STUDY, *LONG)
    code, lines = stop(files.folder, number)
    if number == signal.SIGINT:
        assert code == 130
        assert len(lines) == 1
        assert lines[0].startswith("error: stopped by Ctrl-C, every completed round is kept")
    else:
        assert (code, lines) == (-signal.SIGKILL, [])
    done = warm("simulate", STUDY, "--engine", "pool", "--resume", cwd=files.folder)
    assert (done.code, done.errors) == (0, [])
    if number == signal.SIGINT:  # a kill costs what was computed since the last checkpoint
        assert "Federated: round 1 of" not in done.err
    done = warm("simulate", STUDY, "--engine", "pool", cwd=unbroken.folder)
    assert done.code == 0
    assert results(files.out) == results(unbroken.out)
    assert contents(files.out) == contents(unbroken.out)
