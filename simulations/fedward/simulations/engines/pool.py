"""Worker processes that stay: one for each core, forked when data and model are there.

What was read and prepared before the fork is shared with the workers, not copied; what they give
comes back through shared memory (`results.py`). A worker that dies is forked again and its sites
are done again. Workers end with this process, however it ends: the pipe that they wait at closes.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from fedward.common.errors import FedwardError, RoundError
from fedward.common.memory import STEPS, reuse_memory

ATTEMPTS = 3
"""How often the same work may end its worker before the run gives up."""
_END_S = 2.0
_PR_SET_PDEATHSIG = 1  # Linux' <sys/prctl.h>
Work = Callable[[int, Any], None]
"""Does what a worker (by number) is asked; what it finds out it leaves in shared memory."""


def can_fork() -> bool:
    """Whether this system starts processes that share what is there already."""
    return "fork" in multiprocessing.get_all_start_methods() and os.uname().sysname == "Linux"


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    asked: Any = None
    attempts: int = 0


class Pool:
    """Worker processes.

    Args:
        workers: how many.
        work: what they do.
    """

    def __init__(self, workers: int, work: Work) -> None:
        self._work = work
        self._workers: list[_Worker] = []
        for number in range(workers):
            self._workers.append(self._fork(number))

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [worker.process.pid or 0 for worker in self._workers]

    def run(self, asked: Sequence[Any]) -> None:
        """Ask each worker something else, and wait until all are done.

        Args:
            asked: of each worker; must survive pickling. None to ask it nothing.

        Raises:
            FedwardError: what a worker raised; or a `RoundError` if its process keeps dying.
            WorkerDefect: a worker raised something else.
        """
        for number, what in enumerate(asked):
            worker = self._workers[number]
            worker.asked, worker.attempts = what, 0
            if what is not None:
                self._send(number)
        errors: list[Exception] = []
        while busy := [n for n, worker in enumerate(self._workers) if worker.asked is not None]:
            pipes = {id(self._workers[n].pipe): n for n in busy}
            for ready in wait([self._workers[n].pipe for n in busy]):
                errors += self._receive(pipes[id(ready)])
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the workers, also those that are in the middle of something."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_END_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()

    def _send(self, number: int) -> None:
        worker = self._workers[number]
        worker.attempts += 1
        with suppress(OSError):  # it is dead, which is noticed when its answer is read
            worker.pipe.send(worker.asked)

    def _receive(self, number: int) -> list[Exception]:
        """The worker's answer: nothing if it is done, else what stopped it."""
        worker = self._workers[number]
        try:
            error = worker.pipe.recv()
        except (EOFError, OSError):
            self._again(number)
            return []
        worker.asked = None
        return [] if error is None else [error]

    def _again(self, number: int) -> None:
        old = self._workers[number]
        old.process.join()
        code = old.process.exitcode
        new = self._fork(number)  # before the old one is let go: this may fail
        new.asked, new.attempts = old.asked, old.attempts
        self._workers[number] = new
        old.pipe.close()
        old.process.close()
        if old.attempts >= ATTEMPTS:
            raise RoundError(
                f"a worker process died {old.attempts} times at the same work (exit code {code})",
                hint="see whether there is enough memory; `--engine loop` works without workers",
            )
        self._send(number)

    def _fork(self, number: int) -> _Worker:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        foreign = [worker.pipe for worker in self._workers if not worker.pipe.closed]
        process = context.Process(
            target=_serve,
            args=(number, os.getpid(), there, self._work, [here, *foreign]),
            daemon=True,
        )
        gc.freeze()  # a worker that looked for garbage in what it shares would copy all of it
        try:
            process.start()
        except OSError as error:
            raise RoundError(
                "a worker process could not be started",
                hint="see whether there is enough memory; `--engine loop` works without workers",
            ) from error
        finally:
            gc.unfreeze()
            there.close()
        return _Worker(process, here)


class WorkerDefect(Exception):  # noqa: N818  (named as what it is)
    """Something went wrong in a worker that nobody foresaw; the text is its traceback."""


def end_with(parent: int) -> None:
    """Have the system end this process when its parent is gone, whatever it computes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _serve(
    number: int, parent: int, pipe: Connection, work: Work, foreign: list[Connection]
) -> None:
    """Do what is asked until the other end of the pipe is gone."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reuse_memory(STEPS)
    torch.set_num_threads(1)  # threads do not survive a fork: torch would wait for them for ever
    for other in foreign:  # or the pipe would stay open when the parent dies
        other.close()
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: Exception | None = None
        try:
            work(number, asked)
        except FedwardError as error:
            answer = error.with_traceback(None)
        except Exception:  # noqa: BLE001  (entry point of a process)
            # Told, not printed: a lock of the screen may have been held when this was forked.
            answer = WorkerDefect(traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)
