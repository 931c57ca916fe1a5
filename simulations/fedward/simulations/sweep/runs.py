"""The runs of a sweep, each in a process of its own, as many at once as there are processors.

Processes are forked when everything is imported and no thread is running; each loads its data
itself. The processors are divided among them, so that an engine that takes a process for each
processor takes no more than its share. A run that fails costs no other run. All processes end with
this one, however it ends; Ctrl-C lets each write the checkpoint of its last round first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, Protocol, cast

import torch

from fedward.common.errors import FedwardError, Interrupted, RoundError, place_of
from fedward.common.exit_codes import DEFECT
from fedward.simulations.engines.choice import processors
from fedward.simulations.engines.pool import end_with
from fedward.simulations.simulate import Simulation

_GRACE_S = 60.0
"""After Ctrl-C: a run ends between two steps of its training and writes a checkpoint."""


@dataclass(frozen=True)
class Task:
    """A run to be done: its name, and what to run."""

    name: str
    simulation: Simulation


@dataclass(frozen=True)
class Failure:
    """Why a run failed, in one line, and with which code the command would have ended."""

    exit_code: int
    reason: str


class RunsListener(Protocol):
    """Is told how far the runs are."""

    def on_round(self, name: str, round_number: int, metric: float | None) -> None:
        """A round of a run is finished."""
        ...

    def on_end(self, name: str, failure: Failure | None) -> None:
        """A run has ended."""
        ...


@dataclass
class _Running:
    task: Task
    slot: int
    process: BaseProcess
    failure: Failure | None = None
    finished: bool = False


def run_all(tasks: Sequence[Task], jobs: int, listener: RunsListener) -> dict[str, Failure]:
    """Do all runs; returns when every one has ended.

    Args:
        tasks: with different names.
        jobs: processes at once, at least 1.
        listener: is told about rounds and ends.

    Returns:
        Those that failed, by name.

    Raises:
        Interrupted: Ctrl-C; what was finished is kept, and all processes have ended.
        RoundError: no process can be started.
    """
    waiting = deque(tasks)
    free = list(range(jobs))[::-1]
    running: dict[Connection, _Running] = {}
    failures: dict[str, Failure] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot = free.pop()
                pipe, process = _start(waiting[0].simulation, slot, jobs)
                running[pipe] = _Running(waiting.popleft(), slot, process)
            for ready in wait(list(running)):
                pipe = cast("Connection", ready)  # one of those that were given
                one = running[pipe]
                if _listen(pipe, one, listener):
                    continue
                del running[pipe]
                free.append(one.slot)
                pipe.close()
                failure = _ended(one)
                if failure is not None:
                    failures[one.task.name] = failure
                listener.on_end(one.task.name, failure)
    except KeyboardInterrupt as stop:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.join(_GRACE_S)
        raise Interrupted(
            "stopped by Ctrl-C, finished runs and every completed round of the others are kept",
            hint="give the same command again with --resume to continue",
        ) from stop
    finally:
        for one in running.values():
            one.process.kill()
            one.process.join()
    return failures


def _start(simulation: Simulation, slot: int, jobs: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(simulation, slot, jobs, os.getpid(), there))
    # Ctrl-C on a terminal reaches all processes, this one also before it can say that it waits for
    # its parent's word.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    except OSError as error:
        raise RoundError(
            "a process for a run could not be started",
            hint="see whether there is enough memory; `--jobs 1` works with one at a time",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        there.close()
    return here, process


def _listen(pipe: Connection, one: _Running, listener: RunsListener) -> bool:
    """Take one message; False if there will be no more."""
    try:
        what, *details = pipe.recv()
    except (EOFError, OSError):
        return False
    if what == "round":
        listener.on_round(one.task.name, *details)
    elif what == "failed":
        one.failure = Failure(*details)
    else:
        one.finished = True
    return True


def _ended(one: _Running) -> Failure | None:
    one.process.join()
    code = one.process.exitcode
    one.process.close()
    if one.finished or one.failure is not None:
        return one.failure
    return Failure(
        RoundError.exit_code,
        f"its process died (exit code {code}): see whether there is enough memory, or give --jobs",
    )


class _Teller:
    """Tells the parent about the rounds of a run; one arm only, see `grid`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        """See `simulate.Listener`."""
        del arm
        self._pipe.send(("round", round_number, metric))


def _serve(simulation: Simulation, slot: int, jobs: int, parent: int, pipe: Connection) -> NoReturn:
    """Do one run and end; what went wrong is told, not printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    signal.signal(signal.SIGTERM, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with(parent)
    answer: tuple[Any, ...] = ("finished",)
    try:
        torch.set_num_threads(_take_share(slot, jobs))
        simulation.run(_Teller(pipe))
    except (KeyboardInterrupt, Interrupted):
        os._exit(Interrupted.exit_code)
    except FedwardError as error:
        answer = ("failed", error.exit_code, str(error))
    except Exception as error:  # noqa: BLE001  (entry point of a process)
        text = f"this is a defect in fedward: {type(error).__name__} {place_of(error)}"
        answer = ("failed", DEFECT, text)
    try:
        pipe.send(answer)
    finally:
        os._exit(0)


def _stop(number: int, frame: object) -> NoReturn:
    """End as Ctrl-C would, once."""
    del number, frame
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _take_share(slot: int, jobs: int) -> int:
    """Keep to this process's share of the processors, and return how many that are."""
    if not hasattr(os, "sched_setaffinity"):
        return max(1, processors() // jobs)
    mine = sorted(os.sched_getaffinity(0))
    share = mine[slot % len(mine) :: max(1, min(jobs, len(mine)))]
    os.sched_setaffinity(0, share)
    return len(share)
