"""Connections that never become a call: half-open ones leave no other trace than their number."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict

from fedward.server.link.refusals import Refusals, SilenceError

WINDOW_S = 15.0
"""How long a connection may take to its first call before it counts; longer than a handshake."""
TELLING = 20
"""How many in a window are worth a word."""
_MOST = 8192


class Knocks:
    """Counts connections that begin, and those that make a call.

    Args:
        refusals: where it is noted if many come to nothing.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._lock = threading.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._begun = 0
        self._before = 0
        self._called = 0

    def begun(self) -> None:
        """A connection begins. From any thread."""
        with self._lock:
            self._begun += 1

    def called(self, address: str) -> None:
        """A call comes from an address."""
        with self._lock:
            if address not in self._known:
                self._known[address] = None
                self._called += 1
                if len(self._known) > _MOST:
                    self._known.popitem(last=False)

    def look(self) -> None:
        """The end of a window: note those of the one before that made no call until now."""
        with self._lock:
            silent = self._before - self._called
            self._called = max(0, -silent)
            self._before, self._begun = self._begun, 0
        if silent >= TELLING:
            reason = f"{silent} connections came and never said who they are"
            self._refusals.note(reason, peer="unknown", name="", error=SilenceError.__name__)

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(WINDOW_S)
            self.look()
