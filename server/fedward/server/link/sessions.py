"""Sessions of sites with the server: one for each site, the newest. For the event loop only."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fedward.common.errors import FedwardError, IdentityError, LinkError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.message import message_id
from fedward.common.wire.session import Session
from fedward.server.link.peers import Peer
from fedward.server.link.refusals import EndedError, SessionError
from fedward.server.link.tasks import Task

_MOST_TASKS = 128
_REMEMBERED = 256
_REPLACED = "replaced by a newer connection"


@dataclass
class Attending:
    """One open `Attend` stream.

    Attributes:
        wake: set when there is something to say.
        ended: why it must end; None while it goes on.
    """

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: FedwardError | None = None

    def end(self, error: FedwardError) -> None:
        """End it, for the first reason given."""
        self.ended = self.ended or error
        self.wake.set()


class SiteSession:
    """What the server remembers of one session of a site.

    Attributes:
        peer: who greeted.
        wire: numbers and signs messages, and checks those of the site.
        software: version of fedward that the site runs.
        ended: why it is over; None while it is not.
        attending: its stream of notices, if there is one.
    """

    def __init__(self, peer: Peer, wire: Session, software: str) -> None:
        self.peer = peer
        self.wire = wire
        self.software = software
        self.ended: FedwardError | None = None
        self.attending: Attending | None = None
        self._issued: OrderedDict[bytes, Task] = OrderedDict()

    def attend(self) -> Attending:
        """Begin a stream of notices, in place of an older one."""
        if self.attending is not None:
            self.attending.end(EndedError(_REPLACED, hint="keep one connection"))
        self.attending = Attending()
        return self.attending

    def end(self, error: FedwardError) -> None:
        """The session is over."""
        self.ended = self.ended or error
        if self.attending is not None:
            self.attending.end(error)

    def check(self) -> None:
        """Return while the session goes on.

        Raises:
            FedwardError: why it is over.
        """
        if self.ended is not None:
            raise self.ended

    def issue(self, task: Task) -> tuple[bytes, Signed]:
        """A signed message that asks for a task, and its id; a new one each time."""
        signed = self.wire.large(
            kinds.TASK,
            study=task.study,
            run=task.run,
            round=task.round,
            action=task.action,
            body_sha256=task.body.sha256,
            body_size=task.body.size,
            encoding=task.encoding,
            plain_size=task.plain_size or task.body.size,
        )
        name = message_id(signed)
        self._issued[name] = task
        if len(self._issued) > _MOST_TASKS:
            self._issued.popitem(last=False)
        return name, signed

    def issued(self, name: bytes) -> Task | None:
        """The task that a message of this session asked for."""
        return self._issued.get(name)


class Sessions:
    """The sessions of all sites."""

    def __init__(self) -> None:
        self._by_site: dict[str, SiteSession] = {}
        self._halves: dict[str, deque[bytes]] = {}

    def begin(self, session: SiteSession) -> None:
        """A site greeted: the session takes the place of its older one."""
        older = self._by_site.get(session.peer.name)
        if older is not None:
            older.end(EndedError(_REPLACED, hint="greet again if this one should go on"))
        self._by_site[session.peer.name] = session

    def fresh_half(self, site: str, half: bytes) -> None:
        """Note a site's half of a session's name.

        Raises:
            LinkError: it was used before: the greeting is a recorded one.
        """
        seen = self._halves.setdefault(site, deque(maxlen=_REMEMBERED))
        if half in seen:
            raise LinkError("a greeting was here before", hint="greet with a new nonce")
        seen.append(half)

    def of(self, peer: Peer, name: bytes) -> SiteSession:
        """The session that a call names.

        Raises:
            SessionError: the peer has no such session, or it is over.
        """
        session = self._by_site.get(peer.name)
        if session is None or session.wire.name != name:
            raise SessionError("a call of no current session", hint="greet the server first")
        if session.peer.key != peer.key:
            raise IdentityError("a session belongs to another key", hint="greet the server again")
        session.check()
        return session

    def everyone(self) -> list[SiteSession]:
        """All sessions that go on."""
        return [session for session in self._by_site.values() if session.ended is None]

    def wake(self, site: str) -> None:
        """Tell a site's stream that there is something to say."""
        session = self._by_site.get(site)
        if session is not None and session.attending is not None:
            session.attending.wake.set()
