"""Entries of an audit log that the other side causes: so many an hour, and the number of the rest.

Each entry is forced to the disk and kept for ever, so nobody else may decide how many there are.

Guarantee:
    Of one kind of entry, by one peer, at most `MOST` are added at once and as many in an hour in
    the long run; by strangers together, `MOST_OF_STRANGERS`. The next entry of a peer says how many
    of its were left out before (`left_out`); what is left out until the end, one entry at the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fedward.common.buckets import Bucket

MOST = 60
"""Entries of one kind that one peer may cause in an hour."""
MOST_OF_STRANGERS = 600
"""Those that all together may cause of whom no name is known."""
LEFT_OUT = "left out"
"""Kind of the entry, at the end, about entries that were left out."""


class Log(Protocol):
    """Where entries go; `AuditLog` is one."""

    def append(self, kind: str, **facts: Any) -> Any:
        """Add an entry, durably."""
        ...


@dataclass
class _Known:
    bucket: Bucket
    left_out: int = 0
    last: dict[str, Any] | None = None


class Caused:
    """Adds such entries; may be used from any thread.

    Args:
        log: where to.
        on_left_out: is told the kind of each entry that is left out.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        log: Log,
        *,
        on_left_out: Callable[[str], None] = lambda _kind: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._on_left_out = on_left_out
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], _Known] = {}

    def append(self, kind: str, *, by: str, once: bool = False, **facts: Any) -> bool:
        """Add an entry, unless it is one too many.

        Args:
            kind: of the entry.
            by: who causes it, by a name that was checked, so that there are not many of them; empty
                if there is none.
            once: leave it out if it says the same as the last of that kind and peer.
            facts: what it says.

        Returns:
            Whether it was added.

        Raises:
            FedwardError: the log cannot be written.
        """
        with self._lock:
            now = self._clock()
            most = MOST if by else MOST_OF_STRANGERS
            known = self._known.setdefault((kind, by), _Known(Bucket.hourly(most, now)))
            if (once and facts == known.last) or not known.bucket.take(now):
                known.left_out += 1
                self._on_left_out(kind)
                return False
            more = {"left_out": known.left_out} if known.left_out else {}
            self._log.append(kind, **facts, **more)
            known.left_out, known.last = 0, facts
            return True

    def settled(self, kind: str, *, by: str) -> None:
        """What such an entry said is over: if it comes back, it is news."""
        with self._lock:
            if (kind, by) in self._known:
                self._known[kind, by].last = None

    def close(self) -> None:
        """Add how many were left out and not told yet.

        Raises:
            FedwardError: the log cannot be written.
        """
        with self._lock:
            for (kind, by), known in self._known.items():
                if known.left_out:
                    self._log.append(LEFT_OUT, entries=kind, by=by, times=known.left_out)
                    known.left_out = 0
