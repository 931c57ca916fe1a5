"""A carrier on which chosen replies go wrong: lost, refused, damaged, doubled, out of order.

    FlakyGrid(grid, [Fault("site-2", lost, round=3), Fault("site-1", not_a_number)])

For tests of how a run bears its sites' troubles, and for rehearsing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedward.client.site import Site
from fedward.common import records
from fedward.common.study import Study
from fedward.server.checkpoints import Checkpoints, NoCheckpoints
from fedward.server.flower_internals import Run
from fedward.server.rounds import Observer, Outcome, Rounds
from fedward.simulations.engines.loop import LoopGrid, loop_grid
from fedward.simulations.fakes import Quiet

Trouble = Callable[[Message, Message], list[Message]]
"""`(request, reply)` to what arrives instead of the reply."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        site: whose reply.
        trouble: what becomes of it.
        kind: of message that is answered.
        round: in which it happens; None for every.
    """

    site: str
    trouble: Trouble
    kind: str = records.TRAIN
    round: int | None = None


class FlakyGrid(Grid):
    """A `LoopGrid` with faults.

    Args:
        grid: reaches the sites.
        faults: what goes wrong; the first that fits a reply is taken.
        shuffle: replies arrive in an order drawn from this seed; None keeps it.
    """

    def __init__(
        self, grid: LoopGrid, faults: Sequence[Fault] = (), *, shuffle: int | None = None
    ) -> None:
        self._grid = grid
        self._faults = tuple(faults)
        self._order = None if shuffle is None else np.random.default_rng(shuffle)
        self.asked: list[tuple[str, str, int | None]] = []
        """What was asked so far: kind, site, round."""

    def set_run(self, run: Run) -> None:
        """Of the grid below."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Of the grid below."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """By the grid below."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """By the grid below."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """By the grid below, without faults."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """By the grid below, without faults."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies of the sites, with their troubles."""
        arrived = []
        for request in messages:
            fault = self._fault(request)
            for reply in self._grid.send_and_receive([request], timeout=timeout):
                arrived += [reply] if fault is None else fault.trouble(request, reply)
        if self._order is not None:
            arrived = [arrived[index] for index in self._order.permutation(len(arrived))]
        return arrived

    def _fault(self, request: Message) -> Fault | None:
        kind, site = request.metadata.message_type, self._grid.site(request.metadata.dst_node_id)
        number = request.content.config_records[records.CONFIG].get(records.ROUND)
        self.asked.append((kind, site, cast("int | None", number)))
        return next(
            (
                fault
                for fault in self._faults
                if (fault.site, fault.kind) == (site, kind) and fault.round in (None, number)
            ),
            None,
        )


def run_flaky(
    study: Study,
    sites: Iterable[Site],
    faults: Sequence[Fault] = (),
    *,
    shuffle: int | None = None,
    checkpoints: Checkpoints | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """Run a study over a `FlakyGrid`, from the newest checkpoint if there is one.

    Raises:
        FedwardError: what ends the run; see `Rounds.run`.
    """
    grid = FlakyGrid(loop_grid(sites), faults, shuffle=shuffle)
    return Rounds(
        study, grid, checkpoints=checkpoints or NoCheckpoints(), observer=observer or Quiet()
    ).run()


def lost(request: Message, reply: Message) -> list[Message]:
    """Nothing arrives."""
    del request, reply
    return []


def twice(request: Message, reply: Message) -> list[Message]:
    """The same reply arrives two times, as after a broken connection."""
    return [reply, Message(RecordDict(dict(reply.content)), reply_to=request)]


def refused(code: int, reason: str) -> Trouble:
    """The site refuses."""
    return lambda request, _reply: [Message(Error(code, reason), reply_to=request)]


def empty(request: Message, reply: Message) -> list[Message]:
    """A reply without any record."""
    del reply
    return [Message(RecordDict(), reply_to=request)]


def changed(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Trouble:
    """The arrays of the reply are others.

    Args:
        change: from the arrays by name to those that arrive.
    """

    def trouble(request: Message, reply: Message) -> list[Message]:
        arrays = {key: a.numpy() for key, a in reply.content.array_records[records.ARRAYS].items()}
        content = RecordDict(dict(reply.content))
        content[records.ARRAYS] = ArrayRecord(
            {key: Array(np.asarray(value)) for key, value in change(arrays).items()}
        )
        return [Message(content, reply_to=request)]

    return trouble


def not_a_number(request: Message, reply: Message) -> list[Message]:
    """One value of the first array is NaN."""

    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        first = next(iter(arrays))
        spoilt = arrays[first].copy()
        spoilt.flat[0] = np.nan
        return {**arrays, first: spoilt}

    return changed(change)(request, reply)


def wrong_shape(request: Message, reply: Message) -> list[Message]:
    """Every array has one dimension more."""
    return changed(lambda arrays: {k: v[None] for k, v in arrays.items()})(request, reply)


def wrong_name(request: Message, reply: Message) -> list[Message]:
    """The first array has another name."""
    return changed(
        lambda arrays: {("other" if i == 0 else k): v for i, (k, v) in enumerate(arrays.items())}
    )(request, reply)


def scaled(factor: float) -> Trouble:
    """Every array is multiplied: a hostile or broken site."""
    return changed(lambda arrays: {k: v * np.float32(factor) for k, v in arrays.items()})


def renamed(name: str) -> Trouble:
    """The site introduces itself by another name."""

    def trouble(request: Message, _reply: Message) -> list[Message]:
        content = RecordDict({records.CONFIG: ConfigRecord({records.SITE: name})})
        return [Message(content, reply_to=request)]

    return trouble
