"""A site and the service on a real port: everything works as it should, for those who may."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.server.link_client import Running, body_of, running

from fedward.common.version import version
from fedward.common.wire import kinds
from fedward.common.wire.body import Body
from fedward.common.wire.link_pb2 import Chunk, Part
from fedward.common.wire.message import task_key
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.tasks import Answer


def collected(mailbox: Mailbox, *keys: str, wait_s: float = 20) -> list[Answer]:
    return list(
        mailbox.collect(keys, deadline=time.monotonic() + wait_s, absent=lambda _site: None)
    )


def test_greeting_says_who_speaks_what(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            answer = await north.greet()
            assert answer["kind"] == kinds.GREET
            assert answer["protocol"] == kinds.PROTOCOL
            assert answer["software"] == version()
            assert answer["roster"] == 1
            assert answer["heartbeat_s"] == 10.0
            assert answer["asked"] == "greet"
            assert abs(answer["clock"] / 1000 - time.time()) < 60
            kind, body = await north.ask(kinds.PROBE)
            assert (kind, body["roster"]) == (kinds.PROBE, 1)
            assert up.reasons == []

    asyncio.run(main())


def test_the_desk_answers_with_evidence(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            await north.greet()
            for kind in (kinds.STUDIES, kinds.DECIDE, kinds.RENEW, kinds.ROSTER, kinds.WITNESS):
                answer = await north.ask(kind, {"x": 1})
                assert answer == (kind, {"asked": kind})
            asked = up.desk.questions[-1]
            assert (asked.site, asked.body, asked.kind) == ("north", {"x": 1}, kinds.WITNESS)
            assert asked.header.sender == "north"
            assert asked.evidence

    asyncio.run(main())


def test_a_task_travels_there_and_its_reply_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            await north.greet()
            stream = north.attend()
            await stream.beat()
            first = await stream.notice()
            assert (first.number, list(first.tasks), first.roster_version) == (1, [], 1)
            task = up.task(size=1 << 20, most_bytes=8 << 20)  # 4 MB: several chunks
            up.mailbox.post([task])
            message = await stream.task()  # at once, not after a heartbeat
            header = north.session.open(message)
            assert (header.kind, header.action, header.round) == (kinds.TASK, "train", 1)
            assert task.key == task_key(
                run=header.run,
                round_number=header.round,
                action=header.action,
                site="north",
                body_sha256=header.body_sha256,
            )
            data = await north.fetch(message)
            assert hashlib.sha256(data).digest() == header.body_sha256
            assert await north.fetch(message, offset=1_000_001) == data[1_000_001:]
            written, reply = body_of(tmp_path, np.arange(1 << 20))
            kind, receipt = await north.send(north.reply(message, written), reply)
            assert kind == kinds.RECEIPT
            assert receipt == {"task": task.key, "round": 1, "body": written.sha256.hex()}
            (answer,) = await asyncio.to_thread(collected, up.mailbox, task.key)
            assert answer.body is not None
            with Body.open(answer.body) as body:
                assert body.array("w")[-1] == (1 << 20) - 1
            up.mailbox.close([task.key])
            while not (notice := await stream.notice()).closed:
                pass
            assert len(notice.closed) == 1
            stream.cancel()
            assert up.reasons == []

    asyncio.run(main())


async def asked(up: Running, north: Any, **fields: Any) -> tuple[Any, Any, Any]:
    """Greet, attend, get one task."""
    await north.greet()
    stream = north.attend()
    await stream.beat()
    task = up.task(**fields)
    up.mailbox.post([task])
    message = await stream.task()
    north.session.open(message)
    return stream, task, message


def test_a_broken_reply_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up:
            written, reply = body_of(tmp_path, np.random.default_rng(1).random(1 << 19))
            half = len(reply) // 2
            async with up.site() as north:
                stream, task, message = await asked(up, north, most_bytes=4 << 20)
                call = north.stub.Send()
                await call.write(Part(message=north.reply(message, written)))
                await call.write(Part(chunk=Chunk(offset=0, data=reply[:half])))
                await north.arrived(message, written, half)
                call.cancel()
                stream.cancel()
            async with up.site() as north:  # another connection, another session
                await north.greet()
                stream = north.attend()
                await stream.beat()
                again = await stream.task()
                header = north.session.open(again)
                fields = {"run": header.run, "round": header.round, "action": header.action}
                question = {"sha256": written.sha256.hex(), "size": written.size}
                _, body = await north.ask(kinds.OFFSET, question, study=header.study, **fields)
                assert body["offset"] == half
                answer = await north.send(north.reply(again, written), reply, offset=half)
                assert answer[0] == kinds.RECEIPT
                # Once more: the receipt was lost on the way.
                assert (await north.send(north.reply(again, written), reply))[0] == kinds.RECEIPT
                stream.cancel()
            (answer,) = collected(up.mailbox, task.key)
            assert answer.body is not None
            assert answer.body.read_bytes() == reply

    asyncio.run(main())


def test_a_newer_transfer_takes_the_place_of_one_that_hangs(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            stream, task, message = await asked(up, north)
            written, reply = body_of(tmp_path, np.arange(1000))
            hanging = north.stub.Send()
            await hanging.write(Part(message=north.reply(message, written)))
            await hanging.write(Part(chunk=Chunk(offset=0, data=reply[:100])))
            await asyncio.sleep(0)
            assert (await north.send(north.reply(message, written), reply))[0] == kinds.RECEIPT
            (answer,) = await asyncio.to_thread(collected, up.mailbox, task.key)
            assert answer.refusal is None
            hanging.cancel()
            stream.cancel()

    asyncio.run(main())


def test_a_packed_reply_is_unpacked(tmp_path: Path) -> None:
    from fedward.common.wire.encoding import DEFLATE, deflate

    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            stream, task, message = await asked(up, north)
            plain, reply = body_of(tmp_path, np.zeros(10_000))
            packed = deflate(plain.path, tmp_path / "packed")
            assert packed.size < plain.size / 10
            header = north.reply(message, packed, encoding=DEFLATE, plain_size=plain.size)
            assert (await north.send(header, packed.path.read_bytes()))[0] == kinds.RECEIPT
            (answer,) = await asyncio.to_thread(collected, up.mailbox, task.key)
            assert answer.body is not None
            assert answer.body.read_bytes() == reply
            stream.cancel()

    asyncio.run(main())


def test_who_is_there_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            assert not up.presence.connected("north")
            await north.greet()
            stream = north.attend()
            await stream.beat()
            await stream.notice()
            assert up.presence.connected("north")
            (known,) = up.presence.snapshot()
            assert (known.site, known.connected, known.software) == ("north", True, version())
            await stream.call.done_writing()
            assert await stream.reason() == ""
            while up.presence.connected("north"):
                await asyncio.sleep(0.01)
            assert up.presence.snapshot()[0].reason == "the site closed the connection"
            assert up.presence.absent_s("north") < 20

    asyncio.run(main())


def test_a_site_that_falls_silent_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, heartbeat_s=0.05) as up, up.site() as north:
            await north.greet()
            stream = north.attend()
            await stream.beat()
            assert "no heartbeat" in await stream.reason()
            assert not up.presence.connected("north")
            assert up.presence.snapshot()[0].reason == "no heartbeat"

    asyncio.run(main())


def test_another_certificate_for_the_same_key_is_shown_to_new_connections(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up:
            async with up.site() as north:
                await north.greet()
                renewed = up.consortium.chain("coordination", "coordinator", days=60)
                up.server.use_certificate(renewed)
                assert (await north.ask(kinds.PROBE))[0] == kinds.PROBE
            seen = await asyncio.to_thread(served_certificate, up)
            assert seen == renewed.split("-----END")[0]

    asyncio.run(main())


def served_certificate(up: Running) -> str:
    import socket
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", up.port)) as raw,
        context.wrap_socket(raw) as tls,
    ):
        found = tls.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found).split("-----END")[0]


def test_members_can_ask_whether_the_service_is_healthy(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            check = HealthStub(north.channel).Check
            answer = await check(HealthCheckRequest(service="fedward.link.v1.Link"), timeout=10)
            assert answer.status == HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(HealthCheckRequest(service="something"), timeout=10)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(main())


def test_stopping_says_so_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()

    async def main() -> str:
        async with running(tmp_path) as up, up.site() as north:
            await north.greet()
            stream = north.attend()
            await stream.beat()
            await stream.notice()
            reason = asyncio.create_task(stream.reason())
            await up.server.stop()
            return await reason

    assert "the server stops" in asyncio.run(main())
    assert threading.active_count() <= before + 1


def test_a_port_that_is_taken_is_said_in_words(tmp_path: Path) -> None:
    from fedward.common.errors import LinkError

    async def main() -> None:
        async with running(tmp_path / "a") as up:
            with pytest.raises(LinkError, match="cannot listen at"):
                async with running(tmp_path / "b", port=up.port):
                    pass

    asyncio.run(main())
