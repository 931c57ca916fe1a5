"""The pool of workers: what loads on, what is thrown away, and what stays warm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fedward.client.worker.pool import Pool, PoolLimits
from fedward.client.worker.process import Worker
from fedward.client.worker.protocol import Load


class Slow(Pool):
    """Workers are real processes that load nothing, when they are let."""

    def __init__(self, folder: Path, runs: int = 2) -> None:
        super().__init__(PoolLimits(runs=runs), log=folder / "worker.log")
        self._folder = folder
        self.may_load = asyncio.Event()
        self.begun = asyncio.Event()
        self.loads: list[str] = []

    async def _load(self, load: Load) -> Worker:
        self.loads.append(load.run)
        worker = await Worker.start(self._limits.worker, log=self._folder / "worker.log")
        try:
            self.begun.set()
            await self.may_load.wait()
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def take(self, run: str, study: str = "a") -> int:
        """The process that a task of a run is given to."""
        lock = self._locks.setdefault(run, asyncio.Lock())
        async with lock:
            self._working += 1  # as `do` counts it
            try:
                async with self._worker(Load("/nowhere", study, run)) as worker:
                    return worker.pid
            finally:
                self._working -= 1


def with_pool(folder: Path, what: Callable[[Slow], Awaitable[Any]], **settings: int) -> Slow:
    async def go() -> Slow:
        pool = Slow(folder, **settings)
        try:
            await what(pool)
        finally:
            await pool.stop()
        return pool

    return asyncio.run(go())


async def given_up(pool: Slow, run: str) -> None:
    """A task whose round closes while its worker loads."""
    pool.begun.clear()
    task = asyncio.create_task(pool.take(run))
    await pool.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_worker_loads_on_when_its_task_is_closed(tmp_path: Path) -> None:
    async def what(pool: Slow) -> None:
        await given_up(pool, "run-1")
        pool.may_load.set()
        first = await pool.take("run-1")
        assert await pool.take("run-1") == first

    assert with_pool(tmp_path, what).loads == ["run-1"]


def test_what_it_loads_is_thrown_away_when_the_study_has_moved(tmp_path: Path) -> None:
    async def what(pool: Slow) -> None:
        await given_up(pool, "run-1")
        await pool.end_idle({"a"})
        pool.may_load.set()
        await pool.take("run-1")

    assert with_pool(tmp_path, what).loads == ["run-1", "run-1"]


def test_so_it_is_when_a_task_waits_for_it_and_leaves(tmp_path: Path) -> None:
    async def what(pool: Slow) -> None:
        task = asyncio.create_task(pool.take("run-1"))
        await pool.begun.wait()
        await pool.end_idle({"a"})
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pool.may_load.set()
        await pool.take("run-1")

    assert with_pool(tmp_path, what).loads == ["run-1", "run-1"]


def test_other_studies_stay_warm(tmp_path: Path) -> None:
    async def what(pool: Slow) -> None:
        pool.may_load.set()
        first = await pool.take("run-1", "a")
        await pool.take("run-2", "b")
        await pool.end_idle({"b"})
        assert pool.running == ("run-1",)
        assert await pool.take("run-1", "a") == first

    with_pool(tmp_path, what)


def test_what_nobody_waits_for_makes_room(tmp_path: Path) -> None:
    async def what(pool: Slow) -> None:
        await given_up(pool, "run-1")
        pool.may_load.set()
        await pool.take("run-2", "b")
        assert pool.running == ("run-2",)
        await pool.take("run-1")

    assert with_pool(tmp_path, what, runs=1).loads == ["run-1", "run-2", "run-1"]


def test_the_end_leaves_no_process(tmp_path: Path) -> None:
    async def what(pool: Slow) -> None:
        await given_up(pool, "run-1")

    with_pool(tmp_path, what)  # a process that was left would be a warning, and so an error
