"""A Flower `Grid` over the mailbox: what the unchanged `ServerApp` and its strategies see.

Answers are given as they come. A site that is not connected, or silent at the deadline, gives a
message with an error instead: no wait is unbounded, and nobody is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Error, Message, RecordDict

from fedward.common import records
from fedward.common.errors import FedwardError, RoundError, StateError
from fedward.common.wire.kinds import LARGEST_BODY
from fedward.server.flower_internals import OwnGrid, identify
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.outgoing import Outgoing
from fedward.server.link.presence import Presence
from fedward.server.link.records import record_of, refusal_in
from fedward.server.link.tasks import Answer, Task

LONGEST_WAIT_S = 24 * 3600.0
"""How long an answer is waited for if nobody says."""
_ROOM = 16 << 20
"""Bytes that a reply may have beyond twice its task: sums and counts come for empty questions."""


@dataclass(frozen=True)
class Hooks:
    """What else happens while a run talks to its sites; called in the run's thread.

    Attributes:
        answered: is told every answer, and to which task, before the run sees it.
        check: called a few times a second while waiting; may raise to end the run.
    """

    answered: Callable[[Task, Answer], None] = lambda _task, _answer: None
    check: Callable[[], None] = lambda: None


class GrpcGrid(OwnGrid):
    """The sites of one run. To be made in the thread of the run.

    Args:
        mailbox: where the sites' answers arrive.
        presence: who is connected.
        study: hash of the study.
        run: name of the run.
        run_id: number that Flower calls the run by.
        folder: for the bodies of tasks.
        nodes: name of each site that takes part, by node id.
        absence_s: after how long without a connection a site is not waited for.
        hooks: what else happens.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        presence: Presence,
        *,
        study: str,
        run: str,
        folder: Path,
        nodes: Callable[[], Mapping[int, str]],
        absence_s: float,
        run_id: int = 1,
        hooks: Hooks | None = None,
    ) -> None:
        identify(run_id)
        super().__init__(run_id)
        self._mailbox = mailbox
        self._presence = presence
        self._study = study
        self._name = run
        self._folder = folder
        self._nodes = nodes
        self._absence_s = absence_s
        self._hooks = hooks or Hooks()
        self._pushed: dict[str, _Asked] = {}

    def get_node_ids(self) -> Iterable[int]:
        """All sites that take part, connected or not."""
        return list(self._nodes())

    def site_names(self) -> Mapping[int, str]:
        """Whose certificate is at the end of each node; see `attendance.KnowsSites`."""
        return self._nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Offer messages to their sites; the keys are for `pull_messages`."""
        asked = self._ask(messages, Outgoing(self._folder))
        self._pushed |= asked
        return list(asked)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers to pushed messages that are here by now."""
        wanted = [key for key in message_ids if key in self._pushed]
        found: list[Message] = []
        for answer in self._mailbox.take(wanted):
            asked = self._pushed.pop(answer.key)
            found.append(self._message(asked, answer))
            self._mailbox.close([answer.key])
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Ask sites, and give their answers as they come.

        Raises:
            FedwardError: a message cannot travel, the disk refuses, or the run is to end.
        """
        deadline = time.monotonic() + (LONGEST_WAIT_S if timeout is None else timeout)
        outgoing = Outgoing(self._folder)
        asked: dict[str, _Asked] = {}
        refused: set[str] = set()
        try:
            asked = self._ask(messages, outgoing)
            answers = self._mailbox.collect(
                asked, deadline=deadline, absent=self._absent, check=self._hooks.check
            )
            for answer in answers:
                message = self._message(asked[answer.key], answer)
                if message.has_error():
                    refused.add(answer.key)
                yield message
        finally:
            self._mailbox.close(asked, anew=refused)
            outgoing.remove()

    # --- details ----------------------------------------------------------------------------------

    def _ask(self, messages: Iterable[Message], outgoing: Outgoing) -> dict[str, _Asked]:
        nodes = self._nodes()
        asked = [self._asked(message, nodes, outgoing) for message in messages]
        found = {one.task.key: one for one in asked}
        if len(found) < len(asked):
            raise StateError("a site is asked the same twice at once", hint="report this defect")
        self._mailbox.post(one.task for one in asked)
        return found

    def _asked(self, message: Message, nodes: Mapping[int, str], outgoing: Outgoing) -> _Asked:
        site = nodes.get(message.metadata.dst_node_id)
        if site is None:
            raise RoundError("a node that is asked is no site of this run", hint="start it again")
        packed = outgoing.pack(message.content)
        task = Task(
            study=self._study,
            run=self._name,
            round=_round_of(message.content),
            action=message.metadata.message_type,
            site=site,
            body=packed.written,
            most_bytes=min(2 * packed.plain_size + _ROOM, LARGEST_BODY),
            encoding=packed.encoding,
            plain_size=packed.plain_size,
        )
        return _Asked(task, message)

    def _absent(self, site: str) -> str | None:
        if self._presence.absent_s(site) < self._absence_s:
            return None
        return f"not connected for {self._absence_s:.0f} s"

    def _message(self, asked: _Asked, answer: Answer) -> Message:
        self._hooks.answered(asked.task, answer)
        refusal, content = answer.refusal, None
        if answer.body is not None:
            try:
                content = record_of(answer.body)
                refusal = refusal_in(content)
            except FedwardError as error:
                refusal = (error.exit_code, error.problem)
        if refusal is not None or content is None:
            code, reason = refusal or (RoundError.exit_code, "gave no reason")
            return Message(Error(code, reason), reply_to=asked.message)
        return Message(content, reply_to=asked.message)


@dataclass(frozen=True)
class _Asked:
    task: Task
    message: Message


def _round_of(content: RecordDict) -> int:
    config = content.config_records.get(records.CONFIG)
    number = 0 if config is None else config.get(records.ROUND, 0)
    return number if isinstance(number, int) else 0
