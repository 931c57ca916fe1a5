"""`Fetch` and `Send`: bodies in chunks, from an offset on. Never more than a chunk in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from fedward.common.errors import FedwardError, IdentityError, LinkError, StateError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Header, Range, Signed
from fedward.common.wire.message import message_id
from fedward.common.wire.pieces import Piece
from fedward.common.wire.spool import Incoming
from fedward.server.link.door import Context, Door
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.peers import Peer
from fedward.server.link.reading import Reading
from fedward.server.link.refusals import EndedError, SessionError, SilenceError
from fedward.server.link.sessions import SiteSession
from fedward.server.link.tasks import Task

SILENCE_S = 60.0
"""How long a transfer may stand still before it is given up; it can be resumed."""
_NOT_TO_BE_SIGNED = (EndedError, IdentityError, SessionError, SilenceError)
"""Refusals of somebody with whom we have no session any more, or who does not listen."""
_HINT = "check that both sides run the same version of fedward"
_T = TypeVar("_T")


class Transfers:
    """Answers `Fetch` and `Send`, and where a reply should go on.

    Args:
        door: holds the sessions.
        mailbox: holds tasks and takes replies.
        silence_s: how long a transfer may stand still.
    """

    def __init__(self, door: Door, mailbox: Mailbox, *, silence_s: float = SILENCE_S) -> None:
        self._door = door
        self._mailbox = mailbox
        self._silence_s = silence_s
        self._reading = Reading()
        self._receiving: dict[str, asyncio.Task[Any]] = {}
        self.received = 0
        """Bytes of replies that came in, since the service began."""
        self.sent = 0
        """Bytes of tasks that went out."""

    # --- from us ----------------------------------------------------------------------------------

    async def fetch(self, peer: Peer, request: Range, context: Context) -> None:
        """Send a task's body.

        Raises:
            FedwardError: the site may not have it, or does not take it.
        """
        session = self._door.sessions.of(peer, request.session)
        task = self._wanted(session, request.message)
        if request.offset > task.body.size:
            raise LinkError("a transfer begins behind its end", hint="begin again")
        with ExitStack() as stack:
            try:
                file = stack.enter_context(self._reading.opened(task.body.path))
            except OSError as error:
                raise StateError(f"{task.work} is closed", hint="wait for the next task") from error
            position = request.offset
            while position < task.body.size:
                piece, length = self._reading.piece(task.body.path, file, position)
                if not length:
                    raise StateError("a task's body is cut off", hint="see what became of its disk")
                session.check()
                self._door.peers.check(peer)
                await self._soon(context.write(piece))
                position += length
                self.sent += length

    def _wanted(self, session: SiteSession, name: bytes) -> Task:
        task = session.issued(name)
        if task is None:
            raise LinkError("that task was not given in this session", hint="wait for a notice")
        if self._mailbox.find(task.key) is None:
            raise StateError(f"{task.work} is closed", hint="wait for the next task")
        return task

    # --- to us ------------------------------------------------------------------------------------

    def offset(
        self, session: SiteSession, header: Header, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Answer the question where a reply should go on.

        The question's header says to which task, its body `sha256` and `size` of the reply.

        Raises:
            FedwardError: nobody waits for it.
        """
        task = self._task(session, header)
        try:
            sha256, size = bytes.fromhex(body["sha256"]), int(body["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise LinkError("a question does not say about what", hint=_HINT) from error
        return {"offset": self._mailbox.offset(task.key, sha256=sha256, size=size)}

    async def send(self, peer: Peer, parts: AsyncIterator[Piece | Signed]) -> Signed:
        """Take a reply and give a receipt, or say why not.

        Raises:
            FedwardError: it is not of a site that may send it, or nothing comes.
        """
        first = await self._soon(anext(parts, None))
        if not isinstance(first, Signed):
            raise LinkError("a reply does not begin with its header", hint=_HINT)
        session = self._door.session(peer, first)
        header = session.wire.open(first)
        try:
            task = self._task(session, header)
            if header.kind != kinds.REPLY:
                raise LinkError("only replies are sent in parts", hint=_HINT)
            await self._receive(session, task, header, first, parts)
        except _NOT_TO_BE_SIGNED:
            raise
        except FedwardError as error:
            return self._door.refuse(peer, session.wire, first, error)
        return self._receipt(session, task, header, message_id(first))

    async def _receive(
        self,
        session: SiteSession,
        task: Task,
        header: Header,
        message: Signed,
        parts: AsyncIterator[Piece | Signed],
    ) -> None:
        await self._alone(task.key)
        try:
            incoming = await self._door.aside(self._mailbox.begin_reply, task.key, header)
            if incoming is None:
                return
            try:
                await self._chunks(session, task, header, incoming, parts)
                incoming.finish()
            finally:
                incoming.close()
            evidence = message.SerializeToString()
            if await self._door.aside(self._mailbox.accept, task.key, header, evidence):
                self._door.task_done(session.peer)
        finally:
            if self._receiving.get(task.key) is asyncio.current_task():
                del self._receiving[task.key]

    async def _alone(self, key: str) -> None:
        """Take the place of an older transfer of the same reply, whose connection may be dead."""
        mine = asyncio.current_task()
        while (older := self._receiving.get(key)) is not None and older is not mine:
            older.cancel()
            await asyncio.wait([older])
        if mine is not None:
            self._receiving[key] = mine

    async def _chunks(
        self,
        session: SiteSession,
        task: Task,
        header: Header,
        incoming: Incoming,
        parts: AsyncIterator[Piece | Signed],
    ) -> None:
        while incoming.offset < header.body_size:
            part = await self._soon(anext(parts, None))
            if part is None:
                return
            session.check()
            self._door.peers.check(session.peer)
            if not isinstance(part, Piece) or not part.data:
                raise LinkError("a reply has an empty piece", hint=_HINT)
            if self._mailbox.find(task.key) is None:
                raise StateError(f"{task.work} is closed", hint="wait for the next task")
            incoming.write(part.offset, part.data)
            self.received += len(part.data)
            del part  # not held while the next is waited for

    def _task(self, session: SiteSession, header: Header) -> Task:
        """The task that a reply answers.

        Raises:
            LinkError: it says another than it answers.
            StateError: nobody waits for such a reply.
        """
        site = session.peer.name
        task = session.issued(header.reply_to) or self._mailbox.match(
            site=site, run=header.run, round_number=header.round, action=header.action
        )
        if task is None:
            raise StateError(
                f"{header.action} in round {header.round} of run {header.run} is closed",
                hint="wait for the next task",
            )
        asked = (task.site, task.study, task.run, task.round, task.action)
        if asked != (site, header.study, header.run, header.round, header.action):
            raise LinkError(f"a reply to {task.work} says it is to something else", hint=_HINT)
        return task

    @staticmethod
    def _receipt(session: SiteSession, task: Task, header: Header, name: bytes) -> Signed:
        body = {"task": task.key, "round": task.round, "body": header.body_sha256.hex()}
        return session.wire.small(
            kinds.RECEIPT,
            body,
            study=task.study,
            run=task.run,
            round=task.round,
            action=task.action,
            reply_to=name,
        )

    async def _soon(self, step: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._silence_s):
                return await step
        except TimeoutError as error:
            raise SilenceError("a transfer stands still", hint="go on where it stopped") from error
