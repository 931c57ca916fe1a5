"""A line that goes while something is on its way: the transfer ends at once, and is done again.

A call of gRPC that had not begun when its channel was closed waits for ever; nothing here may.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fedward.client.link import jobs as jobs_module
from fedward.client.link.assignments import Offer
from fedward.client.link.backoff import Backoff
from fedward.client.link.connection import Line
from fedward.client.link.jobs import Jobs
from fedward.client.link.transfers import Outgoing
from fedward.common.errors import LinkError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.session import Session

from .test_link_withdrawn import STUDY, Ward, both_ends


def offered(jobs: Jobs, ours: Session, theirs: Session, *, number: int = 1) -> None:
    """A line, and a task on it."""
    line = Line(None, ours, 3600.0)
    jobs.connected(line)
    fields: dict[str, Any] = {"body_sha256": b"s" * 32, "body_size": 1, "plain_size": 1}
    task = theirs.large(kinds.TASK, study=STUDY, run="r1", round=number, action="train", **fields)
    jobs.offer(line, task)


def make_jobs(ward: Ward, folder: Path) -> Jobs:
    return Jobs(
        ward,
        folder,
        backoff=lambda: Backoff(random=lambda: 0.0, first_s=0.01, longest_s=0.01),
        most_bytes=100,
        offer_wait_s=5.0,
    )


@pytest.mark.parametrize("hangs", ["fetch", "send"])
def test_a_transfer_ends_with_its_line(
    hangs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way is on its way again as soon as there is a line, not a minute later."""
    begun: list[str] = []

    async def main() -> None:
        hanging = asyncio.Event()

        async def once(what: str) -> None:
            begun.append(what)
            if what == hangs and begun.count(what) == 1:
                hanging.set()
                await asyncio.Event().wait()

        async def fetch(_line: Line, _offer: Offer, inbox: Path) -> Path:
            await once("fetch")
            return inbox / "body"

        async def send(_line: Line, _offer: Offer, _outgoing: Outgoing) -> Signed:
            await once("send")
            return Signed()

        monkeypatch.setattr(jobs_module, "fetch", fetch)
        monkeypatch.setattr(jobs_module, "send", send)
        ward = Ward(tmp_path)
        jobs = make_jobs(ward, tmp_path)
        ours, theirs = both_ends()
        offered(jobs, ours, theirs)
        await hanging.wait()
        jobs.disconnected()
        offered(jobs, ours, theirs)
        async with asyncio.timeout(20):
            await ward.received.wait()
        await jobs.stop()
        assert ward.asked == 1

    asyncio.run(main())
    assert sorted(begun) == sorted(["fetch", "send", hangs])


def test_no_more_tasks_are_taken_on_than_a_site_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have a body on the disk: a server that asks on and on is left, not obeyed."""

    async def fetch(_line: Line, _offer: Offer, _inbox: Path) -> Path:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        monkeypatch.setattr(jobs_module, "fetch", fetch)
        jobs = make_jobs(Ward(tmp_path), tmp_path)
        ours, theirs = both_ends()
        for number in range(1, jobs_module.MOST_TASKS + 1):
            offered(jobs, ours, theirs, number=number)
        with pytest.raises(LinkError, match="more at once"):
            offered(jobs, ours, theirs, number=jobs_module.MOST_TASKS + 1)
        offered(jobs, ours, theirs, number=1)  # one that is in hand is taken up again
        assert len(jobs) == jobs_module.MOST_TASKS
        await jobs.stop()

    asyncio.run(main())


def test_old_messages_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection may last for weeks: what it remembers of its tasks is bounded."""

    async def fetch(_line: Line, _offer: Offer, inbox: Path) -> Path:
        return inbox / "body"

    async def send(_line: Line, _offer: Offer, _outgoing: Outgoing) -> Signed:
        return Signed()

    async def main() -> None:
        monkeypatch.setattr(jobs_module, "fetch", fetch)
        monkeypatch.setattr(jobs_module, "send", send)
        monkeypatch.setattr(jobs_module, "_REMEMBERED", 8)
        ward = Ward(tmp_path)
        jobs = make_jobs(ward, tmp_path)
        ours, theirs = both_ends()
        for number in range(1, 41):
            ward.received.clear()
            offered(jobs, ours, theirs, number=number)
            async with asyncio.timeout(20):
                await ward.received.wait()
        assert len(jobs._keys) <= 16
        await jobs.stop()

    asyncio.run(main())
