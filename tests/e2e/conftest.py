"""What end-to-end tests share: `fedward` as a process, and small studies with data on disk."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

QUIET = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "COLUMNS": "80",
}
PROGRESS = re.compile(r"[\w ]+: round (\d+) of \d+")
FEDWARD = Path(sys.executable).with_name("fedward")


@dataclass(frozen=True)
class Done:
    """A command that has ended: exit code, standard output and error, peak memory."""

    code: int
    out: str
    err: str
    peak_mb: float = 0.0

    @property
    def errors(self) -> list[str]:
        """Lines on standard error that are no progress."""
        return [line for line in self.err.splitlines() if not PROGRESS.match(line)]


class Run(Protocol):
    """Run `fedward` with arguments and wait for its end."""

    def __call__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        file_limit: int | None = None,
        timeout_s: float = 300.0,
    ) -> Done: ...


def _environment(env: dict[str, str] | None) -> dict[str, str]:
    return {**os.environ, **QUIET, **(env or {})}


@pytest.fixture(scope="session")
def fedward() -> Run:
    """The installed command, in a fresh process."""

    def run(
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        file_limit: int | None = None,
        timeout_s: float = 300.0,
    ) -> Done:
        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        done = subprocess.run(
            [FEDWARD, *map(str, arguments)],
            cwd=cwd,
            env=_environment(env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            preexec_fn=limit,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


class Stop(Protocol):
    """Run `fedward simulate`, and send it a signal when it reports a round."""

    def __call__(
        self, *arguments: object, cwd: Path, arm: str, round_number: int, signal: signal.Signals
    ) -> Done: ...


@pytest.fixture(scope="session")
def stopped() -> Stop:
    """See `Stop`. The line of a round is printed before its checkpoint is written."""

    def run(
        *arguments: object, cwd: Path, arm: str, round_number: int, signal: signal.Signals
    ) -> Done:
        process = subprocess.Popen(
            [FEDWARD, *map(str, arguments)],
            cwd=cwd,
            env=_environment(None),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        lines = []
        with process:
            for line in process.stderr:
                lines.append(line)
                match = PROGRESS.match(line)
                if line.startswith(f"{arm}:") and match and int(match[1]) == round_number:
                    process.send_signal(signal)
            out, _ = process.communicate(timeout=300)
        return Done(process.returncode, out, "".join(lines))

    return run


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The command in a process forked from one that has imported everything: see fork_server.py."""
    folder = tmp_path_factory.mktemp("warm")
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(None),
    )
    assert server.stdin is not None
    assert server.stdout is not None
    requests, answers = server.stdin, server.stdout
    assert answers.readline() == "ready\n"

    def run(
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        file_limit: int | None = None,
        timeout_s: float = 300.0,
    ) -> Done:
        del timeout_s  # the whole test session has a limit; a hanging command would show there
        out, err = folder / "out", folder / "err"
        request = {
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd or folder),
            "env": {**QUIET, **(env or {})},
            "out": str(out),
            "err": str(err),
            "file_limit": file_limit,
        }
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        answer = json.loads(answers.readline())
        return Done(answer["code"], out.read_text(), err.read_text(), answer["peak_kb"] / 1024)

    yield run
    requests.close()
    server.wait(timeout=60)
    answers.close()


STUDY = """
[study]
name = "small"
title = "A small study"
purpose = "Try fedward out"
contact = "nobody@example.org"

[task]
kind = "binary"
target = "died"
labels = ["no", "yes"]

[data]
modality = "tabular"

[[data.features]]
name = "age"
unit = "years"
min = 0.0
max = 110.0

[[data.features]]
name = "sex"
type = "categorical"
categories = ["F", "M"]

[preprocess]
standardise = "bounds"

[model]
name = "logistic"

[training]
rounds = 3
local_steps = 5
batch_size = 8
learning_rate = 0.5
seed = 1

[algorithm]
name = "fedavg"

[privacy]
mode = "none"

[evaluation]
bootstrap = 50

[simulation]
sites = ["north.toml", "south.toml"]
compare = []
"""

SITE = """
[site]
name = "{name}"
[source]
kind = "csv"
path = "{name}.csv"
[patients]
column = "patient_id"
"""


@dataclass(frozen=True)
class Files:
    """A study over two sites of 60 patients, good as it is, to be spoilt by a test."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "OUT"

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        """Replace texts in a file; each must be there."""
        path = self.folder / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{old!r} is not in {name}"
            text = text.replace(old, new)
        path.write_text(text)

    def rows(self, name: str, change: Callable[[list[str]], str | None]) -> None:
        """Rewrite the rows of a site's CSV: a row's new cells joined, or None to drop it."""
        path = self.folder / f"{name}.csv"
        head, *rows = path.read_text().splitlines()
        kept = [new for row in rows if (new := change(row.split(","))) is not None]
        path.write_text("\n".join([head, *kept]) + "\n")


def write_site(folder: Path, name: str, seed: int, patients: int = 60) -> None:
    """A site whose older patients die more often."""
    draw = np.random.default_rng(seed)
    age = draw.integers(20, 95, patients)
    died = draw.random(patients) < 1 / (1 + np.exp(-(age - 58) / 8))
    died[:4] = [True, False, True, False]
    lines = ["patient_id,age,sex,died"]
    lines += [
        f"{name}-{i},{age[i]},{'FM'[i % 2]},{'yes' if died[i] else 'no'}" for i in range(patients)
    ]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.toml").write_text(SITE.format(name=name))


def _make_files(folder: Path) -> Files:
    (folder / "study.toml").write_text(STUDY)
    for seed, name in enumerate(("north", "south")):
        write_site(folder, name, seed)
    return Files(folder)


@pytest.fixture(scope="session")
def make_files() -> Callable[[Path], Files]:
    """Write `Files` into a folder."""
    return _make_files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """See `Files`."""
    return _make_files(tmp_path)
