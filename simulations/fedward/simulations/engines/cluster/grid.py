"""A grid whose sites are in workers of Ray: the `ray` engine's side of the server.

A site stays with its worker, which prepares its rows once. What it was charged is written down in
this process, with its reply: a worker that is lost has charged nothing, and its sites are done
again. Data are in Ray's object store once for each machine, the weights of a round too. Importing
this needs Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import ArrayRecord, Message, RecordDict
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from fedward.client.site import Site
from fedward.client.spending import Spending
from fedward.common import records
from fedward.common.errors import RoundError, SiteConfigError
from fedward.common.version import versions
from fedward.simulations.engines.carrier import divide
from fedward.simulations.engines.cluster.actor import SiteActor
from fedward.simulations.engines.cluster.internals import pool_size_from_resources
from fedward.simulations.engines.loop import LoopGrid, reached
from fedward.simulations.engines.pool import ATTEMPTS, WorkerDefect

_NEEDS = {"num_cpus": 1}
_IN_FLIGHT = 2
"""Messages that a worker has at a time: one to compute, one that waits for it."""
_START_S = 300.0


@dataclass
class _Job:
    message: Message
    weights: Any
    """Reference to the arrays of the message; None if it has none."""
    attempts: int = 0


@dataclass
class _Worker:
    """Of Ray.

    Attributes:
        actor: its process.
        jobs: that it is not asked yet.
        told: spending of each node, as the process knows it.
    """

    actor: Any
    jobs: deque[_Job] = field(default_factory=deque)
    told: dict[int, Spending] = field(default_factory=dict)


class RayGrid(LoopGrid):
    """A grid over workers of the Ray that this process is connected to.

    Args:
        sites: all of them.

    Raises:
        SiteConfigError: a machine of the cluster has other versions than this one.
        RoundError: no worker could be started.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        known = list(sites)
        super().__init__(*reached(known))
        self._nodes = dict(zip(self.get_node_ids(), known, strict=True))
        self._shared: tuple[ArrayRecord, Any] | None = None
        self._sites = ray.put(known)
        shards = divide(range(len(known)), lambda index: known[index].rows, _capacity(len(known)))
        nodes = list(self._nodes)
        self._workers = [_Worker(self._new()) for _ in shards]
        self._home = {
            nodes[index]: worker
            for worker, shard in zip(self._workers, shards, strict=True)
            for index in shard
        }
        try:
            self._check(self._workers)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies as they come; a reply exists only while it is looked at."""
        del timeout  # as in the reference: a virtual hospital that is slow is not absent
        for message in messages:
            self._home[message.metadata.dst_node_id].jobs.append(self._job(message))
        flying: dict[Any, tuple[_Worker, _Job]] = {}
        try:
            for worker in self._workers:
                self._feed(worker, flying)
            while flying:
                (ready,), _ = ray.wait(list(flying), num_returns=1)
                worker, job = flying.pop(ready)
                reply = self._receive(ready, worker, job, flying)
                self._feed(worker, flying)
                if reply is not None:
                    yield reply
        finally:
            if flying:
                self.close()  # a worker is busy: its answer belongs to no later message

    def close(self) -> None:
        """End the workers, also those that are in the middle of something."""
        workers, self._workers = self._workers, []
        for worker in workers:
            ray.kill(worker.actor)

    def _job(self, message: Message) -> _Job:
        record = message.content.array_records.get(records.ARRAYS)
        if record is None:
            return _Job(message, None)
        if self._shared is None or self._shared[0] is not record:
            weights = {name: array.numpy() for name, array in record.items()}
            self._shared = (record, ray.put(weights))
        bare = copy(message)
        bare.content = RecordDict({k: v for k, v in message.content.items() if k != records.ARRAYS})
        return _Job(bare, self._shared[1])

    def _feed(self, worker: _Worker, flying: dict[Any, tuple[_Worker, _Job]]) -> None:
        """Ask a worker as much as it should have before it."""
        busy = sum(1 for other, _ in flying.values() if other is worker)
        while worker.jobs and busy < _IN_FLIGHT:
            job = worker.jobs.popleft()
            node = job.message.metadata.dst_node_id
            spending = self._nodes[node].spending
            charges = None if worker.told.get(node) is spending else spending.charges
            worker.told[node] = spending
            job.attempts += 1
            flying[worker.actor.answer.remote(job.message, job.weights, charges)] = (worker, job)
            busy += 1

    def _receive(
        self, ready: Any, worker: _Worker, job: _Job, flying: dict[Any, tuple[_Worker, _Job]]
    ) -> Message | None:
        """A reply, and what it cost written down; None if the worker is lost."""
        try:
            reply, charges = ray.get(ready)
        except RayTaskError as error:
            raise WorkerDefect(str(error)) from None
        except RayError as error:
            lost = [ref for ref, (other, _) in flying.items() if other is worker]
            self._again(worker, [job, *(flying.pop(ref)[1] for ref in lost)], error)
            return None
        spending = self._nodes[job.message.metadata.dst_node_id].spending
        for charge in charges:
            spending.charge(charge.round, charge.group, charge.event)
        answer: Message = reply
        return answer

    def _again(self, worker: _Worker, jobs: list[_Job], error: RayError) -> None:
        """A new process for a worker, which knows of nothing, and what the old one was asked."""
        ray.kill(worker.actor)  # it may be only out of reach
        attempts = max(job.attempts for job in jobs)
        if attempts >= ATTEMPTS:
            raise RoundError(
                f"a worker of Ray was lost {attempts} times at the same work",
                hint="see whether there is enough memory; `--engine loop` works without workers",
            ) from error
        worker.jobs.extendleft(reversed(jobs))
        worker.told.clear()
        worker.actor = self._new()
        self._check([worker])

    def _new(self) -> Any:
        return ray.remote(SiteActor).options(**_NEEDS).remote(self._sites)

    def _check(self, workers: Iterable[_Worker]) -> None:
        """Wait until workers are there, and see whether they are like this process."""
        try:
            found = ray.get([w.actor.versions.remote() for w in workers], timeout=_START_S)
        except GetTimeoutError as error:
            raise RoundError(
                f"Ray gave no processor to a worker within {_START_S:.0f} s",
                hint="wait until the cluster is less busy, or add machines to it",
            ) from error
        except RayError as error:
            raise RoundError(
                "a worker of Ray could not be started",
                hint="check that every machine of the cluster has the same fedward[ray] installed",
            ) from error
        own = versions()
        for other in found:
            unlike = sorted(name for name in own if other.get(name) != own[name])
            if unlike:
                raise SiteConfigError(
                    f"a machine of the Ray cluster has other versions of {', '.join(unlike)}",
                    hint="install the same ones everywhere: results would not repeat",
                )


def _capacity(sites: int) -> int:
    """Workers for so many sites: one for each processor of the cluster at most."""
    try:
        return min(pool_size_from_resources(dict(_NEEDS)), sites)
    except ValueError as error:
        raise RoundError(
            "the Ray cluster has no processor", hint="start it with `--num-cpus` above 0"
        ) from error
