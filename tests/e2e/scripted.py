"""Ends of the link that lie, over real sockets, with the identities of a `Town`.

`ScriptedSite` is an enrolled hospital whose replies a test writes; the server is the real one.
`ScriptedServer` is the coordinator whose tasks and offers a test writes; hospitals are real.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.town import HEARTBEAT_S, LIMIT_S, Offered, Town

from fedward.client.home import SiteFolder
from fedward.client.link.assignments import Assignment
from fedward.client.link.connection import Endpoint
from fedward.client.link.link import Link
from fedward.client.link.settings import LinkSettings as SiteSettings
from fedward.common.identity import RosterFile
from fedward.common.statements import DECISION, OFFER, state
from fedward.common.study import Study, canonical_json, study_hash
from fedward.common.wire import kinds
from fedward.common.wire.body import Body, Content, write_body
from fedward.common.wire.session import Heads
from fedward.server.home import ConsortiumFolder
from fedward.server.link.desk import Question
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.peers import Limits
from fedward.server.link.presence import Presence
from fedward.server.link.serve import LinkServer
from fedward.server.link.serve import LinkSettings as ServerSettings
from fedward.server.link.tasks import Task


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="scripted")
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class ScriptedSite:
    """A hospital whose `answer` gives the content of each reply.

    Args:
        town: whose member it is; its daemon must not run.
        name: of the hospital.
        answer: from a task and its content to the content of the reply.
    """

    def __init__(
        self, town: Town, name: str, answer: Callable[[Assignment, Content], Content]
    ) -> None:
        self._home = SiteFolder.open(town.site(name))
        self._name = name
        self._answer = answer
        self._loop = Loop()
        self._outbox = town.folder / "scripted"
        self._outbox.mkdir(exist_ok=True)
        self.identity = self._home.load_identity(None)
        settings = SiteSettings(
            Endpoint("localhost", town.port),
            town.folder / "scripted-inbox",
            heartbeat_s=HEARTBEAT_S,
            first_wait_s=0.1,
            longest_wait_s=0.5,
        )
        self.link = Link(
            settings,
            self.identity,
            self._home.load_roster().current,
            self,
            random=random.Random(1).random,
            install=lambda _chain: None,
        )

    def __enter__(self) -> Self:
        self._running = asyncio.run_coroutine_threadsafe(self.link.run(), self._loop.loop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        broken = self._running.exception() if self._running.done() else None

        async def end() -> None:
            self._running.cancel()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait(tasks, timeout=10) if tasks else None

        self._loop.call(end())
        self._loop.close()
        if broken is not None:
            raise broken

    def approve(self, offered: Offered) -> None:
        """Tell the server that the study is approved here."""
        content = {
            "study": offered.hash,
            "choice": "approve",
            "at_ms": time.time_ns() // 1_000_000,
            "decisions": None,
        }
        said = state(DECISION, self._name, content, self.identity.key).decode()
        self._loop.call(self.link.ask(kinds.DECIDE, {"decision": said}))

    # --- Work -------------------------------------------------------------------------------------

    async def decline(self, assignment: Assignment) -> Path | None:
        return None

    async def do(self, assignment: Assignment) -> Path:
        path = self._outbox / assignment.key
        if not path.exists():
            with Body.open(assignment.body) as body:
                asked = body.content()
            write_body(path, self._answer(assignment, asked))
        return path

    def closed(self, key: str) -> None: ...

    def receipt(self, key: str, evidence: bytes) -> None: ...

    def roster(self, data: bytes) -> None: ...

    def studies_changed(self) -> None: ...


class _Desk:
    """Offers what it is told to, and takes every decision; the roster is the real one."""

    def __init__(self, roster: RosterFile) -> None:
        self._roster = roster
        self.offers: list[dict[str, Any]] = []
        self.decided: list[dict[str, Any]] = []
        self.version = 1

    def greeted(self, question: Question) -> dict[str, Any]:
        return {}

    def studies(self, question: Question) -> dict[str, Any]:
        return {"studies": self.offers}

    def decide(self, question: Question) -> dict[str, Any]:
        self.decided.append(dict(question.body))
        return {}

    def roster(self, question: Question) -> dict[str, Any]:
        return {"roster": self._roster.data.decode(), "version": self._roster.current.version}

    renew = witness = greeted

    def heads(self, site: str) -> Heads:
        return Heads()

    def studies_version(self, site: str) -> int:
        return self.version


class ScriptedServer:
    """The coordinator, which asks and offers whatever it is told to.

    Args:
        town: whose service must not run.
    """

    def __init__(self, town: Town) -> None:
        self._town = town
        home = ConsortiumFolder.open(town.consortium)
        self.identity = home.load_identity(None)
        roster = home.load_roster()
        self.roster = roster.current
        self.desk = _Desk(roster)
        self.presence = Presence()
        self.mailbox = Mailbox(lambda run: town.folder / "lies" / run)
        self._number = 0
        self._loop = Loop()

    def __enter__(self) -> Self:
        async def start() -> LinkServer:
            settings = ServerSettings(
                name=self.identity.name,
                key=self.identity.key,
                certificate_pem=self.identity.chain_pem.decode(),
                root_pem=self.identity.root_pem.decode(),
                roster=self.roster,
                port=self._town.port,
                heartbeat_s=HEARTBEAT_S,
                limits=Limits(calls_per_s=1000.0, burst=1000),
                grace_s=0.0,
            )
            server = LinkServer(
                settings, mailbox=self.mailbox, presence=self.presence, desk=self.desk
            )
            await server.start()
            return server

        self._server: LinkServer = self._loop.call(start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(TimeoutError):
            self._loop.call(self._server.stop())
        self._loop.close()

    def offer(self, study: Study, *, document: str | None = None) -> str:
        """Sign and offer a study; with another `document`, under a hash that is not its own."""
        name = study_hash(study)
        content = {
            "study": name,
            "document": document or canonical_json(study),
            "consortium": self.roster.consortium,
            "at_ms": time.time_ns() // 1_000_000,
        }
        said = state(OFFER, self.identity.name, content, self.identity.key)
        self.desk.offers.append(
            {"offer": said.decode(), "state": "running", "choice": "approve", "run": ""}
        )
        self.desk.version += 1
        return name

    def ask(
        self,
        site: str,
        *,
        study: str,
        config: Mapping[str, Any],
        arrays: Mapping[str, Any] | None = None,
        action: str = "train",
        round_number: int = 1,
        run: str = "r1",
    ) -> Content:
        """Ask a hospital something, and wait for what it answers."""
        self._number += 1
        body = write_body(
            self._town.folder / f"lie-{self._number}",
            Content(dict(config), {}, dict(arrays or {})),
        )
        task = Task(study, run, round_number, action, site, body, 1 << 20)
        self.mailbox.post([task])
        answers = self.mailbox.collect(
            [task.key], deadline=time.monotonic() + LIMIT_S, absent=lambda _site: None
        )
        [answer] = list(answers)
        self.mailbox.close([task.key])
        assert answer.body is not None, answer.refusal
        with Body.open(answer.body) as reply:
            return reply.content()
