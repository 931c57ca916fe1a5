"""A consortium with real keys and certificates, a service on a real port, and a raw client.

The client does exactly what it is told: also what a well-behaved one never would.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedward.common.identity import (
    Authority,
    Member,
    PrivateKey,
    Role,
    Roster,
    issue,
    make_issuer,
    make_root,
)
from fedward.common.version import version
from fedward.common.wire import kinds
from fedward.common.wire.body import Content, Written, write_body
from fedward.common.wire.link_pb2 import Beat, Chunk, Header, Notice, Part, Range, Signed
from fedward.common.wire.link_pb2_grpc import LinkStub
from fedward.common.wire.message import message_id, unpack
from fedward.common.wire.session import Heads, Session, half
from fedward.common.wire.transport import channel_options
from fedward.server.link.desk import Question
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.presence import Presence
from fedward.server.link.refusals import Facts
from fedward.server.link.serve import LinkServer, LinkSettings
from fedward.server.link.tasks import Task

SERVER = "coordination"
STUDY = "ab" * 32
HOST = "127.0.0.1"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Consortium:
    """Keys, certificates and the roster of a consortium."""

    sites: tuple[str, ...] = ("north", "south")
    name: str = "Example"
    keys: dict[str, PrivateKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root_key, issuer_key = PrivateKey.generate(), PrivateKey.generate()
        self.root = make_root(root_key, self.name, now=_now() - timedelta(days=100))
        top = Authority(root_key, self.root)
        issuer = make_issuer(issuer_key.public, top, now=_now() - timedelta(days=100))
        self.issuer = Authority(issuer_key, issuer)
        self.keys = {name: PrivateKey.generate() for name in (SERVER, *self.sites)}
        members = [self._member(SERVER, "coordinator"), *(self._member(s) for s in self.sites)]
        self.roster = Roster(
            consortium=self.name,
            version=1,
            issued_at=_now().isoformat(),
            host=HOST,
            port=1,
            members=tuple(members),
        )

    def _member(self, name: str, role: Role = "site") -> Member:
        return Member.make(name, role, self.keys[name].public, since=_now().isoformat())

    def chain(
        self,
        name: str,
        role: Role = "site",
        *,
        key: PrivateKey | None = None,
        begin: datetime | None = None,
        days: int = 30,
    ) -> str:
        """Leaf and issuer's certificate."""
        key = key or self.keys[name]
        leaf = issue(
            key.public,
            name,
            role,
            self.issuer,
            now=begin or _now(),
            days=days,
            hosts=("localhost", HOST) if role == "coordinator" else (),
        )
        return leaf.pem + self.issuer.certificate.pem

    def revoke(self, name: str) -> Roster:
        """The next roster, in which a site is revoked."""
        members = tuple(
            m.revoked("left", since=_now().isoformat()) if m.name == name else m
            for m in self.roster.members
        )
        self.roster = self.roster.model_copy(
            update={"version": self.roster.version + 1, "members": members}
        )
        return self.roster


class FakeDesk:
    """Answers everything with what it was asked; remembers the questions."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.version = 1

    def _take(self, question: Question) -> dict[str, Any]:
        self.questions.append(question)
        return {"asked": question.kind}

    greeted = studies = decide = renew = roster = witness = _take

    def heads(self, site: str) -> Heads:
        return Heads()

    def studies_version(self, site: str) -> int:
        return self.version


@dataclass
class Running:
    """A service on a port, and what it is connected to."""

    consortium: Consortium
    server: LinkServer
    mailbox: Mailbox
    presence: Presence
    desk: FakeDesk
    folder: Path
    port: int
    refusals: list[Facts]

    @property
    def reasons(self) -> list[str]:
        """Why somebody was refused, in order."""
        return [str(facts["reason"]) for facts in self.refusals]

    def site(self, name: str = "north", **options: Any) -> RawSite:
        """A client of a site; not connected yet."""
        return RawSite(self.consortium, self.port, name, **options)

    def task(self, site: str = "north", **fields: Any) -> Task:
        """A task for a site, with a small model in it; not posted."""
        return make_task(self.folder, site, **fields)


def make_task(
    folder: Path,
    site: str = "north",
    *,
    size: int = 4,
    number: int = 1,
    run: str = "run-1",
    most_bytes: int = 1 << 20,
) -> Task:
    """A task with a body in `folder`."""
    arrays = {"w": np.arange(size, dtype=np.float32)}
    body = write_body(
        folder / f"task-{size}-{number}", Content({"server-round": number}, {}, arrays)
    )
    return Task(STUDY, run, number, "train", site, body, most_bytes)


@asynccontextmanager
async def running(
    folder: Path, consortium: Consortium | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """A service with everything it needs, in this process."""
    consortium = consortium or Consortium()
    folder.mkdir(exist_ok=True)
    mailbox, presence, desk = Mailbox(lambda run: folder / run), Presence(), FakeDesk()
    refusals: list[Facts] = []
    values: dict[str, Any] = {
        "name": SERVER,
        "key": consortium.keys[SERVER],
        "certificate_pem": consortium.chain(SERVER, "coordinator"),
        "root_pem": consortium.root.pem,
        "roster": consortium.roster,
        "grace_s": 0.2,
    }
    server = LinkServer(
        LinkSettings(**{**values, **settings}),
        mailbox=mailbox,
        presence=presence,
        desk=desk,
        on_refusal=refusals.append,
    )
    port = await server.start()
    try:
        yield Running(consortium, server, mailbox, presence, desk, folder, port, refusals)
    finally:
        await server.stop()


class RawSite:
    """A client that says what it is told to say.

    Args:
        consortium: whose member it is.
        port: of the service on this machine.
        name: that it gives in its messages.
        key: of its certificate and signatures; the site's own by default.
        chain: its certificate; a valid one by default.
        root_pem: whom it trusts.
    """

    def __init__(
        self,
        consortium: Consortium,
        port: int,
        name: str = "north",
        *,
        key: PrivateKey | None = None,
        chain: str | None = None,
        root_pem: str | None = None,
    ) -> None:
        self.name = name
        self.key = key or consortium.keys[name]
        self.server_key = consortium.keys[SERVER].public
        chain = chain or consortium.chain(name, key=self.key)
        credentials = grpc.ssl_channel_credentials(
            (root_pem or consortium.root.pem).encode(), self.key.pem, chain.encode()
        )
        self.channel = grpc.aio.secure_channel(
            f"{HOST}:{port}", credentials, options=channel_options()
        )
        self.stub: Any = LinkStub(self.channel)  # type: ignore[no-untyped-call]
        self.session = self.wire(b"")

    async def __aenter__(self) -> RawSite:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.channel.close()

    def wire(self, name: bytes) -> Session:
        """A session of a name, as the site sees it."""
        return Session(name, me=self.name, peer=SERVER, signer=self.key, verifier=self.server_key)

    # --- greeting ---------------------------------------------------------------------------------

    async def greet(self, **changes: Any) -> dict[str, Any]:
        """Greet; gives the body of the answer, also of a refusal."""
        answer, body = await self.greet_with(self.wire(b""), **changes)
        return {"kind": Header.FromString(answer.header).kind, **body}

    async def greet_with(self, wire: Session, **changes: Any) -> tuple[Signed, dict[str, Any]]:
        """Greet, with another body if wished; begins the session if the server agrees."""
        mine = half()
        body = {
            "half": mine.hex(),
            "protocols": [kinds.PROTOCOL],
            "software": version(),
            "clock": time.time_ns() // 1_000_000,
        }
        request = wire.small(kinds.GREET, {**body, **changes})
        answer: Signed = await self.stub.Greet(request, timeout=10)
        said = unpack(answer.body)
        header = wire.open(answer)
        assert header.reply_to == message_id(request)
        if header.kind == kinds.GREET:
            self.session = self.wire(mine + bytes.fromhex(said["half"]))
        return answer, said

    # --- being there ------------------------------------------------------------------------------

    def attend(self) -> Stream:
        """Open the stream of notices."""
        return Stream(self.stub.Attend(), self.session)

    # --- questions --------------------------------------------------------------------------------

    async def ask(self, kind: str, body: dict[str, Any] | None = None, **fields: Any) -> Any:
        """Ask; gives kind and body of the answer."""
        return await self.deliver(self.session.small(kind, body or {}, **fields))

    async def deliver(self, message: Signed) -> tuple[str, dict[str, Any]]:
        """Send a message as it is; gives kind and body of the answer."""
        answer = await self.stub.Call(message, timeout=10)
        return self.read(answer)

    def read(self, answer: Signed) -> tuple[str, dict[str, Any]]:
        """Kind and body of an answer, checked."""
        return self.session.open(answer).kind, unpack(answer.body)

    # --- transfers --------------------------------------------------------------------------------

    async def fetch(self, message: Signed, offset: int = 0) -> bytes:
        """The body of a task."""
        request = Range(session=self.session.name, message=message_id(message), offset=offset)
        data = b""
        async for chunk in self.stub.Fetch(request, timeout=30):
            assert chunk.offset == offset + len(data)
            data += chunk.data
        return data

    @staticmethod
    def about(task: Signed) -> dict[str, Any]:
        """Fields of a header that is about a task."""
        asked = Header.FromString(task.header)
        return {
            "study": asked.study,
            "run": asked.run,
            "round": asked.round,
            "action": asked.action,
            "reply_to": message_id(task),
        }

    def reply(self, task: Signed, written: Written, **changes: Any) -> Signed:
        """The header of a reply to a task."""
        fields = {
            **self.about(task),
            "body_sha256": written.sha256,
            "body_size": written.size,
            "plain_size": written.size,
        }
        return self.session.large(kinds.REPLY, **{**fields, **changes})

    async def arrived(self, task: Signed, written: Written, size: int) -> None:
        """Ask until that much of a reply is at the server."""
        question = {"sha256": written.sha256.hex(), "size": written.size}
        while True:
            _, body = await self.ask(kinds.OFFSET, question, **self.about(task))
            if body["offset"] >= size:
                return
            await asyncio.sleep(0.06)  # asking all the time is refused

    async def send(
        self, message: Signed, data: bytes, *, offset: int = 0, chunk: int = kinds.CHUNK
    ) -> tuple[str, dict[str, Any]]:
        """Send a reply; gives kind and body of the answer."""

        def parts() -> Iterator[Part]:
            yield Part(message=message)
            for start in range(offset, len(data), chunk):
                yield Part(chunk=Chunk(offset=start, data=data[start : start + chunk]))

        return self.read(await self.stub.Send(parts(), timeout=30))


class Stream:
    """An open `Attend`."""

    def __init__(self, call: Any, session: Session) -> None:
        self.call = call
        self._session = session
        self._number = 0

    async def beat(self, session: bytes | None = None) -> None:
        """Say that we are there."""
        self._number += 1
        name = self._session.name if session is None else session
        await self.call.write(Beat(session=name, number=self._number))

    async def notice(self) -> Notice:
        """The next notice.

        Raises:
            AioRpcError: the server ended the stream, with a reason.
            EOFError: it ended without.
        """
        notice = await self.call.read()
        if notice is grpc.aio.EOF:
            code = await self.call.code()
            if code is grpc.StatusCode.OK:
                raise EOFError
            raise grpc.aio.AioRpcError(
                code, grpc.aio.Metadata(), grpc.aio.Metadata(), await self.call.details()
            )
        return notice  # type: ignore[no-any-return]

    async def task(self) -> Signed:
        """The next task, beating once before."""
        while True:
            notice = await self.notice()
            if notice.tasks:
                return notice.tasks[0]

    async def reason(self) -> str:
        """Why the server ends the stream, in its words; empty if it was we."""
        try:
            while True:
                await self.notice()
        except grpc.aio.AioRpcError as error:
            return str(error.details())
        except EOFError:
            return ""

    def cancel(self) -> None:
        """Break it off."""
        self.call.cancel()


def body_of(folder: Path, values: Any, **config: Any) -> tuple[Written, bytes]:
    """A reply's body, and its bytes."""
    digest = hashlib.sha256(repr((np.asarray(values).tobytes(), config)).encode()).hexdigest()
    arrays = {"w": np.asarray(values, np.float32)}
    written = write_body(folder / f"reply-{digest[:16]}", Content(config, {"weight": 1.0}, arrays))
    return written, written.path.read_bytes()


def with_fields(message: Signed, change: Callable[[Header], None]) -> Signed:
    """A message whose header was changed after it was signed."""
    header = Header.FromString(message.header)
    change(header)
    return Signed(header=header.SerializeToString(), signature=message.signature, body=message.body)
