"""The service of the link: five calls, each through the same door.

A peer that may not call, or calls outside a session, gets a gRPC status with words; within a
session a refusal is a signed message. Every refusal is noted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from fedward.common.errors import FedwardError, LinkError
from fedward.common.statements import claims
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Beat, Header, Range, Signed
from fedward.common.wire.link_pb2_grpc import LinkServicer, add_LinkServicer_to_server
from fedward.common.wire.message import message_id, unpack
from fedward.common.wire.pieces import Piece, read_part
from fedward.common.wire.transport import SERVICE
from fedward.server.link.attending import Attendance
from fedward.server.link.desk import Desk, Question
from fedward.server.link.door import Context, Door
from fedward.server.link.greeting import Greeting
from fedward.server.link.peers import Peer
from fedward.server.link.sessions import SiteSession
from fedward.server.link.transfers import Transfers

_Method = Callable[[Question], dict[str, Any]]


class LinkService(LinkServicer):
    """Answers the calls of `link.proto`; each method is one of them.

    Args:
        door: that every call passes.
        greeting: answers `Greet`.
        attendance: answers `Attend`.
        transfers: answers `Fetch` and `Send`.
        desk: answers what `Call` asks.
    """

    def __init__(
        self,
        door: Door,
        greeting: Greeting,
        attendance: Attendance,
        transfers: Transfers,
        desk: Desk,
    ) -> None:
        self._door = door
        self._greeting = greeting
        self._attendance = attendance
        self._transfers = transfers
        self._methods: Mapping[str, _Method] = {
            kinds.STUDIES: desk.studies,
            kinds.DECIDE: desk.decide,
            kinds.RENEW: desk.renew,
            kinds.ROSTER: desk.roster,
            kinds.WITNESS: desk.witness,
        }

    async def Greet(self, request: Signed, context: Context) -> Signed:  # noqa: N802
        """Begin a session."""
        async with self._door.entered(context) as peer:
            return await self._greeting.greet(peer, request)

    async def Attend(  # noqa: N802
        self, request_iterator: AsyncIterator[Beat], context: Context
    ) -> None:
        """Be there, and be told what is waiting."""
        async with self._door.entered(context) as peer:
            await self._attendance.attend(peer, request_iterator, context)

    async def Fetch(self, request: Range, context: Context) -> None:  # noqa: N802
        """Get the body of a task."""
        async with self._door.entered(context) as peer:
            await self._transfers.fetch(peer, request, context)

    async def Send(  # noqa: N802
        self, request_iterator: AsyncIterator[Piece | Signed], context: Context
    ) -> Signed:
        """Hand in a reply."""
        async with self._door.entered(context) as peer:
            return await self._transfers.send(peer, request_iterator)

    async def Call(self, request: Signed, context: Context) -> Signed:  # noqa: N802
        """Ask something small."""
        async with self._door.entered(context) as peer:
            session = self._door.session(peer, request)
            header = session.wire.open(request)
            try:
                answer = await self._answer(peer, session, header, request)
            except FedwardError as error:
                return self._door.refuse(peer, session.wire, request, error)
            return session.wire.small(header.kind, answer, reply_to=message_id(request))

    async def _answer(
        self, peer: Peer, session: SiteSession, header: Header, request: Signed
    ) -> dict[str, Any]:
        body = unpack(request.body)
        if header.kind == kinds.PROBE:
            clock = time.time_ns() // 1_000_000
            return {"clock": clock, "roster": self._door.peers.roster.version}
        if header.kind == kinds.OFFSET:
            return self._transfers.offset(session, header, body)
        method = self._methods.get(header.kind)
        if method is None:
            raise LinkError(f"a site does not ask for {header.kind}", hint="upgrade both sides")
        if not takes_back(header.kind, body):
            self._door.asks(peer, header.kind)
        question = Question(peer.name, header.kind, body, header, request.SerializeToString())
        return await self._door.aside(method, question)


def takes_back(kind: str, body: Mapping[str, Any]) -> bool:
    """Whether a question is a decision that allows nothing: that is never one too many.

    It protects patients, and must not wait behind what a site asked before. There is no more to do
    for it than to take back what was allowed, and each approval is counted.
    """
    said = body.get("decision")
    if kind != kinds.DECIDE or not isinstance(said, str):
        return False
    try:
        return claims(said.encode()).get("choice") in ("withdraw", "refuse")
    except (FedwardError, UnicodeEncodeError):
        return False


def add_service(service: LinkService, server: grpc.aio.Server) -> None:
    """Have a server answer by it; pieces of bodies are not copied on their way through gRPC."""
    add_LinkServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    own: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Fetch": grpc.unary_stream_rpc_method_handler(
            service.Fetch, request_deserializer=Range.FromString
        ),
        "Send": grpc.stream_unary_rpc_method_handler(
            service.Send,
            request_deserializer=read_part,
            response_serializer=Signed.SerializeToString,
        ),
    }
    server.add_registered_method_handlers(SERVICE, own)
