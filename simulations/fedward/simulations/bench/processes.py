"""Runs of programs on a workload, each a process of its own with one thread for torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from fedward.common.errors import StateError
from fedward.simulations.bench import rivals
from fedward.simulations.bench.rivals import Rival
from fedward.simulations.engines.choice import processors

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
LIMIT_S = 3600.0
"""A run that takes longer hangs."""
_LOOK_S = 0.1
_SHOWN = 30
"""Lines of a failed program that are shown."""


def run_rival(rival: Rival, folder: Path, peers: Path | None = None) -> dict[str, Any]:
    """A rival on a workload's folder.

    Args:
        rival: which.
        folder: of the workload.
        peers: the Python environment of the peers.

    Returns:
        `seconds` of each round, and the `accuracy` on the test rows.

    Raises:
        StateError: it cannot be run, or failed.
    """
    command = [rivals.interpreter(rival, peers), str(rivals.folder() / rival.file), str(folder)]
    if rival.every_core:
        command.append(str(processors()))
    return _run(rival.label, command)


def run_product(folder: Path, engine: str, *, memory: bool = False) -> dict[str, Any]:
    """The product on a workload's folder; with `memory`, also the peak of it and its workers.

    Raises:
        StateError: it failed.
    """
    module = ["-m", "fedward.simulations.bench.product"]
    arguments = [str(folder), engine, repr(time.monotonic())]
    return _run("fedward", [sys.executable, *module, *arguments], memory=memory)


def _run(what: str, command: Sequence[str], *, memory: bool = False) -> dict[str, Any]:
    with (
        _stoppable(),
        tempfile.TemporaryFile() as said,
        subprocess.Popen(  # noqa: S603  (our own programs)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **SETTINGS, "PYTHONWARNINGS": "ignore"},
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            peak = _watch(process) if memory else 0
            printed, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise StateError(
                f"{what} hangs", hint="measure on a machine with less to do"
            ) from error
        finally:
            end(process)
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            sys.stderr.write("\n".join([*lines[-_SHOWN:], ""]))
            raise StateError(
                f"{what} ended with {process.returncode}", hint="what it said is shown above"
            )
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**found, "peak_mb": peak / 1e6} if memory else found


@contextmanager
def _stoppable() -> Iterator[None]:
    """Be told to stop as Ctrl-C tells it, by an exception: or what was started would go on."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a program that still runs, with all that it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _watch(process: subprocess.Popen[str]) -> int:
    """The most bytes that a process and its children had, until it ends."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(_LOOK_S)
    return peak


def _memory(pid: int) -> int:
    """Bytes of a process and all below it; pages that several share count once in all."""
    own = 0
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            own = int(line.split()[1]) * 1024
    children = _read(Path(f"/proc/{pid}/task/{pid}/children")).split()
    return own + sum(_memory(int(child)) for child in children)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""
