"""Sites for `benchmarks/link.py`, without training: FOLDER PORT NAME [NAME ...].

Each is the product's link with its own connection. The answer to a task is the weights that came
with it, kept durably before it goes out, as the product does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import sys
from pathlib import Path
from typing import Any

from fedward.client.link.assignments import Assignment
from fedward.client.link.connection import Endpoint
from fedward.client.link.link import Link
from fedward.client.link.settings import LinkSettings
from fedward.client.outbox import Outbox, write_durably
from fedward.common import records
from fedward.common.identity import Identity, PrivateKey, read_roster
from fedward.common.wire.body import Body, Content
from fedward.common.wire.link_pb2 import Head
from fedward.common.wire.session import Heads


class Echo:
    """Answers every task at once, and keeps count of logs that it does not have."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._outbox = Outbox(folder / "outbox")
        self._done = 1

    def heads(self) -> Heads:
        """Ends of logs that grow with every task, as a hospital's do."""
        head = Head(length=self._done, hash=hashlib.sha256(str(self._done).encode()).digest())
        return Heads(audit=head, ledger=head)

    async def decline(self, assignment: Assignment) -> Path | None:
        """Nothing is."""
        del assignment
        return None

    async def do(self, assignment: Assignment) -> Path:
        """The reply's file."""
        return await asyncio.to_thread(self._do, assignment)

    def _do(self, assignment: Assignment) -> Path:
        work = self._outbox.work(assignment.run, assignment.round, assignment.key)
        self._outbox.begin(work)
        self._done += 1
        if assignment.action == records.INTRODUCE:
            content = Content(config={records.SITE: self._name})
        elif assignment.action == records.TRAIN:
            with Body.open(assignment.body) as body:
                content = Content(metrics={records.WEIGHT: 1.0}, arrays=body.content().arrays)
        else:
            content = Content(metrics={records.WEIGHT: 1.0, records.RELEASED: 0.0})
        write_durably(work, content)
        return self._outbox.release(work)

    def closed(self, key: str) -> None:
        """Nothing to stop."""

    def receipt(self, key: str, evidence: bytes) -> None:
        """The reply has arrived."""
        del evidence
        self._outbox.receipt(key)

    def roster(self, data: bytes) -> None:
        """Nothing to keep."""

    def studies_changed(self) -> None:
        """Nothing to look at."""


def link_of(folder: Path, name: str, port: int) -> Link:
    """One site's link."""
    own, identity = folder / name, folder / "consortium" / "identity"
    key = PrivateKey.load(own / "site.key")
    site = Identity.load(key, own / "site.crt", identity / "root.crt")
    roster = read_roster((folder / "consortium" / "roster.json").read_bytes(), site.root_pem)
    work = Echo(name, own)
    settings = LinkSettings(Endpoint("127.0.0.1", port), own / "inbox")
    install: Any = lambda _pem: None  # noqa: E731
    return Link(
        settings, site, roster, work, random=random.random, install=install, heads=work.heads
    )


async def attend(folder: Path, port: int, names: list[str]) -> None:
    """Be these sites until killed."""
    links = [link_of(folder, name, port) for name in names]
    await asyncio.gather(*(link.run() for link in links))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(attend(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
