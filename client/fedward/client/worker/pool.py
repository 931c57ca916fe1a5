"""The workers of a daemon: one for each run that is under way, warm between its rounds.

A worker that ended by accident is started again and asked again: without privacy the same task has
the same answer, and with it the ledger refuses what it has been charged for before. One that broke
its limits is not asked again: it would break them again.

One that still loads when its task is closed loads on, for the next: else a study whose deadlines
are shorter than loading takes, on a busy machine, would never get further.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedward.client.worker.process import Limits, Worker, WorkerDied
from fedward.client.worker.protocol import Do, Done, Load
from fedward.common.errors import TrainingError


@dataclass(frozen=True)
class PoolLimits:
    """What a daemon allows its workers.

    Attributes:
        worker: of each.
        runs: workers at the same time.
        load_s: how long one may load.
        task_s: how long one may work on a task.
        retries: how often one that ended by accident is started again for a task.
    """

    worker: Limits = field(default_factory=Limits)
    runs: int = 2
    load_s: float = 900.0
    task_s: float = 3600.0
    retries: int = 2


class Pool:
    """Workers by run.

    Args:
        limits: for them.
        log: file that they may write to.
    """

    def __init__(self, limits: PoolLimits, *, log: Path) -> None:
        self._limits = limits
        self._log = log
        self._idle: OrderedDict[str, Worker] = OrderedDict()
        self._busy: dict[str, Worker] = {}
        self._loading: dict[str, asyncio.Task[Worker]] = {}
        self._studies: dict[str, str] = {}
        self._outdated: set[str] = set()
        """Runs whose worker loads what is not to be used any more, unless a task waits for it."""
        self._working = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(limits.runs)
        self.restarts = 0
        """How often a worker had to be started again, since the daemon began."""

    @property
    def running(self) -> tuple[str, ...]:
        """Runs that have a worker, working or warm."""
        return tuple(sorted({*self._idle, *self._busy}))

    async def do(self, load: Load, task: Do) -> Done:
        """Have a task done.

        Args:
            load: what its run needs.
            task: which.

        Raises:
            FedwardError: the worker's refusal, in its own words.
            TrainingError: it broke its limits or failed; or it ended by accident too often.
        """
        async with self._locks.setdefault(load.run, asyncio.Lock()), self._slots:
            self._working += 1
            try:
                return await self._insist(load, task)
            finally:
                self._working -= 1

    async def _insist(self, load: Load, task: Do) -> Done:
        for _ in range(self._limits.retries):
            with suppress(WorkerDied):
                return await self._once(load, task)
            self.restarts += 1
        return await self._once(load, task)

    async def _once(self, load: Load, task: Do) -> Done:
        async with self._worker(load) as worker:
            answer = await worker.ask("do", task, limit_s=self._limits.task_s)
        try:
            return Done(**answer)
        except (TypeError, ValueError) as error:
            raise TrainingError(
                "the training process answered what nobody understands",
                hint="report this as a defect",
            ) from error

    @asynccontextmanager
    async def _worker(self, load: Load) -> AsyncIterator[Worker]:
        worker = await self._take(load)
        self._busy[load.run] = worker
        try:
            yield worker
        finally:
            del self._busy[load.run]
            if worker.alive:
                self._idle[load.run] = worker

    async def _take(self, load: Load) -> Worker:
        """A warm worker of the run, or a new one; the least recently used one makes room."""
        worker = self._idle.pop(load.run, None)
        if worker is not None and worker.alive:
            return worker
        if worker is not None:
            await worker.stop()
        loading = self._loading.get(load.run)
        if loading is None:
            await self._make_room()
            self._studies[load.run] = load.study
            loading = self._loading[load.run] = asyncio.create_task(self._load(load))
        try:
            return await asyncio.shield(loading)
        finally:
            if load.run in self._outdated:
                loading.cancel()
            if loading.done() or loading.cancelling():
                self._loading.pop(load.run, None)
            self._outdated.discard(load.run)

    async def _make_room(self) -> None:
        left = [run for run in self._loading if not self._waits(run)]
        while left and len(left) + len(self._idle) + self._working > self._limits.runs:
            await self._drop(left.pop(0))
        while self._idle and len(left) + len(self._idle) + self._working > self._limits.runs:
            _, oldest = self._idle.popitem(last=False)
            await oldest.stop()

    async def _load(self, load: Load) -> Worker:
        worker = await Worker.start(self._limits.worker, log=self._log)
        try:
            await worker.ask("load", load, limit_s=self._limits.load_s)
        except BaseException:
            await worker.stop()
            raise
        return worker

    def _waits(self, run: str) -> bool:
        """Whether a task waits for a worker that loads."""
        return run in self._locks and self._locks[run].locked()

    async def _drop(self, run: str) -> None:
        """End a worker that loads, or has loaded for a task that is closed."""
        loading = self._loading.pop(run, None)
        if loading is None:
            return
        loading.cancel()
        found = (await asyncio.gather(loading, return_exceptions=True))[0]
        if isinstance(found, Worker):
            await found.stop()

    async def end_idle(self, studies: Collection[str] | None = None) -> None:
        """End the warm workers of some studies, or of all: their next task loads all anew."""
        for run in [*self._idle, *self._loading]:
            if studies is not None and self._studies.get(run) not in studies:
                continue
            worker = self._idle.pop(run, None)
            if worker is not None:
                await worker.stop()
            elif self._waits(run):
                self._outdated.add(run)
            else:
                await self._drop(run)

    async def stop(self) -> None:
        """End them all."""
        for run in list(self._loading):
            await self._drop(run)
        for worker in (*self._idle.values(), *self._busy.values()):
            await worker.stop()
        self._idle.clear()
