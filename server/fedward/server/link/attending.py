"""`Attend`: a site beats, the server notices. One waiting coroutine for each site, nothing else.

The first notice of a stream names every task that waits for the site; later ones only what is new.
A notice is sent at once when something changes, else once in a heartbeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from fedward.common.errors import FedwardError
from fedward.common.wire.link_pb2 import Beat, Notice
from fedward.server.link.desk import Desk
from fedward.server.link.door import Context, Door
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.peers import Peer
from fedward.server.link.presence import Presence
from fedward.server.link.refusals import SessionError, SilenceError
from fedward.server.link.sessions import Attending, SiteSession
from fedward.server.link.tasks import Task

Told = tuple[bytes, Task]
"""Id of the message that asked for a task, and the task."""
MISSED_BEATS = 3
"""After how many heartbeats without one a site is taken for gone."""


class Attendance:
    """Answers `Attend`.

    Args:
        door: holds the sessions.
        mailbox: what waits for whom.
        presence: told who comes and goes.
        desk: knows what is offered to a site.
        heartbeat_s: how often a site beats.
    """

    def __init__(
        self, door: Door, mailbox: Mailbox, presence: Presence, desk: Desk, *, heartbeat_s: float
    ) -> None:
        self._door = door
        self._mailbox = mailbox
        self._presence = presence
        self._desk = desk
        self._heartbeat_s = heartbeat_s

    async def attend(self, peer: Peer, beats: AsyncIterator[Beat], context: Context) -> None:
        """Hold a stream until it ends.

        Raises:
            FedwardError: why the server ends it.
        """
        first = await self._next(beats)
        if first is None:
            return
        session = self._door.sessions.of(peer, first.session)
        attending = session.attend()
        token = self._presence.arrived(peer.name, session.software)
        reader = asyncio.ensure_future(self._read(session, attending, beats))
        reason = "the connection was lost"
        try:
            await self._write(session, attending, reader, context)
            reason = "the site closed the connection"
        except FedwardError as error:
            reason = error.problem
            raise
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, FedwardError):
                await reader
            self._presence.left(peer.name, token, reason)

    async def _next(self, beats: AsyncIterator[Beat]) -> Beat | None:
        try:
            async with asyncio.timeout(MISSED_BEATS * self._heartbeat_s):
                return await anext(beats, None)
        except TimeoutError as error:
            raise SilenceError("no heartbeat", hint="connect again") from error

    async def _read(
        self, session: SiteSession, attending: Attending, beats: AsyncIterator[Beat]
    ) -> None:
        """Take beats; returns when the site ends the stream."""
        try:
            while (beat := await self._next(beats)) is not None:
                if beat.session != session.wire.name:
                    raise SessionError("a beat of another session", hint="greet the server again")
                self._presence.seen(session.peer.name)
        except FedwardError as error:
            attending.end(error)
        finally:
            attending.wake.set()

    async def _write(
        self,
        session: SiteSession,
        attending: Attending,
        reader: asyncio.Future[None],
        context: Context,
    ) -> None:
        """Send notices; returns when the site ended the stream."""
        number, told = 0, dict[str, Told]()
        while True:
            attending.wake.clear()
            if attending.ended is not None:
                raise attending.ended
            if reader.done():
                return
            self._door.peers.check(session.peer)
            number += 1
            await context.write(self._notice(session, number, told))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await attending.wake.wait()

    def _notice(self, session: SiteSession, number: int, told: dict[str, Told]) -> Notice:
        """What is new since the last notice of this stream.

        Args:
            session: of the site.
            number: of this notice.
            told: tasks that the site was told of, by key; is brought up to date.
        """
        site = session.peer.name
        notice = Notice(
            number=number,
            roster_version=self._door.peers.roster.version,
            studies_version=self._desk.studies_version(site),
        )
        # The same question may be closed and asked again between two notices: it is another task.
        for key in [key for key, (_, task) in told.items() if self._mailbox.find(key) is not task]:
            notice.closed.append(told.pop(key)[0])
        for task in self._mailbox.waiting(site):
            if task.key not in told:
                name, signed = session.issue(task)
                told[task.key] = (name, task)
                notice.tasks.append(signed)
        return notice
