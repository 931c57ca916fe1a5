"""Messages from and to sites as values: who answered, who refused and why.

Sites are known by their names; node ids are the carrier's business and change when it restarts.
What a site sends is read here and nowhere else: a reply that is not as it must be is that site's
refusal, never the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import (
    DataError,
    LinkError,
    PolicyError,
    PrivacyError,
    RoundError,
    RoundSpentError,
    SiteConfigError,
    StudyError,
    TrainingError,
    error_for_exit_code,
)
from fedward.common.study import Study, study_hash
from fedward.server.arrays import same_array, settled
from fedward.server.flower_internals import Run

_LONGEST_REASON = 500


class TooFew(RoundError):  # noqa: N818  (an event: more may answer the next time)
    """Fewer sites than needed answered.

    Attributes:
        spent: those that will never answer this.
    """

    def __init__(self, problem: str, *, hint: str, spent: frozenset[str] = frozenset()) -> None:
        super().__init__(problem, hint=hint)
        self.spent = spent


_OF_A_SITE = (
    DataError,
    PolicyError,
    PrivacyError,
    SiteConfigError,
    StudyError,
    TrainingError,
)
"""What all sites may say and the run then is: the others are the server's own conditions."""


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

    @property
    def spent(self) -> frozenset[str]:
        """Sites that will never answer this, whatever happens: it is spent there."""
        code = RoundSpentError.exit_code
        return frozenset(site for site, refusal in self.refused.items() if refusal.code == code)

    def require(self, minimum: int, *, during: str) -> None:
        """Go on only with enough sites.

        Raises:
            FedwardError: fewer than `minimum` sites answered; of the kind that all refusals share
                if it is one of the site's own affairs, else `TooFew`. Every refusing site is
                named with its reason.
        """
        if len(self.accepted) >= minimum:
            return
        codes = {refusal.code for refusal in self.refused.values()}
        shared = error_for_exit_code(codes.pop()) if len(codes) == 1 else None
        by_reason: dict[str, list[str]] = {}
        for site, reason in sorted(self.reasons.items()):
            by_reason.setdefault(reason, []).append(site)
        problem = f"{during} stopped, {len(self.accepted)} of {minimum} needed sites answered"
        named = "; ".join(f"{', '.join(sites)}: {reason}" for reason, sites in by_reason.items())
        hint = named or "connect more sites"
        if shared in _OF_A_SITE:
            raise shared(problem, hint=hint)
        # Others may answer, or these later. A full disk there is none here, nor did anybody here
        # stop the run because a site says that it was stopped.
        raise TooFew(problem, hint=hint, spent=self.spent)


Check = Callable[[str, Message], None]
"""Looks at a site's reply and refuses it by a `RoundError`; changes nothing in it."""


def ask(
    grid: Grid,
    messages: Iterable[Message],
    sites: Mapping[int, str],
    *,
    deadline_s: float,
    check: Check | None = None,
) -> Replies:
    """Send messages and sort the answers by site, so that arrival order changes nothing.

    Args:
        grid: the carrier.
        messages: one for each node that is asked.
        sites: name of the site at each node.
        deadline_s: when to stop waiting.
        check: looks at each reply as it arrives, while others are still on their way.
    """
    asked = sorted(messages, key=lambda message: sites[message.metadata.dst_node_id])
    nodes = [message.metadata.dst_node_id for message in asked]
    known = frozenset(nodes)
    answers: dict[int, Message] = {}
    refusals: dict[int, Refusal] = {}
    for answer in grid.send_and_receive(asked, timeout=deadline_s):
        node = answer.metadata.src_node_id
        if node not in known:
            continue  # nobody asked it
        _settle(answer)
        if node not in answers:
            answers[node] = answer
            refusal = _refusal(sites[node], answer, check)
            if refusal is not None:
                refusals[node] = refusal
        elif not _same(answers[node], answer):
            # Which one came first is chance, and chance must not decide what the model becomes.
            refusals[node] = Refusal(RoundError.exit_code, "answered twice, and not the same")
    silent = Refusal(RoundError.exit_code, "no answer before the deadline")
    refusals |= {node: silent for node in nodes if node not in answers}
    return Replies(
        {sites[node]: answers[node] for node in nodes if node not in refusals},
        {sites[node]: refusals[node] for node in nodes if node in refusals},
    )


def queries(study: Study, kind: str, nodes: Iterable[int]) -> list[Message]:
    """Messages that ask each node the same question about a study."""
    config = ConfigRecord({records.STUDY_HASH: study_hash(study)})
    content = RecordDict({records.CONFIG: config})
    return [Message(content, dst_node_id=node, message_type=kind) for node in nodes]


def _settle(answer: Message) -> None:
    """Have every array of an answer readable block by block, and what is in memory there once."""
    if answer.has_error():
        return
    content = RecordDict(dict(answer.content))
    try:
        for key, record in answer.content.array_records.items():
            content[key] = settled(record)
    except (TypeError, ValueError, EOFError):
        return  # whoever looks at it says so
    answer.content = content


def _refusal(site: str, answer: Message, check: Check | None) -> Refusal | None:
    if answer.has_error():
        return Refusal(answer.error.code, _one_line(answer.error.reason or ""))
    try:
        if check is not None:
            check(site, answer)
    except RoundError as error:
        return Refusal(RoundError.exit_code, error.problem)
    return None


def _one_line(reason: str) -> str:
    """What somebody else wrote, fit to be shown: no line breaks, nothing that steers a terminal."""
    line = "".join(c for c in " ".join(reason.split()) if c.isprintable())
    return line[:_LONGEST_REASON] or "gave no reason"


def _same(one: Message, other: Message) -> bool:
    """Whether two answers say the same: a resent answer changes nothing."""
    if one is other:
        return True
    if one.has_error() or other.has_error():
        return one.has_error() and other.has_error() and one.error == other.error
    return list(one.content) == list(other.content) and all(
        _same_record(record, other.content[key]) for key, record in one.content.items()
    )


def _same_record(one: object, other: object) -> bool:
    if not (isinstance(one, ArrayRecord) and isinstance(other, ArrayRecord)):
        return bool(one == other)
    try:
        return list(one) == list(other) and all(same_array(one[key], other[key]) for key in one)
    except (TypeError, ValueError, EOFError):
        return bool(one == other)  # neither can be read


def record_of(message: Message) -> ArrayRecord:
    """The array record of a reply.

    Raises:
        RoundError: there is none.
    """
    record = message.content.array_records.get(records.ARRAYS)
    if record is None:
        raise _unreadable("has no arrays")
    return record


@contextmanager
def readable() -> Iterator[None]:
    """Call arrays that cannot be read the fault of the reply that they are in.

    Raises:
        RoundError: the body could not read them.
    """
    try:
        yield
    except (TypeError, ValueError, EOFError, LinkError) as error:
        raise _unreadable("has arrays that cannot be read") from error


def arrays_of(message: Message) -> dict[str, NDArray[np.float64]]:
    """Named arrays of a reply, as they came; for those that are small.

    Raises:
        RoundError: there are none, or they cannot be read.
    """
    record = record_of(message)
    with readable():
        return {key: array.numpy() for key, array in record.items()}


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
