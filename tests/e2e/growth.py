"""Whether a process grows with its rounds, or only did when a table doubled or a cache was made.

What leaks grows all the time, and is never given back. What is bounded makes a step and stands
still (Python's table of interned names doubles, by 2 MB, whenever it likes), or goes up and comes
down (cycles wait for the collector, up to 1 MB; a run beside this one takes 2 MB). So the rounds
are cut into eight, and of each counts the least; of the seven slopes from one to the next the
median, or that from the first to the last if it is less. Neither steps nor ups and downs matter
much, and what is kept of every round is in all of it in full.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

LEAK_KB = 10.0
"""Per round: what must be seen."""
BOUND_KB = 5.0
"""Per round: between that and what is found, 0.4 kB over 900 rounds, at times 3 kB over 500."""
BOUND_MB = 12.0
"""All steps together."""
_PARTS = 8


@dataclass(frozen=True)
class Growth:
    """Of a process while rounds are done.

    Attributes:
        kb: per round, all the time.
        steps_mb: besides, in all.
        parts_kb: its least size in each eighth of the rounds.
    """

    kb: float
    steps_mb: float
    parts_kb: tuple[float, ...]

    @property
    def leaks(self) -> bool:
        """Whether it should not be."""
        return self.kb > BOUND_KB or self.steps_mb > BOUND_MB

    def __str__(self) -> str:
        parts = " ".join(f"{part / 1000.0:.1f}" for part in self.parts_kb)
        return f"{self.kb:+.2f} kB per round, and {self.steps_mb:+.1f} MB in steps ({parts} MB)"


def growth(rounds: list[float], resident: list[float]) -> Growth:
    """From samples of resident bytes, in order of their rounds."""
    parts = np.array_split(np.arange(len(rounds)), _PARTS)
    at = [float(np.mean(np.array(rounds)[part])) for part in parts]
    kb = [float(np.min(np.array(resident)[part])) / 1000.0 for part in parts]
    slopes = [(d - c) / (b - a) for (a, c), (b, d) in pairwise(zip(at, kb, strict=True))]
    whole = kb[-1] - kb[0]
    steady = min(float(np.median(slopes)), whole / (at[-1] - at[0]))
    return Growth(steady, (whole - steady * (at[-1] - at[0])) / 1000.0, tuple(kb))


def with_leak(rounds: list[float], resident: list[float]) -> Growth:
    """As if besides `LEAK_KB` were kept of every round."""
    kept = [value + 1000.0 * LEAK_KB * at for value, at in zip(resident, rounds, strict=True)]
    return growth(rounds, kept)


def resident_bytes(pid: int) -> int:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
