"""What the server asks of a site, and who does it.

Guarantee:
    What is assigned was signed by the server, whom the roster names as coordinator, in this
    session, for this site, and its body is the one that was signed. Whether the site wants it is
    for policy and stewards to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedward.common.errors import LinkError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.message import message_id, task_key
from fedward.common.wire.session import Session

_HASH = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ACTION = re.compile(r"[a-z_]{1,32}(\.[a-z0-9_-]{1,64})?")
_HINT = "check that both sides run the same version of fedward"


@dataclass(frozen=True)
class Assignment:
    """Something to do.

    Attributes:
        key: names it in every session, also after restarts; 64 hexadecimal digits.
        study: hash of the study.
        run: name of the run.
        round: number of the round.
        action: the Flower message type.
        body: what was sent, whole, verified and decoded.
        evidence: the serialised `Signed` that asked for it.
    """

    key: str
    study: str
    run: str
    round: int
    action: str
    body: Path
    evidence: bytes


class Work(Protocol):
    """Who does it. All methods are called in the event loop."""

    async def decline(self, assignment: Assignment) -> Path | None:
        """Refuse a large task before its body is fetched: `body` is where it would be.

        Returns:
            The reply's body, as `do` gives it; None for a task that `do` is worth to be asked for.
        """
        ...

    async def do(self, assignment: Assignment) -> Path:
        """Do it and give the reply's body, durable on disk.

        The same key again must give the same file, without doing the work again. A refusal is a
        body as well. What is raised here counts as a refusal without a reason.
        """
        ...

    def closed(self, key: str) -> None:
        """Nobody waits for the reply any more."""
        ...

    def receipt(self, key: str, evidence: bytes) -> None:
        """The server has the reply, and signed so: `evidence` is the serialised `Signed`."""
        ...

    def roster(self, data: bytes) -> None:
        """There is a newer roster, which was checked."""
        ...

    def studies_changed(self) -> None:
        """What is offered to this site may have changed: ask for it."""
        ...


@dataclass(frozen=True)
class Offer:
    """A task as it was offered in one session.

    Attributes:
        key: see `Assignment`.
        id: names the message; differs between sessions.
        header: what was signed.
        evidence: the serialised `Signed`.
    """

    key: str
    id: bytes
    header: Header
    evidence: bytes

    def assignment(self, body: Path) -> Assignment:
        """The task with its body."""
        head = self.header
        return Assignment(
            self.key, head.study, head.run, head.round, head.action, body, self.evidence
        )


def read_offer(session: Session, signed: Signed) -> Offer:
    """Check a task's message.

    Raises:
        IdentityError: the server did not sign it.
        LinkError: it is not a task, or names things that cannot be names.
    """
    header = session.open(signed)
    if header.kind != kinds.TASK:
        raise LinkError("a message is no task", hint=_HINT)
    for pattern, text in ((_HASH, header.study), (_RUN, header.run), (_ACTION, header.action)):
        if not pattern.fullmatch(text):
            raise LinkError("a task has a name that may not be one", hint=_HINT)
    key = task_key(
        run=header.run,
        round_number=header.round,
        action=header.action,
        site=session.me,
        body_sha256=header.body_sha256,
    )
    return Offer(key, message_id(signed), header, signed.SerializeToString())
