"""How long to wait before trying again: longer each time, and never all sites at the same moment.

>>> waits = Backoff(random=lambda: 1.0)
>>> [waits.next_s() for _ in range(4)]
[1.0, 2.0, 4.0, 8.0]
>>> waits.reset()
>>> waits.next_s()
1.0
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.5
LONGEST_S = 60.0


class Backoff:
    """Waits with full jitter, between `first_s` and a limit that doubles up to `longest_s`.

    Args:
        random: gives numbers in [0, 1).
        first_s: the shortest wait; never zero, so that no failure makes a busy loop.
        longest_s: the longest.
    """

    def __init__(
        self,
        *,
        random: Callable[[], float],
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._random = random
        self._first_s = first_s
        self._longest_s = longest_s
        self._limit_s = first_s

    def next_s(self) -> float:
        """How long to wait this time."""
        self._limit_s = min(self._longest_s, 2 * self._limit_s)
        return self._first_s + self._random() * (self._limit_s - self._first_s)

    def reset(self) -> None:
        """Begin again with short waits: what was tried works."""
        self._limit_s = self._first_s
