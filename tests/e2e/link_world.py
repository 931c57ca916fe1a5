"""A consortium on this machine: real certificates, a real server's end of the link, real hospitals.

    async with World(folder, sites=("north",)) as world:
        site = world.site("north")
        answers = await world.round({"north": body_file})

The desk is a small one that hands out rosters and certificates; what a site does with a task is a
function, by default an echo of the task's body.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from fedward.client.link.assignments import Assignment
from fedward.client.link.connection import Endpoint
from fedward.client.link.link import Link
from fedward.client.link.settings import LinkSettings as SiteSettings
from fedward.common.identity import (
    Authority,
    Identity,
    Member,
    PrivateKey,
    Roster,
    issue,
    make_issuer,
    make_root,
    read_certificates,
    read_request,
    read_roster,
    sign_roster,
)
from fedward.common.wire.body import Written
from fedward.common.wire.session import Heads
from fedward.server.link.desk import Question
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.peers import Limits
from fedward.server.link.presence import Presence
from fedward.server.link.serve import LinkServer
from fedward.server.link.serve import LinkSettings as ServerSettings
from fedward.server.link.tasks import Answer, Task

STUDY = "5" * 64
SERVER = "central"
HEARTBEAT_S = 0.2
TIMEOUT_S = 90.0
"""Only so that a test that hangs ends."""


def within(coroutine: Awaitable[None]) -> None:
    """Run a test's coroutine, and fail it if it hangs."""

    async def bounded() -> None:
        await asyncio.wait_for(coroutine, TIMEOUT_S)

    asyncio.run(bounded())


class Consortium:
    """Keys, certificates and the signed roster."""

    def __init__(self, sites: tuple[str, ...]) -> None:
        self.now = datetime.now(UTC)
        root_key, issuer_key = PrivateKey.generate(), PrivateKey.generate()
        born = self.now - timedelta(days=100)
        self.root = make_root(root_key, "Example", now=born)
        issuer = make_issuer(issuer_key.public, Authority(root_key, self.root), now=born)
        self.issuer = Authority(issuer_key, issuer)
        self.keys = {name: PrivateKey.generate() for name in (SERVER, *sites)}
        self.members = {
            name: Member.make(
                name,
                "coordinator" if name == SERVER else "site",
                key.public,
                since=self.now.isoformat(),
            )
            for name, key in self.keys.items()
        }
        self.version = 0
        self.data = b""
        self.publish()

    def publish(self) -> Roster:
        """Sign the next version of the roster."""
        self.version += 1
        roster = Roster(
            consortium="Example",
            version=self.version,
            issued_at=self.now.isoformat(),
            host="127.0.0.1",
            port=8440,
            members=tuple(self.members.values()),
        )
        self.data = sign_roster(roster, self.issuer.key, self.issuer.certificate)
        return roster

    @property
    def roster(self) -> Roster:
        return read_roster(self.data, self.root.pem)

    def revoke(self, name: str) -> Roster:
        self.members[name] = self.members[name].revoked("left", since=self.now.isoformat())
        return self.publish()

    def chain(self, name: str, *, days: int = 90, began: timedelta = timedelta(0)) -> str:
        """A certificate with its issuer's."""
        member = self.members[name]
        leaf = issue(
            member.public_key,
            name,
            member.role,
            self.issuer,
            now=self.now - began,
            days=days,
            hosts=("127.0.0.1", "localhost") if name == SERVER else (),
        )
        return leaf.pem + self.issuer.certificate.pem

    def identity(self, name: str, **dates: Any) -> Identity:
        leaf, issuer = read_certificates(self.chain(name, **dates))
        return Identity(self.keys[name], leaf, issuer, self.root)


class SmallDesk:
    """Answers what concerns the link itself."""

    def __init__(self, consortium: Consortium) -> None:
        self._consortium = consortium
        self.asked: list[str] = []
        self.version = 1

    def greeted(self, question: Question) -> dict[str, Any]:
        if question.body.get("roster") == self._consortium.version:
            return {}
        return {"roster_data": self._consortium.data.decode()}

    def studies(self, question: Question) -> dict[str, Any]:
        self.asked.append("studies")
        return {"studies": []}

    def decide(self, question: Question) -> dict[str, Any]:
        return {}

    def renew(self, question: Question) -> dict[str, Any]:
        self.asked.append("renew")
        request = read_request(question.body["request"].encode())
        assert request.name == question.site
        return {"certificate": self._consortium.chain(question.site)}

    def roster(self, question: Question) -> dict[str, Any]:
        self.asked.append("roster")
        return {"roster": self._consortium.data.decode(), "version": self._consortium.version}

    def witness(self, question: Question) -> dict[str, Any]:
        return {}

    def heads(self, site: str) -> Heads:
        return Heads()

    def studies_version(self, site: str) -> int:
        return self.version


async def echo(assignment: Assignment, outbox: Path) -> Path:
    """Answer with what was asked."""
    reply = outbox / assignment.key
    await asyncio.to_thread(shutil.copyfile, assignment.body, reply)
    return reply


@dataclass
class RecordingWork:
    """Does tasks with a function, keeps replies as a daemon would, and remembers what happened."""

    outbox: Path
    function: Callable[[Assignment, Path], Awaitable[Path]] = echo
    done: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    receipts: dict[str, bytes] = field(default_factory=dict)
    closed_keys: list[str] = field(default_factory=list)
    rosters: list[bytes] = field(default_factory=list)
    changes: int = 0
    declined: list[Assignment] = field(default_factory=list)
    declines: Path | None = None
    """What it says of every large task before its body is here."""
    happened: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def decline(self, assignment: Assignment) -> Path | None:
        self.declined.append(assignment)
        return self.declines

    async def do(self, assignment: Assignment) -> Path:
        kept = self.outbox / assignment.key
        if not kept.exists():
            self.begun.append(assignment.key)
            self._tell()
            await self.function(assignment, self.outbox)
            self.done.append(assignment.key)
        return kept

    def closed(self, key: str) -> None:
        self.closed_keys.append(key)
        self._tell()

    def receipt(self, key: str, evidence: bytes) -> None:
        self.receipts[key] = evidence
        self._tell()

    def roster(self, data: bytes) -> None:
        self.rosters.append(data)
        self._tell()

    def studies_changed(self) -> None:
        self.changes += 1
        self._tell()

    def _tell(self) -> None:
        async def notify() -> None:
            async with self.happened:
                self.happened.notify_all()

        self._telling = asyncio.ensure_future(notify())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.happened:
            await self.happened.wait_for(condition)


class Hospital:
    """One site: its folder, its work, its link."""

    def __init__(self, world: World, name: str, port: int, **dates: Any) -> None:
        self.name = name
        self.folder = world.folder / name
        (self.folder / "outbox").mkdir(parents=True, exist_ok=True)
        self.work = RecordingWork(self.folder / "outbox")
        self.installed: list[str] = []
        self.identity = world.consortium.identity(name, **dates)
        self.roster = world.consortium.roster
        self.port = port
        self.proxy: str | None = None
        self.link = self._link()
        self.running: asyncio.Task[None] | None = None

    def _link(self) -> Link:
        settings = SiteSettings(
            Endpoint("127.0.0.1", self.port, self.proxy),
            self.folder / "inbox",
            most_bytes=1 << 30,
            heartbeat_s=HEARTBEAT_S,
            patience_s=10.0,
            offer_wait_s=0.2,
            first_wait_s=0.02,
            longest_wait_s=0.2,
        )
        return Link(
            settings,
            self.identity,
            self.roster,
            self.work,
            random=random.Random(1).random,
            install=self.installed.append,
        )

    def start(self) -> None:
        self.running = asyncio.create_task(self.link.run())

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.running
            self.running = None

    async def restart(self) -> None:
        """As another process would begin: nothing but the folder is left."""
        await self.stop()
        self.work = RecordingWork(self.folder / "outbox", self.work.function)
        self.link = self._link()
        self.start()

    async def connected(self) -> None:
        await self.link._connected.wait()


class World:
    """Everything together; ends everything at its end."""

    def __init__(self, folder: Path, *, sites: tuple[str, ...] = ("north",)) -> None:
        self.folder = folder
        self.consortium = Consortium(sites)
        self.desk = SmallDesk(self.consortium)
        self.port = 0
        self.server: LinkServer | None = None
        self.hospitals: list[Hospital] = []
        self._fresh_parts()

    def _fresh_parts(self) -> None:
        self.mailbox = Mailbox(lambda run: self.folder / "runs" / run / "spool")
        self.presence = Presence()

    async def __aenter__(self) -> Self:
        await self.start_server()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hospital in self.hospitals:
            with contextlib.suppress(Exception):
                await hospital.stop()
        await self.stop_server()

    limits = Limits(calls_per_s=1000.0, burst=1000)

    async def start_server(self) -> None:
        settings = ServerSettings(
            name=SERVER,
            key=self.consortium.keys[SERVER],
            certificate_pem=self.consortium.chain(SERVER),
            root_pem=self.consortium.root.pem,
            roster=self.consortium.roster,
            heartbeat_s=HEARTBEAT_S,
            limits=self.limits,
            grace_s=0.0,
        )
        self.server = LinkServer(
            settings, mailbox=self.mailbox, presence=self.presence, desk=self.desk
        )
        self.port = await self.server.start()

    async def stop_server(self) -> None:
        if self.server is not None:
            await self.server.stop()
            self.server = None

    async def restart_server(self) -> None:
        """As after `kill -9`: another port, and nothing but the folder is left."""
        await self.stop_server()
        self._fresh_parts()
        await self.start_server()

    def site(self, name: str, *, port: int | None = None, **dates: Any) -> Hospital:
        """A hospital that has begun to connect."""
        hospital = Hospital(self, name, port or self.port, **dates)
        self.hospitals.append(hospital)
        hospital.start()
        return hospital

    def task(self, site: str, body: Path, *, round_number: int = 1, run: str = "r1") -> Task:
        data = body.read_bytes()
        written = Written(body, hashlib.sha256(data).digest(), len(data))
        return Task(STUDY, run, round_number, "train", site, written, 1 << 30)

    async def collect(self, *tasks: Task) -> Mapping[str, Answer]:
        """Post tasks and wait for their answers, as the thread of a run does."""

        def wait() -> dict[str, Answer]:
            self.mailbox.post(tasks)
            answers = self.mailbox.collect(
                [task.key for task in tasks],
                deadline=monotonic() + TIMEOUT_S,
                absent=lambda _site: None,
            )
            return {answer.site: answer for answer in answers}

        return await asyncio.to_thread(wait)
