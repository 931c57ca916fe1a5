"""Worker processes: they do all that is asked, die without harm, and never outlive their parent.

The processes are real, and are killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fedward.common.errors import DataError, FedwardError, RoundError
from fedward.simulations.engines.pool import ATTEMPTS, Pool, Work, WorkerDefect, can_fork
from fedward.simulations.engines.results import Layout, Results

pytestmark = pytest.mark.skipif(not can_fork(), reason="needs processes that fork")
WAIT_S = 180.0


def room(workers: int) -> Results:
    """Memory that workers share: `share[n]` for what they find, `square[n]` for attempts."""
    return Results(workers, Layout({"w": (1,)}), workers=workers)


@contextmanager
def pool(workers: int, work: Work) -> Iterator[Pool]:
    made = Pool(workers, work)
    try:
        yield made
    finally:
        made.close()


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_worker_does_what_it_is_asked_again_and_again() -> None:
    found = room(3)

    def work(number: int, asked: Any) -> None:
        found.share[number] = asked * 10 + number
        found.square[number] = os.getpid()

    with pool(3, work) as workers:
        known = workers.processes
        for asked in ([1, 2, 3], [4, 5, 6]):
            workers.run(asked)
            assert found.share.tolist() == [asked[0] * 10, asked[1] * 10 + 1, asked[2] * 10 + 2]
        assert found.square.tolist() == known == workers.processes
        workers.run([7, None, 9])
        assert found.share.tolist() == [70, 51, 92]
        assert os.getpid() not in known
    assert not any(is_there(process) for process in known)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_at_work_is_replaced_and_its_work_done_again(how: int) -> None:
    found = room(2)

    def work(number: int, asked: float) -> None:
        found.square[number] += 1
        found.share[number] = -1.0  # half of it is written
        if number == 1 and found.square[1] < ATTEMPTS:
            os.kill(os.getpid(), how)
        found.share[number] = asked

    with pool(2, work) as workers:
        before = workers.processes
        workers.run([3.0, 4.0])
        after = workers.processes
        assert found.share.tolist() == [3.0, 4.0]
        assert found.square.tolist() == [1.0, ATTEMPTS]
        assert after[0] == before[0]
        assert after[1] != before[1]
        found.square[:] = ATTEMPTS
        workers.run([5.0, 6.0])
        assert found.share.tolist() == [5.0, 6.0]
        assert workers.processes == after
    assert not any(is_there(process) for process in (*before, *after))


def test_a_worker_that_is_killed_while_it_waits_is_replaced() -> None:
    found = room(2)

    def work(number: int, asked: float) -> None:
        found.share[number] = asked

    with pool(2, work) as workers:
        workers.run([1.0, 1.0])
        victim = workers.processes[0]
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        workers.run([2.0, 3.0])
        assert found.share.tolist() == [2.0, 3.0]
        assert victim not in workers.processes


def test_a_worker_that_keeps_dying_ends_the_run_in_words() -> None:
    found = room(2)

    def work(number: int, asked: Any) -> None:
        del asked
        found.square[number] += 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with pool(2, work) as workers, pytest.raises(RoundError, match=r"3 times .*-9") as caught:
        workers.run([1, 1])
    assert "memory" in str(caught.value.hint)
    assert found.square[0] == ATTEMPTS


def test_what_a_worker_refuses_arrives_when_the_others_are_done() -> None:
    found = room(2)

    def work(number: int, asked: bool) -> None:
        if number == 0 and asked:
            raise DataError("a picture is gone", hint="put it back")
        found.share[number] += 1

    with pool(2, work) as workers:
        known = workers.processes
        with pytest.raises(DataError, match="a picture is gone") as caught:
            workers.run([True, True])
        assert caught.value.hint == "put it back"
        assert isinstance(caught.value, FedwardError)
        workers.run([False, False])
        assert found.share.tolist() == [1.0, 2.0]
        assert workers.processes == known


def test_a_defect_in_a_worker_is_told_once_and_not_tried_again() -> None:
    found = room(1)

    def work(number: int, asked: Any) -> None:
        found.square[number] += 1
        raise ValueError(f"nobody foresaw {asked}")

    with pool(1, work) as workers, pytest.raises(WorkerDefect, match="nobody foresaw this"):
        workers.run(["this"])
    assert found.square[0] == 1


def test_closing_ends_workers_that_are_busy() -> None:
    read, write = os.pipe()
    found = room(2)

    def work(number: int, asked: Any) -> None:
        del asked
        os.write(write, b"x")
        if number == 0:
            threading.Event().wait()  # for ever
        found.share[number] = 1

    with pool(2, work) as workers:
        known = workers.processes
        # What `run` sends; but nobody waits for the answer.
        for worker in workers._workers:
            worker.pipe.send(1)
        for _ in range(2):
            assert os.read(read, 1) == b"x"
    assert not any(is_there(process) for process in known)
    workers.close()  # again: nothing to do
    os.close(read)
    os.close(write)


CHILD = """
import os, sys
from fedward.simulations.engines.pool import Pool
def work(number, asked):
    if asked == "die":
        os.kill(os.getpid(), 9)
pool = Pool(3, work)
pool.run([1, 2, 3])
os.kill(pool.processes[1], 9)
pool.run([1, 2, 3])  # one of them was forked later than the others
print(*pool.processes, flush=True)
sys.stdin.read()
"""


def test_workers_end_when_their_parent_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [os.pidfd_open(int(word)) for word in parent.stdout.readline().split()]
        assert len(workers) == 3
        parent.kill()
        parent.wait(WAIT_S)
        for worker in workers:
            assert ended(worker)


THREADS = """
import torch
from fedward.simulations.engines.pool import Pool
torch.set_num_threads(2)
large = torch.ones(2_000_000)
(large * 2).sum()
pool = Pool(2, lambda number, asked: (large * 2).sum())
pool.run([1, 2])
pool.close()
print("done")
"""


def test_workers_compute_though_their_parent_had_threads() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        env=env,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


def ended(handle: int) -> bool:
    """Whether the process behind a handle ends: it is waited for."""
    try:
        return bool(select.select([handle], [], [], WAIT_S)[0])
    finally:
        os.close(handle)


def test_results_are_shared_with_processes_forked_later() -> None:
    found = room(2)
    assert found.updates is not None

    def work(number: int, asked: float) -> None:
        assert found.updates is not None
        found.updates[number] = found.before * asked

    with pool(2, work) as workers:
        found.before[:] = 2.0
        workers.run([3.0, 4.0])
        np.testing.assert_array_equal(found.updates, [[6.0], [8.0]])
