"""The proxy of the other tests does what it says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from .proxy import Fault, Proxy

DATA = os.urandom(300_000)


async def receive(port: int, data: bytes = DATA) -> bytes:
    """Send everything through the proxy to a server that echoes, and collect what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def push() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    pushing = asyncio.create_task(push())
    received = bytearray()
    try:
        while len(received) < len(data) and (piece := await reader.read(1 << 16)):
            received += piece
    except ConnectionError:
        pass
    finally:
        await asyncio.gather(pushing, return_exceptions=True)
        writer.transport.abort()
    return bytes(received)


def through_a_proxy(check: Callable[[Proxy], Awaitable[None]]) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            await check(proxy)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_it_forwards() -> None:
    async def check(proxy: Proxy) -> None:
        proxy.delay_s = 0.001
        assert await receive(proxy.port) == DATA
        assert proxy.passed == {"up": len(DATA), "down": len(DATA)}
        assert proxy.connections == 1

    through_a_proxy(check)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_it_cuts_once(direction: str) -> None:
    async def check(proxy: Proxy) -> None:
        proxy.plan(Fault("cut", direction, at=100_001))  # type: ignore[arg-type]
        received = await receive(proxy.port)
        await proxy.happened(1)
        assert len(received) <= 100_001
        assert DATA.startswith(received)
        assert proxy.passed[direction] == 100_001  # type: ignore[index]
        assert await receive(proxy.port) == DATA

    through_a_proxy(check)


def test_it_corrupts_one_byte() -> None:
    async def check(proxy: Proxy) -> None:
        proxy.plan(Fault("corrupt", "up", at=777))
        received = await receive(proxy.port)
        different = [n for n, (a, b) in enumerate(zip(received, DATA, strict=True)) if a != b]
        assert different == [777]
        assert await receive(proxy.port) == DATA

    through_a_proxy(check)


def test_it_sends_again() -> None:
    async def check(proxy: Proxy) -> None:
        proxy.plan(Fault("duplicate", "down", at=10, size=5))
        received = await receive(proxy.port, DATA[:50])
        assert received == DATA[:15] + DATA[10:50]

    through_a_proxy(check)


def test_it_freezes_and_thaws() -> None:
    async def check(proxy: Proxy) -> None:
        proxy.freeze()
        receiving = asyncio.create_task(receive(proxy.port))
        while proxy.connections == 0:
            await asyncio.sleep(0)
        assert proxy.passed["down"] == 0
        proxy.thaw()
        assert await receiving == DATA

    through_a_proxy(check)


def test_it_refuses_and_cuts_everything() -> None:
    async def check(proxy: Proxy) -> None:
        proxy.closed = True
        assert await receive(proxy.port, b"abc") == b""
        proxy.closed = False
        proxy.freeze()
        receiving = asyncio.create_task(receive(proxy.port))
        while proxy.connections < 2:
            await asyncio.sleep(0)
        while not proxy._pipes:
            await asyncio.sleep(0)
        proxy.cut()
        assert await receiving == b""

    through_a_proxy(check)
