"""A reply that is ready when the site withdraws does not leave: the site is asked anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fedward.client.link import jobs as jobs_module
from fedward.client.link.assignments import Assignment, Offer
from fedward.client.link.backoff import Backoff
from fedward.client.link.connection import Line
from fedward.client.link.jobs import Jobs
from fedward.client.link.transfers import Outgoing
from fedward.common.errors import LinkError
from fedward.common.identity import PrivateKey
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.session import Session

STUDY = "a" * 64


class Ward:
    """Answers by an update, until it has withdrawn; then by a refusal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = 0
        self.withdrawn = False
        self.received = asyncio.Event()

    async def decline(self, assignment: Assignment) -> Path | None:
        return None

    async def do(self, assignment: Assignment) -> Path:
        self.asked += 1
        path = self.folder / ("refusal" if self.withdrawn else "update")
        path.write_bytes(path.name.encode())
        return path

    def closed(self, key: str) -> None: ...

    def receipt(self, key: str, evidence: bytes) -> None:
        self.received.set()

    def roster(self, data: bytes) -> None: ...

    def studies_changed(self) -> None: ...


def both_ends() -> tuple[Session, Session]:
    site, server = PrivateKey.generate(), PrivateKey.generate()
    name = b"n" * 32
    ours = Session(name, me="north", peer="central", signer=site, verifier=server.public)
    theirs = Session(name, me="central", peer="north", signer=server, verifier=site.public)
    return ours, theirs


@pytest.mark.parametrize("study", [STUDY, "b" * 64])
def test_what_is_ready_when_a_site_withdraws_does_not_leave(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line breaks while the update is sent; the site withdraws; the line comes back."""
    sent: list[str] = []

    async def fetch(_line: Line, _offer: Offer, inbox: Path) -> Path:
        return inbox / "body"

    async def main() -> None:
        ward, broken = Ward(tmp_path), asyncio.Event()

        async def send(_line: Line, _offer: Offer, outgoing: Outgoing) -> Signed:
            if not broken.is_set():
                broken.set()
                raise LinkError("the connection broke", hint="it is made again")
            sent.append(outgoing.path.name)
            return Signed()

        patched: dict[str, Any] = {"fetch": fetch, "send": send}
        for name, function in patched.items():
            monkeypatch.setattr(jobs_module, name, function)
        jobs = Jobs(
            ward,
            tmp_path,
            backoff=lambda: Backoff(random=lambda: 0.0, first_s=0.05, longest_s=0.05),
            most_bytes=100,
            offer_wait_s=5.0,
        )
        ours, theirs = both_ends()
        line = Line(None, ours, 5.0)
        jobs.connected(line)
        fields: dict[str, Any] = {"body_sha256": b"s" * 32, "body_size": 1, "plain_size": 1}
        task = theirs.large(kinds.TASK, study=STUDY, run="r1", round=1, action="train", **fields)
        jobs.offer(line, task)
        await broken.wait()
        ward.withdrawn = True
        jobs.reconsider(study)
        async with asyncio.timeout(20):
            await ward.received.wait()
        await jobs.stop()
        assert ward.asked == (2 if study == STUDY else 1)

    asyncio.run(main())
    assert sent == (["refusal"] if study == STUDY else ["update"])
