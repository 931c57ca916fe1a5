"""A session: what one `Greet` agreed on, and which messages it still accepts.

The session's name is half chosen by each side, so nothing recorded in an older session fits this
one. Within it every message has a number of its own that is accepted once. Messages may overtake
each other on the way: a window of numbers is remembered, older ones are refused.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedward.common.errors import LinkError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head, Header, Signed
from fedward.common.wire.message import Signer, Verifier, pack, seal, unseal

HALF = 16
"""Bytes of a session's name that each side chooses."""
WINDOW = 1024
"""How far a message may be overtaken."""
_ALL = (1 << WINDOW) - 1


def half() -> bytes:
    """One side's part of a session's name."""
    return secrets.token_bytes(HALF)


@dataclass(frozen=True)
class Heads:
    """Ends of logs that go along with every message; see `Header`."""

    audit: Head | None = None
    ledger: Head | None = None
    witnessed: Head | None = None


class Session:
    """One side's view of a session.

    Args:
        name: of the session, both halves, the site's first; empty while greeting.
        me: our name in the roster.
        peer: the other side's.
        signer: our key.
        verifier: the other side's key.
        heads: gives the ends of our logs for every message that we send.
    """

    def __init__(
        self,
        name: bytes,
        *,
        me: str,
        peer: str,
        signer: Signer,
        verifier: Verifier,
        heads: Callable[[], Heads] = Heads,
    ) -> None:
        self.name = name
        self.me = me
        self.peer = peer
        self._signer = signer
        self._verifier = verifier
        self._heads = heads
        self._lock = threading.Lock()
        self._sent = 0
        self._highest = 0
        self._seen = 0  # bit n: number highest - n was here

    def small(self, kind: str, body: dict[str, Any], **fields: Any) -> Signed:
        """A signed small message; `fields` are further ones of `Header`."""
        return seal(self.header(kind, **fields), self._signer, pack(body))

    def large(self, kind: str, **fields: Any) -> Signed:
        """A signed message whose body travels apart; `fields` must say its hash and sizes."""
        return seal(self.header(kind, **fields), self._signer)

    def header(self, kind: str, **fields: Any) -> Header:
        """The header of our next message."""
        heads = self._heads()
        with self._lock:
            self._sent += 1
            sequence = self._sent
        return Header(
            protocol=kinds.PROTOCOL,
            session=self.name,
            sequence=sequence,
            sender=self.me,
            recipient=self.peer,
            kind=kind,
            sent_at_ms=time.time_ns() // 1_000_000,
            audit=heads.audit,
            ledger=heads.ledger,
            witnessed=heads.witnessed,
            **fields,
        )

    def open(self, signed: Signed) -> Header:
        """Check a message of the other side, once.

        Raises:
            IdentityError: the other side did not sign it.
            LinkError: it is of another session, not from or not for whom it should be, or was
                here before.
        """
        header = unseal(signed, self._verifier)
        if (header.sender, header.recipient) != (self.peer, self.me):
            raise LinkError("a message is from or for somebody else", hint=_HINT)
        if header.session != self.name:
            raise LinkError("a message belongs to another session", hint=_HINT)
        self._accept(header.sequence)
        return header

    def _accept(self, number: int) -> None:
        with self._lock:
            ahead = number - self._highest
            if number <= 0 or ahead <= -WINDOW or (ahead <= 0 and self._seen >> -ahead & 1):
                raise LinkError("a message was here before", hint=_HINT)
            if ahead > 0:
                self._seen = (self._seen << ahead & _ALL) if ahead < WINDOW else 0
                self._highest, ahead = number, 0
            self._seen |= 1 << -ahead


_HINT = "greet the server again"
