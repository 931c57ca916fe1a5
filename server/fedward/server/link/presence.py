"""Who is connected, since when, last seen when. Read by runs, written by the service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Attendance:
    """What is known about one site's connection.

    Attributes:
        site: name in the roster.
        connected: whether it is there now.
        since: when that began, Unix time in seconds.
        last_seen: last sign of life, Unix time in seconds.
        software: version of fedward it says it runs; empty if it did not.
        reason: why it is not there; empty if it is.
    """

    site: str
    connected: bool
    since: float
    last_seen: float
    software: str = ""
    reason: str = ""


@dataclass
class _Entry:
    token: int = 0
    connected: bool = False
    since: float = 0.0
    seen: float = 0.0
    seen_wall: float = 0.0
    software: str = ""
    reason: str = ""


class Presence:
    """Connections of sites; every method may be called from any thread.

    Args:
        clock: seconds, never going back.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._begin = clock()
        self._tokens = 0

    def arrived(self, site: str, software: str = "") -> int:
        """A connection begins, in place of an older one of the site; gives what names it."""
        with self._lock:
            self._tokens += 1
            now, wall = self._clock(), self._wall()
            self._entries[site] = _Entry(self._tokens, True, wall, now, wall, software)
            return self._tokens

    def seen(self, site: str) -> None:
        """A sign of life."""
        with self._lock:
            entry = self._entries.get(site)
            if entry is not None:
                entry.seen, entry.seen_wall = self._clock(), self._wall()

    def left(self, site: str, token: int, reason: str) -> None:
        """A connection ended; of no effect if a newer one took its place."""
        with self._lock:
            entry = self._entries.get(site)
            if entry is not None and entry.token == token and entry.connected:
                entry.connected = False
                entry.since = self._wall()
                entry.seen = self._clock()
                entry.reason = reason

    def connected(self, site: str) -> bool:
        """Whether a site is there."""
        with self._lock:
            entry = self._entries.get(site)
            return entry is not None and entry.connected

    def absent_s(self, site: str) -> float:
        """For how long a site has not been there; of one never seen, since this process began."""
        with self._lock:
            entry = self._entries.get(site)
            if entry is None:
                return self._clock() - self._begin
            return 0.0 if entry.connected else self._clock() - entry.seen

    def snapshot(self) -> tuple[Attendance, ...]:
        """Everybody who was ever seen, sorted by name."""
        with self._lock:
            return tuple(
                Attendance(
                    site=site,
                    connected=entry.connected,
                    since=entry.since,
                    last_seen=entry.seen_wall,
                    software=entry.software,
                    reason=entry.reason,
                )
                for site, entry in sorted(self._entries.items())
            )
