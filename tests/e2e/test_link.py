"""The link between a real server's end and a real hospital's: whatever the network does."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fedward.client.link.assignments import Assignment
from fedward.common.errors import IdentityError, LinkError
from fedward.common.identity import Member, PrivateKey
from fedward.common.wire import kinds
from fedward.common.wire.body import Content, write_body
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.message import unseal
from fedward.server.link.peers import Limits

from .link_world import SERVER, World, echo, within
from .proxy import Fault, Proxy


def body(folder: Path, size: int, name: str = "body") -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


@pytest.mark.parametrize("size", [1, 1000, 100_000, 20_000_000])
def test_bodies_go_there_and_back(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            path = body(tmp_path, size)
            task = world.task("north", path)
            answer = (await world.collect(task))["north"]
            assert answer.refusal is None
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            await site.work.until(lambda: task.key in site.work.receipts)
            # Both sides hold the other's signature over what was exchanged.
            keys = world.consortium.keys
            receipt = unseal(Signed.FromString(site.work.receipts[task.key]), keys[SERVER].public)
            reply = unseal(Signed.FromString(answer.evidence), keys["north"].public)
            assert (receipt.kind, reply.kind) == (kinds.RECEIPT, kinds.REPLY)
            assert (reply.run, reply.round, reply.body_size) == ("r1", 1, size)
            # What was only for the way is gone.
            while len(site.link._jobs):
                await asyncio.sleep(0)
            assert list((site.folder / "inbox").iterdir()) == []

    within(main())


def test_what_shrinks_travels_small(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            world.site("north", port=proxy.port)
            path = tmp_path / "zeros"
            path.write_bytes(bytes(4_000_000))
            answer = (await world.collect(world.task("north", path)))["north"]
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            assert Header.FromString(Signed.FromString(answer.evidence).header).encoding
            assert proxy.passed["up"] < 100_000

    within(main())


def test_several_sites_and_rounds(tmp_path: Path) -> None:
    async def main() -> None:
        names = ("north", "south", "east")
        async with World(tmp_path, sites=names) as world:
            for name in names:
                world.site(name)
            for number in range(1, 6):
                path = body(tmp_path, 50_000, f"body{number}")
                tasks = [world.task(name, path, round_number=number) for name in names]
                answers = await world.collect(*tasks)
                world.mailbox.close([task.key for task in tasks])
                assert {name: a.refusal for name, a in answers.items()} == dict.fromkeys(names)

    within(main())


def test_rounds_as_fast_as_they_come_are_never_too_many(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        world.limits = Limits(calls_per_s=0.001, burst=8)
        async with world:
            site = world.site("north")
            path = body(tmp_path, 600_000)  # more than a chunk: three calls
            for number in range(1, 13):
                task = world.task("north", path, round_number=number)
                answer = (await world.collect(task))["north"]
                world.mailbox.close([task.key])
                assert answer.refusal is None
            assert len(site.work.done) == 12

    within(main())


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_cut_transfer_goes_on_where_it_stopped(tmp_path: Path, direction: str) -> None:
    async def main() -> None:
        size = 20_000_000
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            site = world.site("north", port=proxy.port)
            await site.connected()
            before = dict(proxy.passed)
            for at in (6_000_000, 14_000_000):
                proxy.plan(Fault("cut", direction, at=at))  # type: ignore[arg-type]
            path = body(tmp_path, size)
            answer = (await world.collect(world.task("north", path)))["north"]
            await proxy.happened(2)
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            assert len(site.work.done) == 1
            # Resumed, not begun again: what was on the way when it broke is all that is lost.
            passed = proxy.passed[direction] - before[direction]  # type: ignore[index,literal-required]
            assert passed < size + 12_000_000

    within(main())


def test_bytes_changed_on_the_way_are_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            site = world.site("north", port=proxy.port)
            await site.connected()
            proxy.plan(
                Fault("corrupt", "down", at=300_000),
                Fault("duplicate", "down", at=2_000_000),
                Fault("corrupt", "up", at=900_000),
                Fault("duplicate", "up", at=2_500_000),
            )
            path = body(tmp_path, 3_000_000)
            answer = (await world.collect(world.task("north", path)))["north"]
            await proxy.happened(4)
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            assert proxy.connections > 2
            assert len(site.work.done) == 1

    within(main())


def test_a_silent_connection_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            site = world.site("north", port=proxy.port)
            await site.connected()
            proxy.freeze()
            while site.link.status.connected:
                await asyncio.sleep(0.01)
            assert "silent" in site.link.status.problem or "broke" in site.link.status.problem
            proxy.thaw()
            answer = (await world.collect(world.task("north", body(tmp_path, 1000))))["north"]
            assert answer.refusal is None

    within(main())


def test_a_restarted_server_is_answered_from_the_outbox(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            site = world.site("north", port=proxy.port)
            path = body(tmp_path, 2_000_000)
            released = asyncio.Event()

            async def slow(assignment: Assignment, outbox: Path) -> Path:
                await released.wait()
                return await echo(assignment, outbox)

            site.work.function = slow
            task = world.task("north", path)
            world.mailbox.post([task])
            await site.work.until(lambda: site.work.begun == [task.key])
            await world.restart_server()
            proxy.retarget(world.port)
            await site.connected()
            released.set()
            answer = (await world.collect(task))["north"]
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            await site.work.until(lambda: task.key in site.work.receipts)
            assert site.work.done == [task.key]
            # The server loses everything, folder included, and asks again: no work is done again.
            await world.restart_server()
            proxy.retarget(world.port)
            for old in (tmp_path / "runs").rglob("*"):
                if old.is_file():
                    old.unlink()
            again = (await world.collect(task))["north"]
            assert again.body is not None
            assert again.body.read_bytes() == path.read_bytes()
            assert site.work.done == [task.key]

    within(main())


def test_a_restarted_server_that_has_the_reply_does_not_ask(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            task = world.task("north", body(tmp_path, 1000))
            await world.collect(task)
            await site.stop()
            await world.restart_server()
            answer = (await world.collect(task))["north"]
            assert answer.body is not None

    within(main())


def test_a_restarted_client_answers_from_the_outbox(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            site = world.site("north", port=proxy.port)
            path = body(tmp_path, 3_000_000)
            await site.connected()
            proxy.plan(Fault("cut", "up", at=1_500_000))
            proxy.plan(Fault("cut", "up", at=1_500_001))
            task = world.task("north", path)
            collecting = asyncio.create_task(world.collect(task))
            await proxy.happened(1)
            await site.restart()
            answer = (await collecting)["north"]
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            assert site.work.done == []  # the second process found the first one's reply
            await site.work.until(lambda: task.key in site.work.receipts)

    within(main())


def test_a_lost_receipt_is_asked_for_again(tmp_path: Path) -> None:
    """The server has the reply and does not ask again; the site still wants its receipt."""

    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            site = world.site("north", port=proxy.port)
            await site.connected()
            task = world.task("north", body(tmp_path, 1000))

            async def cutting(assignment: Assignment, outbox: Path) -> Path:
                site.work.function = echo
                proxy.plan(Fault("cut", "down", at=0))  # the next thing that the server says
                return await echo(assignment, outbox)

            site.work.function = cutting
            await world.collect(task)
            await site.work.until(lambda: task.key in site.work.receipts)
            assert len(site.work.done) == 1

    within(main())


def test_a_closed_task_is_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            released = asyncio.Event()

            async def slow(assignment: Assignment, outbox: Path) -> Path:
                await released.wait()
                return await echo(assignment, outbox)

            site.work.function = slow
            task = world.task("north", body(tmp_path, 1000))
            world.mailbox.post([task])
            await site.work.until(lambda: site.work.begun == [task.key])
            world.mailbox.close([task.key])
            await site.work.until(lambda: site.work.closed_keys == [task.key])
            released.set()
            while site.link.status.in_hand:
                await asyncio.sleep(0.01)
            assert site.work.receipts == {}

    within(main())


def test_a_refusal_of_the_work_reaches_the_server_without_its_words(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")

            async def refuse(assignment: Assignment, outbox: Path) -> Path:
                raise LinkError("private words", hint="of the site")

            site.work.function = refuse
            answer = (await world.collect(world.task("north", body(tmp_path, 1000))))["north"]
            assert answer.body is not None
            data = answer.body.read_bytes()
            assert b"error-code" in data
            assert b"private words" not in data

    within(main())


def test_a_large_task_that_nobody_wants_is_not_even_fetched(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            site.work.declines = tmp_path / "refusal"
            write_body(site.work.declines, Content({"error-code": 14}))
            small = (await world.collect(world.task("north", body(tmp_path, 1000))))["north"]
            assert small.body is not None
            assert (site.work.declined, len(site.work.done)) == ([], 1)
            task = world.task("north", body(tmp_path, 3_000_000))
            answer = (await world.collect(task))["north"]
            assert answer.body is not None
            assert b"error-code" in answer.body.read_bytes()
            [declined] = site.work.declined
            assert declined.run == task.run
            assert len(site.work.done) == 1
            assert site.link.status.received < 3_000_000

    within(main())


def test_no_task_takes_the_last_room_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(
                "fedward.client.link.transfers.shutil.disk_usage",
                lambda _folder: usage._replace(free=(1 << 30) + 2_000_000),
            )
            answer = (await world.collect(world.task("north", body(tmp_path, 3_000_000))))["north"]
            assert answer.body is not None
            assert b"error-code" in answer.body.read_bytes()
            assert site.work.done == []
            assert site.link.status.received == 0
            small = body(tmp_path, 1_500_000, "small")
            await world.collect(world.task("north", small))
            assert len(site.work.done) == 1

    within(main())


def test_a_defect_of_the_work_is_not_swallowed(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")

            async def broken(assignment: Assignment, outbox: Path) -> Path:
                raise ZeroDivisionError

            site.work.function = broken
            world.mailbox.post([world.task("north", body(tmp_path, 1000))])
            assert site.running is not None
            with pytest.raises(ZeroDivisionError):
                await site.running

    within(main())


def test_a_revoked_site_ends_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path, sites=("north", "south")) as world:
            north, south = world.site("north"), world.site("south")
            await north.connected()
            await south.connected()
            assert world.server is not None
            world.server.use_roster(world.consortium.revoke("north"))
            assert north.running is not None
            with pytest.raises(IdentityError, match="revoked"):
                await north.running
            assert "revoked" in north.link.status.problem
            # The others learn of it and go on.
            await south.work.until(lambda: bool(south.work.rosters))
            assert south.link.roster.version == 2
            answer = await world.collect(world.task("south", body(tmp_path, 1000)))
            assert answer["south"].refusal is None

    within(main())


def test_a_certificate_is_renewed_while_running(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north", days=90, began=timedelta(days=61))
            await site.work.until(lambda: site.work.changes >= 1)
            while not site.installed:
                await asyncio.sleep(0.01)
            answer = (await world.collect(world.task("north", body(tmp_path, 1000))))["north"]
            assert answer.refusal is None
            assert world.desk.asked.count("renew") == 1
            assert site.link._upkeep.identity.chain_pem.decode() == site.installed[0]
            assert not site.link._upkeep.renewal_due

    within(main())


def test_a_younger_certificate_is_not_renewed(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north", days=90, began=timedelta(days=58))
            await world.collect(world.task("north", body(tmp_path, 1000)))
            assert world.desk.asked.count("renew") == 0
            assert site.installed == []

    within(main())


def test_a_server_with_a_new_key_is_known_by_the_roster(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            await world.stop_server()
            old = world.consortium.roster
            key = PrivateKey.generate()
            world.consortium.keys[SERVER] = key
            world.consortium.members[SERVER] = Member.make(
                SERVER, "coordinator", key.public, since="2026-01-01"
            )
            world.consortium.publish()
            await world.restart_server()
            site = world.site("north")
            await site.stop()
            site.roster = old
            await site.restart()
            await site.connected()
            assert site.link.roster.version == 2
            assert len(site.work.rosters) == 1

    within(main())


def test_a_server_that_is_not_of_the_roster_is_refused(tmp_path: Path) -> None:
    """Its certificate is by the same issuer, but the roster gives the name another key."""

    async def main() -> None:
        async with World(tmp_path / "a") as world:
            site = world.site("north")
            await site.connected()
            await site.stop()
            await world.stop_server()
            roster = world.consortium.roster
            key = PrivateKey.generate()
            world.consortium.keys[SERVER] = key
            genuine = world.consortium.members[SERVER]
            world.consortium.members[SERVER] = genuine.make(
                SERVER, "coordinator", key.public, since="2026-01-01"
            )
            chain = world.consortium.chain(SERVER)
            world.consortium.members[SERVER] = genuine
            world.consortium.chain = lambda name, **_dates: chain  # type: ignore[method-assign]
            await world.restart_server()
            site.port, site.roster = world.port, roster
            await site.restart()
            while "not the coordinator of this site's roster" not in site.link.status.problem:
                assert site.running is not None
                assert not site.running.done()
                await asyncio.sleep(0.01)
            assert not site.link.status.connected

    within(main())


def test_questions_are_asked_and_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            assert await site.link.ask(kinds.STUDIES, {}) == {"studies": []}
            answer = await site.link.ask(kinds.PROBE, {})
            assert answer["roster"] == 1
            with pytest.raises(LinkError, match="refuses"):
                await site.link.ask(kinds.GREET, {})
            changes = site.work.changes
            assert world.server is not None
            world.desk.version = 2
            world.server.studies_changed()
            await site.work.until(lambda: site.work.changes > changes)

    within(main())


def test_a_server_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", world.port) as proxy:
            proxy.closed = True
            site = world.site("north", port=proxy.port)
            while proxy.connections < 3:
                await asyncio.sleep(0.01)
            assert not site.link.status.connected
            assert "cannot be reached" in site.link.status.problem
            proxy.closed = False
            await site.connected()
            assert site.link.status.problem == ""

    within(main())


def test_a_stray_proxy_variable_redirects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with World(tmp_path) as world, Proxy("127.0.0.1", 9) as elsewhere:
            for name in ("grpc_proxy", "https_proxy", "http_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere.port}")
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("no_grpc_proxy", raising=False)
            site = world.site("north")
            await site.connected()
            assert elsewhere.connections == 0
            # The site's own settings may name one.
            await site.stop()
            site.proxy = f"http://127.0.0.1:{elsewhere.port}"
            await site.restart()
            while elsewhere.connections == 0:
                await asyncio.sleep(0.01)
            assert not site.link.status.connected

    within(main())


def test_the_same_question_asked_again_at_once_is_answered_again(tmp_path: Path) -> None:
    """As before every round, of a site that refused before: both within one notice."""

    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            await site.connected()
            same, other = body(tmp_path, 100), body(tmp_path, 100, "other")
            for number in range(1, 20):
                task = world.task("north", same, round_number=0)
                answer = (await world.collect(task))["north"]
                assert answer.body is not None
                # Nothing of the server runs between these: a round in between, and asked again.
                later = world.task("north", other, round_number=number)
                world.mailbox.close([task.key])
                world.mailbox.post([later])
                world.mailbox.close([later.key])
                again = world.task("north", same, round_number=0)
                world.mailbox.post([again])
                answer = (await world.collect(again))["north"]
                assert answer.body is not None
                world.mailbox.close([again.key])
                world.mailbox.post([world.task("north", other, round_number=1000 + number)])

    within(main())


def test_a_reply_that_is_gone_is_made_again_and_not_looked_for_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")

            async def gone(assignment: Assignment, outbox: Path) -> Path:
                site.work.function = echo
                return outbox / assignment.key

            site.work.function = gone
            path = body(tmp_path, 100)
            answer = (await world.collect(world.task("north", path)))["north"]
            assert answer.body is not None
            assert answer.body.read_bytes() == path.read_bytes()
            assert len(site.work.begun) == 2

    within(main())


def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            site = world.site("north")
            await site.connected()
            await site.stop()
            assert not site.link.status.connected
            site.link._settings = replace(site.link._settings, patience_s=0.01)
            with pytest.raises(LinkError, match="cannot be reached"):
                await site.link.ask(kinds.PROBE, {})

    within(main())
