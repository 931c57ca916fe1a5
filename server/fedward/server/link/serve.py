"""The service as a whole: one port with mutual TLS, the calls of the link, and a health check.

server = LinkServer(settings, mailbox=mailbox, presence=presence, desk=desk)
port = await server.start()
server.use_roster(newer)          # at once, also for those who are connected
server.use_certificate(pem)       # for the connections to come
await server.stop()
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from fedward.common.errors import FedwardError, LinkError
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.roster import Roster
from fedward.common.memory import reuse_memory
from fedward.common.wire.transport import server_options
from fedward.server.link.attending import Attendance
from fedward.server.link.desk import Desk
from fedward.server.link.door import Door
from fedward.server.link.greeting import Greeting
from fedward.server.link.health import Health
from fedward.server.link.knocks import Knocks
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.peers import Allowance, Limits, Peers
from fedward.server.link.presence import Presence
from fedward.server.link.refusals import EndedError, Facts, OnRefusal, Refusals
from fedward.server.link.service import LinkService, add_service
from fedward.server.link.transfers import SILENCE_S, Transfers

_THREADS = 16
_WANTED_FILES = 65_536


@dataclass(frozen=True)
class LinkSettings:
    """How the service is set up.

    Attributes:
        name: of the server, in the roster.
        key: of the server.
        certificate_pem: of the server, with its issuer's behind it.
        root_pem: certificate of the consortium's root.
        roster: the newest.
        host: address to listen at.
        port: 0 for any that is free.
        heartbeat_s: how often a site beats.
        limits: of each member.
        silence_s: how long a transfer may stand still.
        grace_s: how long calls may go on when the service stops.
    """

    name: str
    key: PrivateKey = field(repr=False)
    certificate_pem: str
    root_pem: str
    roster: Roster
    host: str = "127.0.0.1"
    port: int = 0
    heartbeat_s: float = 10.0
    limits: Limits = field(default_factory=Limits)
    silence_s: float = SILENCE_S
    grace_s: float = 2.0


class LinkServer:
    """The server's end of the link.

    Args:
        settings: see there.
        mailbox: where runs and sites meet.
        presence: is told who comes and goes.
        desk: answers the sites' small questions.
        on_refusal: is given the facts of each refusal, one at a time, in a thread of its own.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        mailbox: Mailbox,
        presence: Presence,
        desk: Desk,
        on_refusal: OnRefusal = lambda _facts: None,
    ) -> None:
        self._settings = settings
        self._mailbox = mailbox
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="link")
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="refusals")
        self._refusals = Refusals(self._later(on_refusal))
        self._peers = Peers(settings.roster)
        self._knocks = Knocks(self._refusals)
        allowance = Allowance(settings.limits)
        self._door = Door(self._peers, allowance, self._refusals, self._knocks, self._threads)
        self._health = Health(self._door)
        beat = settings.heartbeat_s
        self._transfers = Transfers(self._door, mailbox, silence_s=settings.silence_s)
        self._service = LinkService(
            self._door,
            Greeting(settings.name, settings.key, self._door, desk, heartbeat_s=beat),
            Attendance(self._door, mailbox, presence, desk, heartbeat_s=beat),
            self._transfers,
            desk,
        )
        self._newer: deque[grpc.ServerCertificateConfiguration] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def _later(self, on_refusal: OnRefusal) -> OnRefusal:
        def hand_over(facts: Facts) -> None:
            self._clerk.submit(on_refusal, facts)

        return hand_over

    def _configuration(self, certificate_pem: str) -> grpc.ServerCertificateConfiguration:
        pair = (self._settings.key.pem, certificate_pem.encode())
        return grpc.ssl_server_certificate_configuration([pair], self._settings.root_pem.encode())

    @property
    def refusals(self) -> Refusals:
        """Where refusals are noted; for `handshakes.listening`."""
        return self._refusals

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes of bodies that came in, and that went out."""
        return self._transfers.received, self._transfers.sent

    async def start(self) -> int:
        """Listen; gives the port.

        Raises:
            LinkError: the port is taken, or not ours to take.
        """
        allow_many_files()
        reuse_memory()
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._server = grpc.aio.server(options=server_options())
        add_service(self._service, self._server)
        add_HealthServicer_to_server(self._health, self._server)
        credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(settings.certificate_pem),
            self._newer_certificate,  # type: ignore[arg-type]  # may give None, the stubs do not know
            True,
        )
        where = f"{settings.host}:{settings.port}"
        try:
            port = self._server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise LinkError(
                f"cannot listen at {where}", hint="see who uses the port, or choose another"
            ) from error
        self._unsubscribe = self._mailbox.subscribe(self._something_for)
        await self._server.start()
        self._watch = asyncio.create_task(self._knocks.watch())
        return int(port)

    async def stop(self) -> None:
        """End every connection and every thread."""
        self._health.serving = False
        self._unsubscribe()
        if self._watch is not None:
            self._watch.cancel()
        for session in self._door.sessions.everyone():
            session.end(EndedError("the server stops", hint="connect again in a while"))
        if self._server is not None:
            await self._server.stop(self._settings.grace_s)
        self._refusals.flush()
        await asyncio.to_thread(self._clerk.shutdown)
        await asyncio.to_thread(self._threads.shutdown)

    def use_certificate(self, certificate_pem: str) -> None:
        """Show another certificate for the same key from now on; connections that are open stay."""
        self._newer.append(self._configuration(certificate_pem))

    def _newer_certificate(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake, in a thread of gRPC's; None if nothing changed.

        Only a change may be told: gRPC (1.85) makes everything anew each time it is given one, and
        does not keep other handshakes from what it throws away.
        """
        self._knocks.begun()
        try:
            return self._newer.popleft()
        except IndexError:
            return None

    def use_roster(self, roster: Roster) -> None:
        """Judge by another roster from now on; who is revoked in it is disconnected at once.

        May be called from any thread.

        Raises:
            IdentityError: it is older than the one in use.
        """
        self._peers.use(roster)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._judge_again)

    def studies_changed(self) -> None:
        """Tell all connected sites at once to look what is offered. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_all)

    def _judge_again(self) -> None:
        for session in self._door.sessions.everyone():
            try:
                self._peers.check(session.peer)
            except FedwardError as error:
                session.end(error)
        self._wake_all()

    def _wake_all(self) -> None:
        for session in self._door.sessions.everyone():
            self._door.sessions.wake(session.peer.name)

    def _something_for(self, site: str) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._door.sessions.wake, site)


def allow_many_files() -> None:
    """Raise our own limit of open files as far as we may: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
