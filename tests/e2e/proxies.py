"""The proxy of `proxy.py` for processes: one for each hospital, on a loop in a thread.

with Proxies(federation) as proxies:                 # before the daemons are started
    proxies.trouble(seed=1, faults=8)
    ...
    proxies.quiet()
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from fedward.simulations.rehearsal.federation import Federation

from .federated import change
from .proxy import Fault, Proxy

T = TypeVar("T")
_KINDS = ("cut", "corrupt", "duplicate")
_NEXT_BYTES = (400, 12_000)
"""How many bytes pass between two faults; a round of a small study is a few thousand."""
_FROZEN_S = 1.5
_DELAY_S = 0.02


class Proxies:
    """Has every hospital reach the server through a proxy of its own.

    Args:
        federation: founded, and not started.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.by_name: dict[str, Proxy] = {}
        self.happened: dict[str, int] = {}
        """Faults that happened, by hospital."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._open())
        for name, proxy in self.by_name.items():
            settings = self._federation.site(name) / "client.toml"
            change(settings, '# host = "fl.example.org" ', 'host = "localhost" ')
            change(settings, "# port = 8440", f"port = {proxy.port}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done on the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def trouble(self, *, seed: int, faults: int) -> None:
        """Let so many faults happen at every hospital, one after the other; returns at once."""
        self.do(self._begin(seed, faults))

    def settled(self) -> bool:
        """Whether all faults have happened."""
        return all(task.done() for task in self._tasks)

    async def _open(self) -> None:
        for name in sorted(self._federation.daemons):
            proxy = Proxy("127.0.0.1", self._federation.port)
            self.by_name[name] = await self._stack.enter_async_context(proxy)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _begin(self, seed: int, faults: int) -> None:
        for name, proxy in self.by_name.items():
            work = self._trouble(name, proxy, random.Random(f"{seed} {name}"), faults)
            self._tasks.append(asyncio.create_task(work))

    async def _trouble(self, name: str, proxy: Proxy, draw: random.Random, faults: int) -> None:
        proxy.delay_s = _DELAY_S
        kinds = [_KINDS[index % len(_KINDS)] for index in range(faults)]
        draw.shuffle(kinds)
        for number, kind in enumerate(kinds, start=1):
            direction = draw.choice(("up", "down"))
            proxy.plan(Fault(kind, direction, at=draw.randint(*_NEXT_BYTES)))  # type: ignore[arg-type]
            await proxy.happened(number)
            self.happened[name] = number
        # A firewall that forgot the connection, and one that lets nobody in.
        proxy.freeze()
        await asyncio.sleep(_FROZEN_S)
        proxy.cut()
        proxy.closed = True
        proxy.thaw()
        await asyncio.sleep(_FROZEN_S)
        proxy.closed = False
        proxy.delay_s = 0.0
