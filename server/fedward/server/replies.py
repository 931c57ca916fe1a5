"""Messages from and to sites as values: who answered, who refused and why.

Sites are known by their names; node ids are the carrier's business and change when it restarts.
What a site sends is read here and nowhere else: a reply that is not as it must be is that site's
refusal, never the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import FedwardError, RoundError, error_for_exit_code
from fedward.common.tensors import Weights
from fedward.server.flower_internals import Run

_LONGEST_REASON = 500


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

    def checked(self, check: Callable[[str, Message], None]) -> Replies:
        """The same replies, without those that `check` refuses by a `RoundError`."""
        replies = self
        for site, message in self.accepted.items():
            try:
                check(site, message)
            except RoundError as error:
                replies = replies.refuse(site, error.problem)
        return replies

    @property
    def reasons(self) -> dict[str, str]:
        """Why each refused site is not there."""
        return {site: refusal.reason for site, refusal in self.refused.items()}

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
        by_reason: dict[str, list[str]] = {}
        for site, reason in sorted(self.reasons.items()):
            by_reason.setdefault(reason, []).append(site)
        raise kind(
            f"{during} stopped, {len(self.accepted)} of {minimum} needed sites answered",
            hint="; ".join(f"{', '.join(sites)}: {reason}" for reason, sites in by_reason.items())
            or "connect more sites",
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
    answers: dict[int, Message] = {}
    torn: set[int] = set()
    for answer in grid.send_and_receive(asked, timeout=deadline_s):
        node = answer.metadata.src_node_id
        if not _same(answers.setdefault(node, answer), answer):
            torn.add(node)
    accepted: dict[str, Message] = {}
    refused: dict[str, Refusal] = {}
    for node in (message.metadata.dst_node_id for message in asked):
        refusal = _refusal(answers.get(node), torn=node in torn)
        if refusal is None:
            accepted[sites[node]] = answers[node]
        else:
            refused[sites[node]] = refusal
    return Replies(accepted, refused)


def _refusal(answer: Message | None, *, torn: bool) -> Refusal | None:
    if answer is None:
        return Refusal(RoundError.exit_code, "no answer before the deadline")
    if torn:
        # Which one came first is chance, and chance must not decide what the model becomes.
        return Refusal(RoundError.exit_code, "answered twice, and not the same")
    if answer.has_error():
        reason = " ".join((answer.error.reason or "gave no reason").split())
        return Refusal(answer.error.code, reason[:_LONGEST_REASON])
    return None


def _same(one: Message, other: Message) -> bool:
    """Whether two answers say the same: a resent answer changes nothing."""
    if one is other:
        return True
    if one.has_error() or other.has_error():
        return one.has_error() and other.has_error() and one.error == other.error
    return bool(one.content == other.content)


def array_record(weights: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """Named arrays for a message."""
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in weights.items()})


def arrays_of(message: Message) -> dict[str, NDArray[np.float64]]:
    """Named arrays of a reply, as they came.

    Raises:
        RoundError: there are none, or they cannot be read.
    """
    record = message.content.array_records.get(records.ARRAYS)
    if record is None:
        raise _unreadable("has no arrays")
    try:
        return {key: array.numpy() for key, array in record.items()}
    except (TypeError, ValueError, EOFError) as error:
        raise _unreadable("has arrays that cannot be read") from error


def text_of(message: Message, key: str) -> str:
    """A text in the configuration record of a reply.

    Raises:
        RoundError: it is missing, or is no text.
    """
    record = message.content.config_records.get(records.CONFIG)
    value = None if record is None else record.get(key)
    if not isinstance(value, str):
        raise _unreadable(f"has no {key}")
    return value


def number_of(message: Message, key: str) -> float:
    """A number in the metric record of a reply.

    Raises:
        RoundError: it is missing, or is no number.
    """
    record = message.content.metric_records.get(records.METRICS)
    value = None if record is None else record.get(key)
    if not isinstance(value, int | float):
        raise _unreadable(f"has no {key}")
    return float(value)


def _unreadable(what: str) -> RoundError:
    return RoundError(f"the reply {what}", hint="check that the site runs the same fedward")


def weights_of(record: ArrayRecord) -> Weights:
    """Weights of an aggregated record; adaptive strategies may compute them in float64."""
    return {key: array.numpy().astype(np.float32, copy=False) for key, array in record.items()}


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
