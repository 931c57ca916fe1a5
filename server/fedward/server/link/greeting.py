"""`Greet`: the first call of a session. Versions, clocks, and the two halves of its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fedward.common.errors import FedwardError, IdentityError, LinkError
from fedward.common.identity.keys import PrivateKey
from fedward.common.version import version
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.message import message_id, peek, unpack
from fedward.common.wire.session import HALF, Session, half
from fedward.server.link.desk import Desk, Question
from fedward.server.link.door import Door
from fedward.server.link.peers import Peer
from fedward.server.link.sessions import SiteSession

MOST_SKEW_S = 300.0
"""How far the clocks of site and server may be apart."""
_LONGEST_VERSION = 64


class Greeting:
    """Answers `Greet`.

    Args:
        name: of the server, in the roster.
        key: of the server.
        door: holds the sessions.
        desk: says what else goes along with the answer.
        heartbeat_s: how often a site beats.
        now_ms: Unix time in milliseconds.
    """

    def __init__(
        self,
        name: str,
        key: PrivateKey,
        door: Door,
        desk: Desk,
        *,
        heartbeat_s: float,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._name = name
        self._key = key
        self._door = door
        self._desk = desk
        self._heartbeat_s = heartbeat_s
        self._now_ms = now_ms

    async def greet(self, peer: Peer, request: Signed) -> Signed:
        """Begin a session, or say why not."""
        wire = self._wire(peer, b"")
        try:
            body = await self._begin(peer, wire, request)
        except FedwardError as error:
            return self._door.refuse(peer, wire, request, error)
        return wire.small(kinds.GREET, body, reply_to=message_id(request))

    def _wire(self, peer: Peer, name: bytes) -> Session:
        return Session(
            name,
            me=self._name,
            peer=peer.name,
            signer=self._key,
            verifier=peer.key,
            heads=lambda: self._desk.heads(peer.name),
        )

    async def _begin(self, peer: Peer, wire: Session, request: Signed) -> dict[str, Any]:
        header = self._open(peer, wire, request)
        body = unpack(request.body)
        _check_versions(peer, body.get("protocols"))
        self._check_clock(peer, header, body.get("clock"))
        theirs, ours = _half(body.get("half")), half()
        software = str(body.get("software") or body.get("release") or "")[:_LONGEST_VERSION]
        self._door.sessions.fresh_half(peer.name, theirs)
        question = Question(peer.name, kinds.GREET, body, header, request.SerializeToString())
        more = await self._door.aside(self._desk.greeted, question)
        self._door.sessions.begin(SiteSession(peer, self._wire(peer, theirs + ours), software))
        return {
            **more,
            "half": ours.hex(),
            "protocol": kinds.PROTOCOL,
            "software": version(),
            "clock": self._now_ms(),
            "roster": self._door.peers.roster.version,
            "heartbeat_s": self._heartbeat_s,
        }

    def _open(self, peer: Peer, wire: Session, request: Signed) -> Header:
        header = peek(request)
        if header.protocol != kinds.PROTOCOL:
            raise _other_version(peer, [header.protocol])
        if header.sender != peer.name:
            raise IdentityError(
                "a greeting is in another name than its sender's certificate",
                hint="use the certificate of the site that greets",
            )
        if header.kind != kinds.GREET:
            raise LinkError("a session begins with a greeting", hint="greet the server first")
        return wire.open(request)

    def _check_clock(self, peer: Peer, header: Header, clock: object) -> None:
        theirs = clock if isinstance(clock, int) else header.sent_at_ms
        ours = self._now_ms()
        apart_s = max(abs(ours - theirs), abs(ours - header.sent_at_ms)) / 1000
        if apart_s > MOST_SKEW_S:
            raise LinkError(
                f"the clocks are {apart_s:.0f} s apart: {peer.name} says {_spoken(theirs)}, the "
                f"server says {_spoken(ours)}",
                hint="set the wrong one",
            )


def _spoken(time_ms: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return "no time that there is"


def _check_versions(peer: Peer, protocols: object) -> None:
    offered = protocols if isinstance(protocols, list) else []
    numbers = [number for number in offered if isinstance(number, int)]
    if kinds.PROTOCOL not in numbers:
        raise _other_version(peer, numbers)


def _other_version(peer: Peer, numbers: list[int]) -> LinkError:
    newer = bool(numbers) and min(numbers) > kinds.PROTOCOL
    spoken = ", ".join(map(str, sorted(set(numbers))[:8])) or "none that is known"
    return LinkError(
        f"{peer.name} speaks version {spoken} of the link, the server version {kinds.PROTOCOL}",
        hint=f"upgrade fedward at the {'server' if newer else f'site {peer.name}'}",
    )


def _half(given: object) -> bytes:
    try:
        found = bytes.fromhex(given) if isinstance(given, str) else b""
    except ValueError:
        found = b""
    if len(found) != HALF:
        raise LinkError("a greeting has no nonce", hint="upgrade fedward at the site")
    return found
