"""Bodies on their way: fetched into the inbox, sent from the outbox, both from where they stopped.

Neither side ever holds more than a chunk of a body. A body that is in the inbox already, from an
earlier connection or an earlier process, is hashed again and not fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedward.client.link.assignments import Offer
from fedward.client.link.connection import Line, translated
from fedward.client.link.greeting import ask, read_answer
from fedward.common.errors import LinkError, OutputError
from fedward.common.files import output_error
from fedward.common.wire import kinds
from fedward.common.wire.digest import file_sha256
from fedward.common.wire.encoding import DEFLATE, PLAIN, compresses, deflate, inflate
from fedward.common.wire.link_pb2 import Header, Part, Range, Signed
from fedward.common.wire.pieces import part
from fedward.common.wire.spool import Incoming

_PLAIN_SUFFIX = ".plain"
_PACKED_SUFFIX = ".deflate"
_KEPT_FREE = 1 << 30
"""Bytes that no task may take from the disk; less on a small one."""
_HINT = "check that both sides run the same version of fedward"


def inbox_files(offer: Offer, inbox: Path) -> tuple[Path, ...]:
    """Files that the body of a task may occupy, to be removed when nobody needs it any more."""
    path = inbox / offer.header.body_sha256.hex()
    suffixes = ("", ".part", _PLAIN_SUFFIX)
    return tuple(path.with_name(path.name + suffix) for suffix in suffixes)


def tidy_inbox(inbox: Path, *, before: float) -> None:
    """Remove bodies that nobody took up again: last written before a Unix time in seconds."""
    for path in inbox.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()


class Room:
    """The room that bodies of tasks may take on a disk: some of it always stays free.

    Args:
        inbox: folder for the bodies.
    """

    def __init__(self, inbox: Path) -> None:
        self._inbox = inbox
        self._promised = 0

    def taken(self, offer: Offer) -> AbstractContextManager[None]:
        """Take the room for what of a body is not here yet; it is promised while in the context.

        Raises:
            OutputError: there is not enough.
        """
        needed = self._needed(offer)
        try:
            disk = shutil.disk_usage(self._inbox)
        except OSError as error:
            raise output_error(self._inbox, error) from error
        if needed and disk.free - self._promised - needed < min(_KEPT_FREE, disk.total // 20):
            raise OutputError(
                "the disk has too little room left for a task",
                hint="make room, or let [link] largest_message_mb be less",
            )
        self._promised += needed
        return self._promise(needed)

    @contextmanager
    def _promise(self, size: int) -> Iterator[None]:
        try:
            yield
        finally:
            self._promised -= size

    def _needed(self, offer: Offer) -> int:
        header = offer.header
        path, partial, plain = inbox_files(offer, self._inbox)
        needed = max(0, header.body_size - max(_size(path), _size(partial)))
        if header.encoding != PLAIN:
            needed += max(0, header.plain_size - _size(plain))
        return needed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def fetch(line: Line, offer: Offer, inbox: Path) -> Path:
    """Bring the body of a task here, and give its decoded form.

    Raises:
        LinkError: the connection broke; what came stays. Or it is not what was signed; then
            nothing stays.
        OutputError: the disk refuses.
    """
    header = offer.header
    path, _, plain = inbox_files(offer, inbox)
    # What is not there yet needs no thread to find that out.
    if not path.exists() or not await asyncio.to_thread(_is_there, path, header.body_sha256):
        await _receive(line, offer, path)
    if header.encoding == PLAIN:
        return path
    await asyncio.to_thread(inflate, path, plain, plain_size=header.plain_size)
    return plain


def _is_there(path: Path, sha256: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == sha256
    except OSError:
        return False


async def _receive(line: Line, offer: Offer, path: Path) -> None:
    header = offer.header
    spool = await _begun(path, header)
    try:
        if spool.offset < header.body_size:
            wanted = Range(session=line.session.name, message=offer.id, offset=spool.offset)
            await _drain(line, wanted, spool)
        spool.finish()
    finally:
        spool.close()


async def _begun(path: Path, header: Header) -> Incoming:
    """Take up what is there, which may take a while; never leaves a file open behind."""
    begin = partial(Incoming, path, sha256=header.body_sha256, size=header.body_size)
    if not path.with_name(path.name + ".part").exists():
        return begin()
    beginning = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_closed)
        raise


def _closed(beginning: asyncio.Future[Incoming]) -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().close()


async def _drain(line: Line, wanted: Range, spool: Incoming) -> None:
    """Write what comes, for as long as something comes."""
    with translated():
        stream = line.stub.Fetch(wanted)
        chunks = aiter(stream)
        try:
            while True:
                async with asyncio.timeout(line.patience_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                spool.write(chunk.offset, chunk.data)
        finally:
            stream.cancel()


@dataclass(frozen=True)
class Outgoing:
    """A reply as it travels.

    Attributes:
        path: of what travels.
        sha256: of it.
        size: of it, in bytes.
        encoding: how it is packed.
        plain_size: of the reply's body, in bytes.
    """

    path: Path
    sha256: bytes
    size: int
    encoding: str
    plain_size: int

    @classmethod
    def of(cls, reply: Path) -> Outgoing:
        """Pack a reply if it shrinks. The same reply travels as the same bytes, always.

        Raises:
            LinkError: it cannot be read, or is empty or too large to travel.
            OutputError: the disk refuses.
        """
        packed = reply.with_name(reply.name + _PACKED_SUFFIX)
        try:
            plain_size = reply.stat().st_size
            if not 0 < plain_size <= kinds.LARGEST_BODY:
                raise LinkError("a reply's body may not travel", hint=_HINT)
            if not packed.exists():
                if not compresses(reply):
                    return cls(reply, *file_sha256(reply), PLAIN, plain_size)
                unfinished = packed.with_name(packed.name + ".part")
                deflate(reply, unfinished)
                unfinished.replace(packed)
            return cls(packed, *file_sha256(packed), DEFLATE, plain_size)
        except OSError as error:
            raise LinkError("a reply's body cannot be read", hint="check the disk") from error

    def tidy(self) -> None:
        """Remove the packed form, which was only for the way."""
        if self.encoding != PLAIN:
            with suppress(OSError):
                self.path.unlink()


async def send(line: Line, offer: Offer, outgoing: Outgoing) -> Signed:
    """Send the reply to a task, from where the server has it, and give the server's receipt.

    Raises:
        FedwardError: the server refuses it; of the class that the server names.
        LinkError: the connection broke; sending again goes on where it stopped.
    """
    offset = await _offset(line, offer, outgoing)
    message = line.session.large(
        kinds.REPLY,
        body_sha256=outgoing.sha256,
        body_size=outgoing.size,
        encoding=outgoing.encoding,
        plain_size=outgoing.plain_size,
        **_about(offer),
    )
    with translated():
        call = line.stub.Send()
        try:
            with suppress(asyncio.InvalidStateError):  # the server answered before the end
                async with asyncio.timeout(line.patience_s):
                    await call.write(Part(message=message))
                with _opened(outgoing.path) as file:
                    while data := os.pread(file, kinds.CHUNK, offset):
                        async with asyncio.timeout(line.patience_s):
                            await call.write(part(offset, data))
                        offset += len(data)
                await call.done_writing()
            async with asyncio.timeout(line.patience_s):
                answer: Signed = await call
        finally:
            call.cancel()
    read_answer(line.session, message, answer, kinds.RECEIPT)
    return answer


def _about(offer: Offer) -> dict[str, Any]:
    """Fields of a header that say which task it is about."""
    task = offer.header
    return {
        "study": task.study,
        "run": task.run,
        "round": task.round,
        "action": task.action,
        "reply_to": offer.id,
    }


async def _offset(line: Line, offer: Offer, outgoing: Outgoing) -> int:
    """How much of it the server has; not worth asking for what fits into a chunk."""
    if outgoing.size <= kinds.CHUNK:
        return 0
    body = {"sha256": outgoing.sha256.hex(), "size": outgoing.size}
    answer = await ask(line, kinds.OFFSET, body, **_about(offer))
    offset = answer.get("offset")
    if type(offset) is not int or not 0 <= offset <= outgoing.size:
        raise LinkError("the server has more of a reply than there is", hint=_HINT)
    return offset


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise LinkError("a reply's body cannot be read", hint="check the disk") from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, file)
        yield file
