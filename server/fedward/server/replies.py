"""Messages from and to sites as values: who answered, who refused and why.

Sites are known by their names; node ids are the carrier's business and change when it restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import FedwardError, RoundError, error_for_exit_code
from fedward.common.tensors import Weights
from fedward.server.flower_internals import Run


@dataclass(frozen=True)
class Refusal:
    """Why a site did not contribute.

    Attributes:
        code: exit code of the error that stopped it; see `common.errors`.
        reason: one line, as the site wrote it.
    """

    code: int
    reason: str


@dataclass(frozen=True)
class Replies:
    """What came back from the sites that were asked.

    Attributes:
        accepted: messages with content by site, sorted by name.
        refused: the other sites.
    """

    accepted: dict[str, Message]
    refused: dict[str, Refusal]

    def refuse(self, site: str, reason: str) -> Replies:
        """The same replies, but that of one site is not used."""
        rest = {name: message for name, message in self.accepted.items() if name != site}
        refusal = Refusal(RoundError.exit_code, reason)
        return Replies(rest, {**self.refused, site: refusal})

    def require(self, minimum: int, *, during: str) -> None:
        """Go on only with enough sites.

        Raises:
            FedwardError: fewer than `minimum` sites answered; of the kind that all refusals share,
                else a `RoundError`. Every refusing site is named with its reason.
        """
        if len(self.accepted) >= minimum:
            return
        codes = {refusal.code for refusal in self.refused.values()}
        kind: type[FedwardError] = RoundError
        if len(codes) == 1:
            kind = error_for_exit_code(codes.pop()) or RoundError
        reasons = "; ".join(f"{site}: {r.reason}" for site, r in sorted(self.refused.items())[:5])
        raise kind(
            f"{during} stopped, {len(self.accepted)} of {minimum} needed sites answered",
            hint=reasons or "no site is connected",
        )


def ask(
    grid: Grid, messages: Iterable[Message], sites: Mapping[int, str], *, deadline_s: float
) -> Replies:
    """Send messages and sort the answers by site, so that arrival order changes nothing.

    Args:
        grid: the carrier.
        messages: one for each node that is asked.
        sites: name of the site at each node.
        deadline_s: when to stop waiting.
    """
    asked = sorted(messages, key=lambda message: sites[message.metadata.dst_node_id])
    answers = {
        sites[answer.metadata.src_node_id]: answer
        for answer in grid.send_and_receive(asked, timeout=deadline_s)
    }
    accepted: dict[str, Message] = {}
    refused: dict[str, Refusal] = {}
    for name in (sites[message.metadata.dst_node_id] for message in asked):
        answer = answers.get(name)
        if answer is None:
            refused[name] = Refusal(RoundError.exit_code, "no answer before the deadline")
        elif answer.has_error():
            refused[name] = Refusal(answer.error.code, answer.error.reason or "gave no reason")
        else:
            accepted[name] = answer
    return Replies(accepted, refused)


def array_record(weights: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """Named arrays for a message."""
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in weights.items()})


def arrays_of(message: Message) -> dict[str, NDArray[np.float64]]:
    """Named arrays of a reply, as they came."""
    record = cast("ArrayRecord", message.content[records.ARRAYS])
    return {key: array.numpy() for key, array in record.items()}


def weights_of(record: ArrayRecord) -> Weights:
    """Weights of an aggregated record; adaptive strategies may compute them in float64."""
    return {key: array.numpy().astype(np.float32, copy=False) for key, array in record.items()}


def config_of(message: Message) -> ConfigRecord:
    """Configuration of a message."""
    return cast("ConfigRecord", message.content[records.CONFIG])


class SelectedGrid(Grid):
    """A grid that shows only chosen nodes: a strategy that takes everyone takes just these."""

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self._grid = grid
        self._nodes = sorted(nodes)

    def set_run(self, run: Run) -> None:
        """Of the underlying grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Of the underlying grid."""
        return self._grid.run

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """By the underlying grid."""
        return self._grid.create_message(*args, **kwargs)  # type: ignore[arg-type]

    def get_node_ids(self) -> Iterable[int]:
        """Only the chosen nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """By the underlying grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """By the underlying grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """By the underlying grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)
