"""What reads bytes from others survives coverage-guided fuzzing; `make fuzz` does it for longer."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_survives(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(SECONDS)]
    result = subprocess.run(
        [*command, "--findings", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS * 3 + 120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "number_of_executed_units" in result.stderr + result.stdout
    assert list(tmp_path.iterdir()) == []
