"""The worker as a process: confined, watched, killed when it must be, never left behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedward.client.worker.process import Limits, Worker, WorkerDied, resident_bytes
from fedward.client.worker.protocol import Do, Load
from fedward.common.errors import OutputError, StateError, TrainingError

LOAD = Load("/nowhere", "0" * 64, "run-1")
TASK = Do("0" * 64, "/nowhere/body", "train", 1, "/nowhere/out")


async def started(folder: Path, **limits: int) -> Worker:
    return await Worker.start(Limits(**limits), log=folder / "worker.log")


async def answered(worker: Worker) -> None:
    """Return when the worker surely listens: it refuses what it cannot load."""
    with pytest.raises(TrainingError):
        await worker.ask("nonsense", TASK, limit_s=60.0)


def gone(pid: int) -> bool:
    """Wait until a process is no more."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([handle], [], [], 30.0)
        return bool(ready)
    finally:
        os.close(handle)


def test_what_it_does_not_know_fails_and_ends_it(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path)
        await answered(worker)
        assert not worker.alive

    asyncio.run(go())
    log = (tmp_path / "worker.log").read_text()
    assert "ValueError at" in log
    assert "nothing is loaded" not in log  # an error's own text may quote data


def test_a_refusal_keeps_its_kind_and_the_worker(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path)
        load = Load(str(tmp_path), "0" * 64, "run-1")
        with pytest.raises(StateError, match="is not a site's folder"):
            await worker.ask("load", load, limit_s=120.0)
        assert worker.alive
        await worker.stop()

    asyncio.run(go())


def test_one_that_is_killed_says_so(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await worker.ask("do", TASK, limit_s=60.0)
        assert not worker.alive
        with pytest.raises(WorkerDied):
            await worker.ask("do", TASK, limit_s=60.0)
        await worker.stop()

    asyncio.run(go())


def test_one_that_takes_too_much_memory_is_killed_and_told_so(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path, memory_bytes=60 << 20)  # less than torch needs
        with pytest.raises(TrainingError, match="more memory"):
            await worker.ask("load", LOAD, limit_s=120.0)
        assert not worker.alive

    asyncio.run(go())


def test_one_that_takes_too_long_is_killed_and_told_so(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path)
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(TrainingError, match="took longer"):
            await worker.ask("load", LOAD, limit_s=0.05)
        assert not worker.alive
        assert gone(worker.pid)

    asyncio.run(go())


def test_who_stops_waiting_ends_it(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path)
        os.kill(worker.pid, signal.SIGSTOP)
        asking = asyncio.create_task(worker.ask("load", LOAD, limit_s=60.0))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not worker.alive

    asyncio.run(go())


def test_it_is_confined(tmp_path: Path) -> None:
    async def go() -> None:
        worker = await started(tmp_path, nice=7)
        with pytest.raises(StateError):  # it has confined itself before it answers
            await worker.ask("load", Load(str(tmp_path), "none", "run-1"), limit_s=120.0)
        proc = Path("/proc") / str(worker.pid)
        before = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == min(before + 7, 19)
        assert (proc / "oom_score_adj").read_text().strip() == "800"
        core = next(n for n in (proc / "limits").read_text().splitlines() if "core" in n)
        assert core.split()[4:6] == ["0", "0"]
        assert "NoNewPrivs:\t1" in (proc / "status").read_text()
        for standard in ("0", "1", "2"):
            assert (proc / "fd" / standard).readlink() == Path(os.devnull)
        assert resident_bytes(worker.pid) > 0
        await worker.stop()
        assert resident_bytes(worker.pid) == 0

    asyncio.run(go())


_PARENT = """
import asyncio, pathlib, sys
from fedward.client.worker.process import Limits, Worker
async def go():
    worker = await Worker.start(Limits(), log=pathlib.Path(sys.argv[1]))
    try:
        await worker.ask("nonsense", worker._limits, limit_s=60.0)
    except Exception:
        pass
    worker = await Worker.start(Limits(), log=pathlib.Path(sys.argv[1]))
    print(worker.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(go())
"""


def test_it_dies_with_its_daemon(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        assert gone(pid)


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    async def go() -> None:
        with pytest.raises(OutputError):
            await Worker.start(Limits(), log=tmp_path / "missing" / "worker.log")

    asyncio.run(go())


def test_a_long_log_is_cut_off(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"x" * ((1 << 20) + 1))

    async def go() -> None:
        worker = await started(tmp_path)
        await worker.stop()

    asyncio.run(go())
    assert log.stat().st_size < 1 << 20


def test_the_daemons_end_loads_nothing_that_computes() -> None:
    code = (
        "import sys, fedward.client.worker.pool, fedward.client.gate, fedward.client.outbox\n"
        "heavy = {'torch', 'flwr', 'opacus', 'polars'} & set(sys.modules)\n"
        "print(','.join(heavy), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
