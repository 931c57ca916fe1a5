"""A TCP proxy that does to a connection what networks do: delay, cut, duplicate, corrupt, freeze.

    async with Proxy("127.0.0.1", server_port) as proxy:
        proxy.plan(Fault("cut", "down", at=100_000))  # let 100 kB to the client pass, then cut
        ...                                           # connect to proxy.port
        await proxy.happened(1)

Every fault happens once, at a byte counted over all connections since it was planned, so that a
test does not depend on time. `delay_s`, `closed` and `freeze` hold until they are changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Direction = Literal["up", "down"]
"""Up is from the client to the server."""
_PIECE = 64 << 10


@dataclass
class Fault:
    """Something that happens once.

    Attributes:
        kind: cut the connection, flip bits of one byte, or send a piece again.
        direction: where.
        at: after how many bytes in that direction.
        size: how many bytes are sent again.
    """

    kind: Literal["cut", "corrupt", "duplicate"]
    direction: Direction = "down"
    at: int = 0
    size: int = 100


@dataclass(eq=False)
class _Pipe:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter

    def abort(self) -> None:
        """Reset both sides, as a cable that is pulled looks in the end."""
        for side in (self.near, self.far):
            side.transport.abort()


class Proxy:
    """Forwards connections to `127.0.0.1:port` of its own choice to a server.

    Attributes:
        port: to connect to.
        delay_s: how long every piece waits.
        closed: refuses new connections.
        passed: bytes that went each way.
        connections: how many there were.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.closed = False
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.connections = 0
        self._target = (host, port)
        self._faults: list[Fault] = []
        self._done = 0
        self._changed = asyncio.Condition()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pipes: set[_Pipe] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        self.cut()
        for task in tuple(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    def retarget(self, port: int) -> None:
        """Send new connections to another port: a server that was restarted."""
        self._target = (self._target[0], port)

    def plan(self, *faults: Fault) -> None:
        """Let faults happen; their bytes count from now."""
        for fault in faults:
            fault.at += self.passed[fault.direction]
            self._faults.append(fault)

    async def happened(self, count: int) -> None:
        """Wait until that many faults have happened since the beginning."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._done >= count)

    async def carried(self, count: int, direction: Direction) -> None:
        """Wait until that many bytes have passed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.passed[direction] >= count)

    def cut(self) -> None:
        """Cut every connection now."""
        for pipe in tuple(self._pipes):
            pipe.abort()

    def freeze(self) -> None:
        """Forward nothing more, but keep connections open: a firewall that forgot them."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Go on."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio's streams would report it as an error
        finally:
            writer.transport.abort()
            self._handlers.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.closed:
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            return
        pipe = _Pipe(writer, far_writer)
        self._pipes.add(pipe)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("up", reader, far_writer, pipe))
                group.create_task(self._pump("down", far_reader, writer, pipe))
        finally:
            self._pipes.discard(pipe)
            pipe.abort()

    async def _pump(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pipe: _Pipe,
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the other side may be gone already
            while data := await reader.read(_PIECE):
                await asyncio.sleep(self.delay_s)
                await self._flowing.wait()
                data, cut = self._suffer(direction, data)
                writer.write(data)
                await writer.drain()
                async with self._changed:
                    self._changed.notify_all()
                if cut:
                    pipe.abort()
                    return
            if writer.can_write_eof():
                writer.write_eof()
            return
        pipe.abort()

    def _suffer(self, direction: Direction, data: bytes) -> tuple[bytes, bool]:
        """What becomes of a piece, and whether the connection ends after it."""
        start = self.passed[direction]
        for fault in tuple(self._faults):
            position = fault.at - start
            if fault.direction != direction or position >= len(data):
                continue
            self._faults.remove(fault)
            self._done += 1
            position = max(0, position)
            if fault.kind == "cut":
                self.passed[direction] += position
                return data[:position], True
            if fault.kind == "corrupt":
                data = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
            else:
                again = data[position : position + fault.size]
                data = data[:position] + again + data[position:]
        self.passed[direction] += len(data)
        return data, False
