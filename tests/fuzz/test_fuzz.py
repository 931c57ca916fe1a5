"""What reads bytes from others survives coverage-guided fuzzing; `make fuzz` does it for longer."""

from __future__ import annotations

import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS, corpus, survives

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("FEDWARD_FUZZ_S", "6"))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_valid_input_is_accepted(name: str) -> None:
    """A fuzzer that starts from something refused at the door would see only the door."""
    if name in ("small", "audit", "public_key"):
        return  # several formats in one, or found quickly
    TARGETS[name](corpus(name)[0])


def test_a_defect_is_seen() -> None:
    def broken(data: bytes) -> None:
        data.decode("ascii")

    with pytest.raises(UnicodeDecodeError):
        survives(broken, b"\xff")


def run_apart(command: Sequence[str], *, within_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command whose peak memory is its own; it and all that it started end with this call.

    The memory of the process that starts another counts as the other's peak, and pytest's may be
    beyond libFuzzer's limit by then. A shell in between takes that upon itself: it is small, and
    forks, so that what it starts begins with nothing.
    """
    with subprocess.Popen(
        ["/bin/sh", "-c", '"$@"; exit "$?"', "sh", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=within_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_the_memory_of_who_starts_the_fuzzer_does_not_count() -> None:
    print_peak = "import resource as r; print(r.getrusage(r.RUSAGE_SELF).ru_maxrss)"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run_apart([sys.executable, "-c", print_peak], within_s=60)
    assert int(result.stdout) < own / 2


def test_a_fuzzer_that_hangs_is_ended(tmp_path: Path) -> None:
    """Whoever is left would hold the pipe open."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        hang = ["/bin/sh", "-c", 'exec 3> "$0"; echo begun >&3; exec sleep 600', str(pipe)]
        for within_s in (1, 10, 100):
            with pytest.raises(subprocess.TimeoutExpired):
                run_apart(hang, within_s=within_s)
            if begun := os.read(reader, 100):  # else this machine is too busy for so short a time
                break
        assert begun == b"begun\n"
        os.set_blocking(reader, True)
        assert select.select([reader], [], [], 60)[0]
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_survives(name: str, tmp_path: Path) -> None:
    (findings := tmp_path / "findings").mkdir()
    command = [sys.executable, "-m", "tests.fuzz.run", name]
    command += ["--corpus", str(tmp_path / "corpus"), "--findings", str(findings)]
    end = time.monotonic() + SECONDS
    while (left_s := math.ceil(end - time.monotonic())) > 0:
        result = run_apart([*command, "--seconds", str(left_s)], within_s=left_s * 3 + 120)
        assert result.returncode == 0, result.stderr[-2000:]
        assert "number_of_executed_units" in result.stderr + result.stdout
        assert list(findings.iterdir()) == []
