"""`fedward server run`: one process that serves the link, supervises runs and shows how it is.

Commands change the consortium's folder and registry without asking the service; it notices within a
second. It renews its own certificate in time. When its key is replaced by `rotate`, it takes up the
new one: runs pause between two rounds, and go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from fedward.common.audit import AuditLog
from fedward.common.audit.caused import Caused
from fedward.common.errors import FedwardError
from fedward.common.files import read_bytes
from fedward.common.identity import Identity
from fedward.common.lock import held
from fedward.common.monitoring.endpoint import Endpoint
from fedward.common.monitoring.health import Health, disk_room, not_expired
from fedward.common.notify import Notifier
from fedward.server.authority import Registrar
from fedward.server.carrier import LinkCarrier
from fedward.server.conductor import Conductor, Hooks
from fedward.server.desk import Desk
from fedward.server.execution import SPOOL
from fedward.server.home import ConsortiumFolder
from fedward.server.link.handshakes import listening
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.peers import Limits
from fedward.server.link.presence import Presence
from fedward.server.link.refusals import Facts
from fedward.server.link.serve import LinkServer, LinkSettings
from fedward.server.monitoring import ServerMetrics
from fedward.server.patience import Patience
from fedward.server.registry import Registry, State
from fedward.server.release import Releaser
from fedward.server.status import StatusFile

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often status and certificate are looked at."""
_RENEW_BELOW = 1 / 3
"""Share of its lifetime below which the server's certificate is renewed."""
_RENEW_AGAIN_S = 3600.0


@dataclass(frozen=True)
class Options:
    """How the service is run, beside what `server.toml` says.

    Attributes:
        passphrase: of the key files.
        started: is told the port once the service answers.
        own_process: whether this process does nothing else, so that signals end the service and
            refused handshakes are read from its standard error stream.
        patience: with sites that are away.
    """

    passphrase: str | None = None
    started: Callable[[int], None] = lambda _port: None
    own_process: bool = False
    patience: Patience | None = None


async def serve(
    folder: ConsortiumFolder, options: Options, stop: asyncio.Event | None = None
) -> None:
    """Serve until told to stop.

    Args:
        folder: of the consortium.
        options: see there.
        stop: ends the service; a signal does too if this is its own process.

    Raises:
        StateError: another service holds the folder.
        FedwardError: the service cannot be set up.
    """
    stop = stop or asyncio.Event()
    with (
        held(folder.lock, who="a server"),
        Registry.open(folder.database) as registry,
        ExitStack() as stack,
    ):
        audit = stack.enter_context(folder.open_audit_log(options.passphrase))
        if options.own_process:
            stack.enter_context(_signals(stop))
        audit.append("service started")
        while not stop.is_set():
            await Service(folder, options, registry, audit).run(stop)
        audit.append("service stopped")


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGTERM, signal.SIGINT)
    for number in wanted:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


class Service:
    """Everything that one key of the server serves with.

    Args:
        folder: of the consortium.
        options: see there.
        registry: open.
        audit: open.
    """

    def __init__(
        self, folder: ConsortiumFolder, options: Options, registry: Registry, audit: AuditLog
    ) -> None:
        self._folder = folder
        self._options = options
        self._registry = registry
        self._audit = audit
        self._identity = folder.load_identity(options.passphrase)
        self._roster = folder.load_roster()
        self._registrar = Registrar.open(folder.path, options.passphrase)
        self._presence = Presence()
        self._metrics = ServerMetrics()
        self._metrics.certificate("server", self._identity.certificate.not_after)
        self._last_round: dict[str, float] = {}
        self._renew_at = 0.0
        self._caused = Caused(audit, on_left_out=self._metrics.left_out)
        self._desk = Desk(
            registry,
            roster=self._roster,
            audit=audit,
            caused=self._caused,
            renew=self._registrar.renew,
        )
        self._mailbox = Mailbox(lambda run: folder.run(run) / SPOOL)
        self._link = self._make_link()
        self._conductor = self._make_conductor()
        self._notifier = Notifier()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until told to stop, or until the server's key is another."""
        async with AsyncExitStack() as stack:
            stack.callback(self._caused.close)
            port = await self._link.start()
            stack.push_async_callback(self._link.stop)
            if self._options.own_process:
                stack.enter_context(listening(self._link.refusals))
            status = StatusFile(self._folder.status, pid=os.getpid(), port=port)
            stack.callback(status.ended)
            stack.push_async_callback(asyncio.to_thread, self._conductor.close)
            await asyncio.to_thread(self._conductor.start)
            await self._monitor(stack)
            self._options.started(port)
            self._notifier.ready(f"listening on port {port}")
            logger.info("the service is up", extra={"facts": {"port": port}})
            beat = asyncio.create_task(self._notifier.keep_alive(lambda: self._conductor.alive))
            stack.callback(beat.cancel)
            while not stop.is_set() and not await asyncio.to_thread(self._look, status):
                await _first(stop, LOOK_S)
            if stop.is_set():
                self._notifier.stopping()
            logger.info("the service ends", extra={"facts": {"for_good": stop.is_set()}})

    # --- what it is made of -----------------------------------------------------------------------

    def _make_link(self) -> LinkServer:
        settings = self._folder.settings
        limits = settings.limits
        return LinkServer(
            LinkSettings(
                name=self._identity.name,
                key=self._identity.key,
                certificate_pem=self._identity.chain_pem.decode(),
                root_pem=self._identity.root_pem.decode(),
                roster=self._roster.current,
                host=settings.server.listen,
                port=settings.server.port,
                heartbeat_s=settings.link.heartbeat_s,
                limits=Limits(
                    calls_at_once=limits.streams_per_site, calls_per_s=limits.messages_per_s
                ),
            ),
            mailbox=self._mailbox,
            presence=self._presence,
            desk=self._desk,
            on_refusal=self._refused,
        )

    def _make_conductor(self) -> Conductor:
        folder = self._folder
        carrier = LinkCarrier(
            self._mailbox,
            self._presence,
            absence_s=folder.settings.link.absence_s,
            folder_for_run=folder.run,
        )
        return Conductor(
            self._registry,
            roster=self._roster,
            audit=self._audit,
            carrier=carrier,
            folder_for_run=folder.run,
            release=Releaser(
                self._registry,
                self._roster,
                self._audit,
                self._identity.name,
                self._identity.key,
                folder.run,
            ),
            hooks=Hooks(
                roster_changed=lambda: self._link.use_roster(self._roster.current),
                offers_changed=self._tell_sites,
                heads_seen=self._desk.remember,
                round_done=self._round_done,
                round_failed=self._metrics.round_failed,
                defect=self._metrics.defect,
            ),
            patience=self._options.patience,
        )

    async def _monitor(self, stack: AsyncExitStack) -> None:
        settings = self._folder.settings.monitoring
        if not settings.port:
            return
        endpoint = Endpoint(
            self._metrics.registry, self._health(), host=settings.address, port=settings.port
        )
        await endpoint.start()
        stack.push_async_callback(endpoint.stop)

    def _health(self) -> Health:
        def registry() -> None:
            self._registry.sites()

        def conductor() -> str | None:
            return None if self._conductor.alive else "the conductor ended"

        return Health(
            {
                "registry": registry,
                "conductor": conductor,
                "disk": disk_room(self._folder.path),
                "certificate": not_expired(lambda: self._identity.certificate.not_after),
            }
        )

    # --- what happens -----------------------------------------------------------------------------

    def _tell_sites(self) -> None:
        if self._desk.refresh():
            self._link.studies_changed()

    def _refused(self, facts: Facts) -> None:
        self._metrics.refused(str(facts["error"]), times=int(str(facts.get("times", 1))))
        self._caused.append("refusal", by=str(facts["name"]), **facts)

    def _round_done(self, run: str, _number: int) -> None:
        now = time.monotonic()
        before = self._last_round.get(run)
        self._last_round[run] = now
        self._metrics.round_done(None if before is None else now - before)

    def _look(self, status: StatusFile) -> bool:
        """Write how it is; take up a new certificate. True if the server's key is another."""
        try:
            runs = self._registry.runs(*(state for state in State if state.active))
            by_state = self._registry.runs_by_state()
            active = self._conductor.active_sites
            there = self._presence.snapshot()
            self._metrics.sites({a.site for a in there if a.connected}, active)
            self._metrics.moved(*self._link.moved)
            self._metrics.runs({state.value: by_state.get(state, 0) for state in State})
            status.write(
                roster=self._roster.current.version,
                sites=there,
                enrolled=active,
                runs=runs,
                waiting=self._conductor.waiting,
                certificate_until=self._identity.certificate.not_after,
            )
            return self._look_at_certificate()
        except FedwardError as error:
            logger.error("looking failed", extra={"facts": {"error": str(error)}})
            return False

    def _look_at_certificate(self) -> bool:
        if read_bytes(self._folder.server_certificate) != self._identity.chain_pem:
            found = self._folder.load_identity(self._options.passphrase)
            if found.key.public != self._identity.key.public:
                return True
            self._use(found)
        elif self._expires_soon() and time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + _RENEW_AGAIN_S
            self._registrar.renew_server()
            self._use(self._folder.load_identity(self._options.passphrase))
            if not self._expires_soon():  # it does if the issuer's own end is near
                self._renew_at = 0.0
        return False

    def _expires_soon(self) -> bool:
        certificate = self._identity.certificate
        left = (certificate.not_after - datetime.now(UTC)).total_seconds()
        lifetime = (certificate.not_after - certificate.not_before).total_seconds()
        return left < _RENEW_BELOW * lifetime

    def _use(self, identity: Identity) -> None:
        self._identity = identity
        self._link.use_certificate(identity.chain_pem.decode())
        self._metrics.certificate("server", identity.certificate.not_after)
        logger.info("a new certificate is used")


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
