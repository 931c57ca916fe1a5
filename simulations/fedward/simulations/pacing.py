"""Checkpoints of a simulation: at most one a second, and one at the end, however it ends.

A round of a small model takes milliseconds, a checkpoint that survives a power cut as many. Rounds
that a crash takes are done again to the same result, so they may be lost: at most a second's worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from fedward.server.checkpoints import Checkpoints, RunState

EVERY_S = 1.0


class Paced:
    """Checkpoints that are written now and then.

    Args:
        checkpoints: where they go.
        last: round after which one is always written.
        clock: seconds, never going back.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, last: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checkpoints = checkpoints
        self._last = last
        self._clock = clock
        self._written: float | None = None
        self._waiting: RunState | None = None

    def save(self, state: RunState) -> RunState:
        """Write a state, or keep it in memory for a moment; see `Checkpoints.save`."""
        now = self._clock()
        recent = self._written is not None and now - self._written < EVERY_S
        if recent and state.round < self._last:
            # The next round changes the strategy's arrays, whether or not it comes to its end.
            strategy = {name: array.copy() for name, array in state.strategy.items()}
            self._waiting = replace(state, strategy=strategy)
            return state
        return self._write(state)

    def newest(self) -> RunState | None:
        """The state of the last completed round, or None if there is none."""
        return self._waiting or self._checkpoints.newest()

    def flush(self) -> None:
        """Write what was not written yet: the run ends."""
        if self._waiting is not None:
            self._write(self._waiting)

    def _write(self, state: RunState) -> RunState:
        kept = self._checkpoints.save(state)
        self._written, self._waiting = self._clock(), None
        return kept
