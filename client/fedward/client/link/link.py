"""The link, seen from a hospital: one outbound connection, kept up for as long as the daemon runs.

    connect → greet → attend ─┬→ tasks: fetch, do, send (jobs)
       ↑                      ├→ a newer roster, a certificate that ends (upkeep)
       └── wait, with jitter ←┴→ silence, a broken rule, a broken connection

Guarantee:
    Only what the coordinator of the roster signed, in this session, is acted on. No failure of the
    network ends `run`; that this site was revoked does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fedward.client.link.assignments import Work
from fedward.client.link.backoff import Backoff
from fedward.client.link.connection import (
    ExpelledError,
    Line,
    open_channel,
    stub_of,
    translated,
)
from fedward.client.link.greeting import ask, greet
from fedward.client.link.jobs import Jobs
from fedward.client.link.settings import LinkSettings, LinkStatus
from fedward.client.link.transfers import tidy_inbox
from fedward.client.link.upkeep import Upkeep
from fedward.common.errors import FedwardError, LinkError
from fedward.common.files import output_error
from fedward.common.identity import Identity, Roster
from fedward.common.memory import reuse_memory
from fedward.common.wire.link_pb2 import Beat, Notice
from fedward.common.wire.session import Heads

_log = logging.getLogger(__name__)
_SILENT_BEATS = 3
_SHORTEST_BEAT_S = 0.02
_LONGEST_BEAT_S = 300.0
_KEEP_S = 7 * 86_400.0
"""How long a body of a task that was not finished stays in the inbox."""
_LOOK_BEATS = 3
"""After how many beats the certificate's dates are looked at: once a minute, as it is set."""
_RENEW_AGAIN_S = 3600.0


class Link:
    """The connection of one site to its server.

    Args:
        settings: how it behaves.
        identity: who the site is.
        roster: the newest that the site has seen.
        work: does what the server asks.
        random: gives numbers in [0, 1), for the jitter of waits.
        install: writes a renewed certificate where the next start finds it.
        heads: gives the ends of the site's logs, for every message.
        greeted: is told what the server's greeting said; may raise to refuse this server.
        now: gives the time, with its zone.
    """

    def __init__(
        self,
        settings: LinkSettings,
        identity: Identity,
        roster: Roster,
        work: Work,
        *,
        random: Callable[[], float],
        install: Callable[[str], None],
        heads: Callable[[], Heads] = Heads,
        greeted: Callable[[dict[str, Any]], None] = lambda _answer: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._work = work
        self._random = random
        self._heads = heads
        self._greeted = greeted
        self._upkeep = Upkeep(identity, roster, install=install, on_roster=work.roster, now=now)
        self._jobs = Jobs(
            work,
            settings.inbox,
            backoff=self._backoff,
            most_bytes=settings.most_bytes,
            offer_wait_s=settings.offer_wait_s,
        )
        self._heartbeat_s = settings.heartbeat_s
        self._line: Line | None = None
        self._connected = asyncio.Event()
        self._stale = asyncio.Event()
        self._since, self._heard, self._skew_s, self._problem = time.time(), 0.0, 0.0, "not yet"
        self._studies_version = -1

    @property
    def status(self) -> LinkStatus:
        """How it is going."""
        return LinkStatus(
            self._line is not None,
            self._since,
            self._heard,
            self._problem,
            self._skew_s,
            len(self._jobs),
            self._jobs.received,
            self._jobs.sent,
        )

    @property
    def roster(self) -> Roster:
        """The newest roster."""
        return self._upkeep.roster

    async def ask(self, kind: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Ask the server a small question, as soon as there is a connection.

        Raises:
            FedwardError: it is refused; of the class that the server names.
            LinkError: there is no connection for `patience_s`, or no answer comes.
        """
        try:
            async with asyncio.timeout(self._settings.patience_s):
                await self._connected.wait()
        except TimeoutError as error:
            raise LinkError("the server cannot be reached", hint="it is tried again") from error
        line = self._line
        if line is None:
            raise LinkError("the server cannot be reached", hint="it is tried again")
        return await ask(line, kind, body, **fields)

    def reconsider(self, study: str | None = None) -> None:
        """What is ready to be sent, for a study or all, is not, until it was asked for anew."""
        self._jobs.reconsider(study)

    async def run(self) -> None:
        """Keep the link up until cancelled.

        Raises:
            IdentityError: this site was revoked.
            OutputError: the inbox cannot be made.
        """
        reuse_memory()
        inbox = self._settings.inbox
        try:
            inbox.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise output_error(inbox, error) from error
        tidy_inbox(inbox, before=time.time() - _KEEP_S)
        tasks = [
            asyncio.create_task(self._keep_connected()),
            asyncio.create_task(self._jobs.defect()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._jobs.stop()

    async def _keep_connected(self) -> None:
        backoff = self._backoff()
        while True:
            wait_s, begin = backoff.next_s(), time.monotonic()
            try:
                await self._connect()
                wait_s = 0.0  # our own wish: a new certificate, or the server's new key
            except ExpelledError as error:
                self._lost(error)
                raise
            except FedwardError as error:
                self._lost(error)
            if time.monotonic() - begin > wait_s:
                backoff.reset()
            await asyncio.sleep(wait_s)

    def _backoff(self) -> Backoff:
        settings = self._settings
        return Backoff(
            random=self._random, first_s=settings.first_wait_s, longest_s=settings.longest_wait_s
        )

    def _lost(self, error: FedwardError) -> None:
        if error.problem != self._problem:  # once, however often it is tried
            facts = {"problem": error.problem, "hint": error.hint}
            _log.warning("the link is down", extra={"facts": facts})
        self._problem, self._since = error.problem, time.time()

    async def _connect(self) -> None:
        """One connection from its beginning to its end; returns to be made anew at once."""
        upkeep = self._upkeep
        upkeep.check_membership()
        channel = open_channel(self._settings.endpoint, upkeep.identity)
        try:
            greeting = await greet(
                stub_of(channel),
                upkeep.identity,
                upkeep.roster,
                adopt=upkeep.adopt,
                heads=self._heads,
                patience_s=self._settings.patience_s,
            )
            self._greeted(greeting.answer)
            self._skew_s = greeting.skew_s
            self._heartbeat_s = _heartbeat_s(greeting.answer, self._settings.heartbeat_s)
            await self._attend(greeting.line)
        finally:
            self._line = None
            self._connected.clear()
            self._jobs.disconnected()
            await channel.close()

    async def _attend(self, line: Line) -> None:
        """Beat, listen and keep up, until one of them ends."""
        with translated():
            call = line.stub.Attend()
        newest = [0]
        tasks = [
            asyncio.create_task(part)
            for part in (
                self._beat(line, call),
                self._listen(line, call, newest),
                self._keep_up(line, newest),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # If several ended, what the server said comes before what became of our own words.
            for task in sorted(done, key=tasks.index, reverse=True):
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _beat(self, line: Line, call: Any) -> None:
        number = 0
        while True:
            number += 1
            with translated():
                await call.write(Beat(session=line.session.name, number=number))
            await asyncio.sleep(self._heartbeat_s)

    async def _listen(self, line: Line, call: Any, newest: list[int]) -> None:
        while True:
            with translated():
                try:
                    async with asyncio.timeout(_SILENT_BEATS * self._heartbeat_s):
                        notice = await call.read()
                except TimeoutError as error:
                    raise LinkError("the server fell silent", hint="it is greeted again") from error
            if not isinstance(notice, Notice):
                raise LinkError("the server ended the connection", hint="it is greeted again")
            self._take(line, notice, newest)

    def _take(self, line: Line, notice: Notice, newest: list[int]) -> None:
        self._heard = time.time()
        if self._line is None:
            self._line, self._problem, self._since = line, "", self._heard
            self._connected.set()
            self._jobs.connected(line)
            _log.info("the link is up", extra={"facts": {"server": line.session.peer}})
        self._jobs.close(notice.closed)
        for signed in notice.tasks:
            self._jobs.offer(line, signed)
        if notice.roster_version > max(newest[0], self._upkeep.roster.version):
            newest[0] = notice.roster_version
            self._stale.set()
        if notice.studies_version != self._studies_version:
            self._studies_version = notice.studies_version
            self._work.studies_changed()

    async def _keep_up(self, line: Line, newest: list[int]) -> None:
        """Ask for what is newer; returns when a new certificate asks for a new connection."""
        upkeep, again_at = self._upkeep, time.monotonic()
        while True:
            if upkeep.renewal_due and time.monotonic() >= again_at:
                again_at = time.monotonic() + _RENEW_AGAIN_S
                try:
                    await upkeep.renew(line)
                except FedwardError as error:
                    _log.warning("no new certificate", extra={"facts": {"problem": error.problem}})
                else:
                    return
            if newest[0] > upkeep.roster.version:
                server = upkeep.roster.coordinator.fingerprint
                await upkeep.fetch_roster(line)
                upkeep.check_membership()
                if upkeep.roster.coordinator.fingerprint != server:
                    return  # the server has a new key: greet it again
            self._stale.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_BEATS * self._heartbeat_s):
                    await self._stale.wait()


def _heartbeat_s(answer: dict[str, Any], otherwise: float) -> float:
    """The server's rhythm, if it is a sensible one: notices come in it."""
    given = answer.get("heartbeat_s")
    if isinstance(given, int | float) and _SHORTEST_BEAT_S <= given <= _LONGEST_BEAT_S:
        return float(given)
    return otherwise
