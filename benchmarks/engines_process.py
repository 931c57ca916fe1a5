"""Child processes of `engines.py`: one thread of torch each, and what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
_LOOK_S = 0.1


def run_bare(folder: Path) -> dict[str, Any]:
    """The bare loop on a workload's folder."""
    return _run([str(HERE / "bare_loop.py"), str(folder)])


def run_product(folder: Path, engine: str, *, memory: bool = False) -> dict[str, Any]:
    """The product on a workload's folder; with `memory`, also the peak of it and its workers."""
    arguments = [str(HERE / "engines_child.py"), str(folder), engine, repr(time.monotonic())]
    return _run(arguments, memory=memory)


def _run(arguments: list[str], *, memory: bool = False) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, **SETTINGS},
        text=True,
    ) as process:
        peak = 0
        while memory and process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(_LOOK_S)
        printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**found, "peak_mb": peak / 1e6} if memory else found


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
