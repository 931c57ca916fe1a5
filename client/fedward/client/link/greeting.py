"""The first call of a session: both sides sign a number of the other's, and say what they speak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedward.client.link.connection import BusyError, ExpelledError, Line, refused, translated
from fedward.common.errors import IdentityError, LinkError
from fedward.common.identity import Identity, Roster
from fedward.common.version import version
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.message import message_id, unpack
from fedward.common.wire.session import HALF, Heads, Session, half

_PAUSE_S = 0.1
_HINT = "check that both sides run the same version of fedward"


@dataclass(frozen=True)
class Greeting:
    """What came of it.

    Attributes:
        line: to talk on.
        answer: the body of the server's greeting.
        skew_s: how far the server's clock is ahead of ours.
    """

    line: Line
    answer: dict[str, Any]
    skew_s: float


async def greet(
    stub: Any,
    identity: Identity,
    roster: Roster,
    *,
    adopt: Callable[[Signed], Roster | None] = lambda _answer: None,
    heads: Callable[[], Heads] = Heads,
    patience_s: float,
) -> Greeting:
    """Begin a session.

    Args:
        stub: makes calls.
        identity: of the site.
        roster: says who the server is.
        adopt: finds a newer roster in an answer that the server of ours did not sign.
        heads: gives the ends of the site's logs.
        patience_s: how long the answer may take.

    Raises:
        IdentityError: who answers is not the coordinator of our roster, or refuses this site.
        LinkError: it cannot be reached, or speaks no version that we speak.
    """
    server = roster.coordinator

    def session(name: bytes) -> Session:
        return Session(
            name,
            me=identity.name,
            peer=server.name,
            signer=identity.key,
            verifier=server.public_key,
            heads=heads,
        )

    ours, opening = half(), session(b"")
    body = {
        "half": ours.hex(),
        "protocols": [kinds.PROTOCOL],
        "software": version(),
        "clock": time.time_ns() // 1_000_000,
        "roster": roster.version,
    }
    question = opening.small(kinds.GREET, body)
    with translated():
        answer = await stub.Greet(question, timeout=patience_s)
    try:
        header, said = read_answer(opening, question, answer, kinds.GREET)
    except ExpelledError:
        raise
    except IdentityError:
        newer = adopt(answer)
        if newer is None:
            raise
        server = newer.coordinator
        header, said = read_answer(session(b""), question, answer, kinds.GREET)
    theirs = said.get("half")
    if not isinstance(theirs, str) or len(theirs) != 2 * HALF:
        raise LinkError("the server's greeting is incomplete", hint=_HINT)
    try:
        name = ours + bytes.fromhex(theirs)
    except ValueError as error:
        raise LinkError("the server's greeting is incomplete", hint=_HINT) from error
    line = Line(stub, session(name), patience_s)
    return Greeting(line, said, header.sent_at_ms / 1000 - time.time())


def read_answer(
    session: Session, question: Signed, answer: Signed, kind: str
) -> tuple[Any, dict[str, Any]]:
    """Header and body of an answer to a question of ours.

    Raises:
        FedwardError: it is a refusal; of the class that it names.
        IdentityError: the server did not sign it.
        LinkError: it answers something else.
    """
    try:
        header = session.open(answer)
    except IdentityError as error:
        raise IdentityError(
            "who answers at the server's address is not the coordinator of this site's roster",
            hint="ask the coordinator, over the telephone, whether its key has changed",
        ) from error
    if header.reply_to != message_id(question):
        raise LinkError("an answer belongs to another question", hint=_HINT)
    body = unpack(answer.body)
    if header.kind == kinds.REFUSAL:
        raise refused(body)
    if header.kind != kind:
        raise LinkError("an answer is of another kind than its question", hint=_HINT)
    return header, body


async def ask(line: Line, kind: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Ask a small question on a line; `fields` are further ones of `Header`.

    A server that takes no more at the moment is asked again, for as long as the line is patient.

    Raises:
        FedwardError: it is refused; of the class that the server names.
        LinkError: no answer comes, or none to this question.
    """
    until, pause_s = time.monotonic() + line.patience_s, _PAUSE_S
    while True:
        question = line.session.small(kind, body, **fields)
        try:
            with translated():
                answer = await line.stub.Call(question, timeout=line.patience_s)
        except BusyError:
            if time.monotonic() + pause_s > until:
                raise
            await asyncio.sleep(pause_s)
            pause_s *= 2
        else:
            return read_answer(line.session, question, answer, kind)[1]
