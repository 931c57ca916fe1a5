"""Follows each task from its offer to its receipt, over as many connections as that takes.

A task is known by its key, which is the same in every session: offered again after a break, it
goes on where it was; a reply that exists is sent again and never made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fedward.client.link.assignments import Offer, Work, read_offer
from fedward.client.link.backoff import Backoff
from fedward.client.link.connection import Line
from fedward.client.link.transfers import Outgoing, Room, fetch, inbox_files, send
from fedward.common import records
from fedward.common.errors import FedwardError, LinkError, OutputError, StateError
from fedward.common.wire import kinds
from fedward.common.wire.body import Content, write_body
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.message import message_id

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_REFUSAL_SUFFIX = ".refusal"
MOST_TASKS = 32
"""In hand at a time, of all runs: each may have its body on this site's disk."""
_AT_ONCE = 6
"""Transfers at a time; the server allows a few more calls than that."""
_REMEMBERED = 1024
"""Ids of messages that are known again: as far as a session lets messages overtake each other."""
_NOT_ASKED_AGAIN_S = 3600.0
"""How long a task that is not offered any more is remembered: it is done again from its key."""


@dataclass(eq=False)
class _Job:
    line: Line
    offer: Offer
    offered: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    working: bool = False
    reply: Path | None = None
    task: asyncio.Task[None] | None = None
    again: Offer | None = None


class Jobs:
    """The tasks in hand; only for the event loop.

    Args:
        work: does them.
        inbox: folder for the bodies of tasks.
        backoff: makes the waits between attempts.
        most_bytes: of the largest body that is accepted.
        offer_wait_s: how long a reply waits to be asked for again after a break.
    """

    def __init__(
        self,
        work: Work,
        inbox: Path,
        *,
        backoff: Callable[[], Backoff],
        most_bytes: int,
        offer_wait_s: float,
    ) -> None:
        self._work = work
        self._inbox = inbox
        self._backoff = backoff
        self._most_bytes = most_bytes
        self._offer_wait_s = offer_wait_s
        self.received = 0
        """Bytes of tasks that were fetched, since the daemon began."""
        self.sent = 0
        """Bytes of replies that were sent."""
        self._line: Line | None = None
        self._up = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: BaseException | None = None
        self._moving = asyncio.Semaphore(_AT_ONCE)
        self._room = Room(inbox)
        self._transfers: set[asyncio.Task[Any]] = set()
        self._jobs: dict[str, _Job] = {}
        self._keys: dict[bytes, str] = {}
        """Keys by the ids of messages, of this session and of earlier ones of jobs in hand."""

    def __len__(self) -> int:
        return len(self._jobs)

    def offer(self, line: Line, signed: Signed) -> None:
        """Take on a task, or take up one that is in hand; the same message again changes nothing.

        Raises:
            IdentityError: the server did not sign it.
            LinkError: it is not a task, or one too many.
        """
        if message_id(signed) in self._keys:
            return
        offer = read_offer(line.session, signed)
        if offer.key not in self._jobs and len(self._jobs) >= MOST_TASKS:
            raise LinkError(
                "the server asks for more at once than a site takes on",
                hint="nothing: it is told again what is asked when there is a line again",
            )
        self._remember(offer)
        job = self._jobs.get(offer.key)
        if job is None:
            self._begin(line, offer)
        elif job.line is line and job.offered.is_set():
            # Closed and asked again, before this end knew of the former: done after it, anew.
            job.again = offer
        else:
            job.line, job.offer = line, offer
            job.offered.set()

    def _begin(self, line: Line, offer: Offer) -> None:
        job = self._jobs[offer.key] = _Job(line, offer)
        job.offered.set()
        job.task = asyncio.create_task(self._follow(job))
        job.task.add_done_callback(self._ended)

    def _remember(self, offer: Offer) -> None:
        """Know a message again; one connection may last for weeks, so old ones are forgotten."""
        self._keys[offer.id] = offer.key
        if len(self._keys) > 2 * _REMEMBERED:
            newest = list(self._keys)[-_REMEMBERED:]
            kept = {*newest, *(one for one, key in self._keys.items() if key in self._jobs)}
            self._keys = {one: key for one, key in self._keys.items() if one in kept}

    def close(self, ids: Iterable[bytes]) -> None:
        """Nobody waits for these any more."""
        for one in ids:
            job = self._jobs.get(self._keys.get(one, ""))
            if job is not None and job.again is not None and job.again.id == one:
                job.again = None
            elif job is not None:
                self._close(job)

    def reconsider(self, study: str | None = None) -> None:
        """The site thinks otherwise of a study, or of all: replies wait until asked for anew."""
        for job in self._jobs.values():
            other = study not in (None, job.offer.header.study)
            if other or job.reply is None or job.closed:
                continue
            if job.task is not None:
                job.task.cancel()
            job.reply = None
            job.task = asyncio.create_task(self._follow(job))
            job.task.add_done_callback(self._ended)

    def connected(self, line: Line) -> None:
        """There is a line."""
        self._line = line
        self._up.set()

    def disconnected(self) -> None:
        """The line is gone: what is in hand waits until it is offered on another."""
        self._line = None
        self._up.clear()
        for transfer in self._transfers:
            transfer.cancel()
        for job in self._jobs.values():
            job.offered.clear()
            job.again = None
        self._keys = {one: key for one, key in self._keys.items() if key in self._jobs}

    async def defect(self) -> None:
        """Wait until a task ends with something that is a defect, and raise it."""
        await self._failed.wait()
        if self._failure is not None:
            raise self._failure

    def _ended(self, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            self._failure = failure
            self._failed.set()

    async def stop(self) -> None:
        """Give up everything; what is on the disk stays for the next time."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for job in self._jobs.values():
            job.again = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _close(self, job: _Job) -> None:
        if job.closed:
            return
        job.closed = True
        self._work.closed(job.offer.key)
        if job.task is not None and not job.working and job.task is not asyncio.current_task():
            job.task.cancel()

    async def _follow(self, job: _Job) -> None:
        backoff = self._backoff()
        try:
            while not job.closed:
                try:
                    await self._attempt(job)
                    break
                except StateError as error:
                    _tell("a task is given up", job, error)
                    self._close(job)
                except FedwardError as error:
                    _tell("a task is delayed", job, error)
                    await asyncio.sleep(backoff.next_s())
        except asyncio.CancelledError:
            if not job.closed:
                raise  # the process ends; files stay for the next one
        self._forget(job)

    async def _attempt(self, job: _Job) -> None:
        if job.reply is None:
            await self._wanted(job)
            job.reply = await self._reply(job)
        try:
            outgoing = await asyncio.to_thread(Outgoing.of, job.reply)
        except FedwardError:
            job.reply = None  # deleted with a round that is over: made again if it is asked for
            raise
        receipt = None
        while receipt is None and not job.closed:
            receipt = await self._send(job, outgoing)
        if receipt is not None:
            self._work.receipt(job.offer.key, receipt.SerializeToString())
        outgoing.tidy()

    async def _send(self, job: _Job, outgoing: Outgoing) -> Signed | None:
        """Send a reply; None if a server that has just begun again does not wait for it yet.

        On a new connection the server asks again for what it waits for. What it does not ask for,
        it has, and only its receipt was lost; or it will ask later.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._offer_wait_s):
                await job.offered.wait()
        asked = job.offered.is_set()
        await self._up.wait()
        if job.closed or self._line is None:
            return None
        try:
            async with self._moving:
                receipt = await self._transfer(send(self._line, job.offer, outgoing))
            self.sent += outgoing.size
            return receipt
        except StateError:
            if asked:
                raise
            await self._wanted(job)
            return None

    async def _transfer(self, transfer: Coroutine[Any, Any, _T]) -> _T:
        """Do a transfer for as long as its line lives.

        It is ended from here: a call of gRPC (1.85) that had not begun when its channel was closed
        waits for ever.

        Raises:
            LinkError: the line is gone.
        """
        task = asyncio.create_task(transfer)
        self._transfers.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if mine is not None and mine.cancelling():
                raise
            raise LinkError("the connection to the server broke", hint="it is made again") from None
        finally:
            self._transfers.discard(task)

    async def _wanted(self, job: _Job) -> None:
        """Wait until the task is offered on a line that lives."""
        try:
            async with asyncio.timeout(_NOT_ASKED_AGAIN_S):
                await job.offered.wait()
        except TimeoutError as error:
            raise StateError(
                "the server did not ask for a task again", hint="nothing: it may ask later"
            ) from error

    async def _reply(self, job: _Job) -> Path:
        offer = job.offer
        size = max(offer.header.body_size, offer.header.plain_size)
        if size > self._most_bytes:
            error = LinkError("a task is larger than this site accepts", hint="ask the coordinator")
            return await self._refusal(job, error)
        if size > kinds.CHUNK:  # of less, to ask twice costs more than to have it
            declined = await self._work.decline(
                offer.assignment(inbox_files(offer, self._inbox)[0])
            )
            if declined is not None:
                return declined
        async with self._moving:
            try:
                room = self._room.taken(offer)
            except OutputError as error:
                return await self._refusal(job, error)
            with room:
                body = await self._transfer(fetch(job.line, offer, self._inbox))
        self.received += offer.header.body_size
        job.working = True
        try:
            return await self._work.do(offer.assignment(body))
        except FedwardError as error:
            return await self._refusal(job, error)
        finally:
            job.working = False

    async def _refusal(self, job: _Job, error: FedwardError) -> Path:
        """A reply that says that there is none, and nothing about why beyond the kind."""
        _tell("a task is refused", job, error)
        path = self._inbox / (job.offer.key + _REFUSAL_SUFFIX)
        reason = "the site refused this task"
        content = Content({records.ERROR_CODE: error.exit_code, records.ERROR_REASON: reason})
        await asyncio.to_thread(write_body, path, content)
        return path

    def _forget(self, job: _Job) -> None:
        """Everything is done: remove what was only for this task."""
        key, body = job.offer.key, job.offer.header.body_sha256
        self._jobs.pop(key, None)
        files = [self._inbox / (key + _REFUSAL_SUFFIX)]
        if all(other.offer.header.body_sha256 != body for other in self._jobs.values()):
            files += inbox_files(job.offer, self._inbox)
        for path in files:
            with suppress(OSError):
                path.unlink()
        if job.again is not None:
            self._begin(job.line, job.again)


def _tell(phrase: str, job: _Job, error: FedwardError) -> None:
    header = job.offer.header
    facts = {"run": header.run, "round": header.round, "action": header.action}
    _log.warning(phrase, extra={"facts": {**facts, "problem": error.problem}})
