"""The door of every call: who calls, within which limits, and how a refusal is told and noted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import grpc

from fedward.common.errors import FedwardError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.message import message_id, peek
from fedward.common.wire.session import Session
from fedward.server.link.knocks import Knocks
from fedward.server.link.peers import Allowance, Peer, Peers, claimed
from fedward.server.link.refusals import EndedError, Refusals, status_of, told
from fedward.server.link.sessions import Sessions, SiteSession

Context = grpc.aio.ServicerContext[Any, Any]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Door:
    """What all calls pass.

    Args:
        peers: tells who is calling.
        allowance: counts their calls.
        refusals: notes refusals.
        knocks: counts who comes.
        threads: where everything that waits for a disk or a database runs.
    """

    def __init__(
        self,
        peers: Peers,
        allowance: Allowance,
        refusals: Refusals,
        knocks: Knocks,
        threads: Executor,
    ) -> None:
        self.peers = peers
        self.sessions = Sessions()
        self._allowance = allowance
        self._refusals = refusals
        self._knocks = knocks
        self._threads = threads

    @asynccontextmanager
    async def entered(self, context: Context) -> AsyncIterator[Peer]:
        """Admit a call; a refusal inside ends it with a status and its words."""
        name = ""
        self._knocks.called(context.peer())
        try:
            peer = self.peers.admit(context)
            name = peer.name
            with self._allowance.one_call(name):
                yield peer
        except FedwardError as error:
            name = name or claimed(context)
            if not isinstance(error, EndedError):
                self._note(error, peer=context.peer(), name=name)
            await context.abort(status_of(error), str(error))

    def task_done(self, peer: Peer) -> None:
        """A reply that was asked for is here; see `Allowance.give_back`."""
        self._allowance.give_back(peer.name)

    def asks(self, peer: Peer, kind: str) -> None:
        """Count a question; see `Allowance.one_question`.

        Raises:
            BusyError: it is one too many of its kind.
        """
        self._allowance.one_question(peer.name, kind)

    def session(self, peer: Peer, message: Signed) -> SiteSession:
        """The session that a signed message names.

        Raises:
            SessionError: there is none of that name.
            LinkError: the message has no header.
        """
        return self.sessions.of(peer, peek(message).session)

    def refuse(self, peer: Peer, wire: Session, question: Signed, error: FedwardError) -> Signed:
        """Note a refusal, and say it in a signed message."""
        self._note(error, peer=peer.address, name=peer.name)
        return wire.small(kinds.REFUSAL, told(error), reply_to=message_id(question))

    def _note(self, error: FedwardError, *, peer: str, name: str) -> None:
        self._refusals.note(str(error), peer=peer, name=name, error=type(error).__name__)

    async def aside(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function that waits, in a thread of its own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
