"""The monitoring port answers /metrics and /healthz, and gives nobody anything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from fedward.common.errors import LinkError, StateError
from fedward.common.monitoring import probe
from fedward.common.monitoring.endpoint import Endpoint
from fedward.common.monitoring.health import Health

ASK = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
Scenario = Callable[[int], Awaitable[None]]


def serve(scenario: Scenario, *, health: Health | None = None, patience_s: float = 30.0) -> None:
    async def play() -> None:
        registry = CollectorRegistry()
        Gauge("answer", "To everything.", registry=registry).set(42)
        endpoint = Endpoint(registry, health or Health({}), patience_s=patience_s)
        port = await endpoint.start()
        try:
            await scenario(port)
        finally:
            await endpoint.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(play())


async def talk(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def get(port: int, path: str, *, host: str = "localhost:1") -> tuple[int, str, bytes]:
    answer = await talk(port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _, content = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert int(headers["Content-Length"]) == len(content)
    return int(lines[0].split()[1]), headers["Content-Type"], content


def test_figures() -> None:
    async def scenario(port: int) -> None:
        status, kind, content = await get(port, "/metrics?x=1")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        (family,) = text_string_to_metric_families(content.decode())
        assert (family.name, family.samples[0].value) == ("answer", 42.0)

    serve(scenario)


def test_health() -> None:
    wrong: dict[str, str | None] = {"database": None, "disk": None}

    def database() -> str | None:
        if wrong["database"]:
            raise LinkError(wrong["database"], hint="start it")
        return None

    async def scenario(port: int) -> None:
        status, kind, content = await get(port, "/healthz")
        assert (status, kind) == (200, "application/json")
        assert json.loads(content) == {"healthy": True, "reasons": {}}
        wrong.update(database="it is away", disk="it is full")
        status, _, content = await get(port, "/healthz")
        assert status == 503
        reasons = {"database": "it is away", "disk": "it is full"}
        assert json.loads(content) == {"healthy": False, "reasons": reasons}

    serve(scenario, health=Health({"database": database, "disk": lambda: wrong["disk"]}))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\nhost: [::1]:9\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xff \r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_refused(request_: bytes, status: int) -> None:
    async def scenario(port: int) -> None:
        answer = await talk(port, request_)
        # A request that is not read to its end can reset the connection before its answer.
        assert answer.startswith(b"HTTP/1.1 %d " % status) or (status == 431 and not answer)
        assert (b"answer 42.0" in answer) == (status == 200)
        assert (await get(port, "/healthz"))[0] == 200

    serve(scenario)


def test_who_says_nothing_is_cut_off() -> None:
    async def scenario(port: int) -> None:
        assert await talk(port, b"GET /metrics HT") == b""

    serve(scenario, patience_s=0.05)


def test_few_connections_at_a_time() -> None:
    async def scenario(port: int) -> None:
        async with AsyncExitStack() as held:
            for _ in range(16):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                held.callback(writer.close)
            assert await talk(port, ASK) == b""
        while not await talk(port, ASK):
            await asyncio.sleep(0)

    serve(scenario)


def test_stopping_ends_those_who_wait() -> None:
    async def scenario(port: int) -> None:
        asked = [asyncio.create_task(talk(port, b"GET")) for _ in range(3)]
        await get(port, "/healthz")
        waiting.extend(asked)

    waiting: list[asyncio.Task[bytes]] = []
    serve(scenario)
    assert all(task.done() for task in waiting)


def test_a_port_that_is_taken() -> None:
    async def scenario(port: int) -> None:
        second = Endpoint(CollectorRegistry(), Health({}), port=port)
        with pytest.raises(StateError, match="choose another port"):
            await second.start()
        await second.stop()

    serve(scenario)


@pytest.mark.parametrize("arguments", [[], ["0"], ["65536"], ["x"], ["1", "2"]])
def test_a_probe_without_a_port(arguments: list[str]) -> None:
    assert probe.main(arguments) == 2


def test_probes() -> None:
    wrong: list[str] = []

    async def scenario(port: int) -> None:
        assert await asyncio.to_thread(probe.main, [str(port)]) == 0
        wrong.append("the disk is full")
        assert await asyncio.to_thread(probe.main, [str(port)]) == 1
        ports.append(str(port))

    ports: list[str] = []
    serve(scenario, health=Health({"disk": lambda: wrong[0] if wrong else None}))
    assert probe.main(ports) == 1  # nobody is there any more
