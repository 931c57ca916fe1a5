"""Where the randomness of privacy comes from: passed in, never global.

A hospital uses `SecureRandomness`, which cannot be seeded. A simulation uses `SeededRandomness`, so
that experiments repeat bit by bit; what it protects is nothing, because who knows the seed can
subtract the noise.

    >>> a, b = SeededRandomness(7, "site-1", 3), SeededRandomness(7, "site-1", 3)
    >>> bool((a.normal(4) == b.normal(4)).all())
    True
"""

from __future__ import annotations

import hashlib
import math
import os
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray


class Randomness(Protocol):
    """A stream of independent random numbers."""

    @property
    def reproducible(self) -> bool:
        """Whether the same numbers can be had again: then nothing it hides may be released."""
        ...

    def uniform(self, size: int) -> NDArray[np.float64]:
        """`[size]` numbers uniform on [0, 1), with 53 random bits each."""
        ...

    def normal(self, size: int) -> NDArray[np.float64]:
        """`[size]` standard normal numbers."""
        ...

    def order(self, size: int) -> NDArray[np.int64]:
        """`[size]` whole numbers from 0 on, in random order; for shuffling, not for privacy."""
        ...


class SeededRandomness:
    """Numbers that repeat: for simulations only.

    Streams of different `(seed, path)` are independent, whatever order they are used in: the
    generator is keyed by a hash of both.

    Args:
        seed: of the experiment.
        path: what the numbers are for, such as a site's name, a round, and "noise".
    """

    reproducible: ClassVar[bool] = True

    def __init__(self, seed: int, *path: str | int) -> None:
        name = (int(seed), *(part if isinstance(part, str) else int(part) for part in path))
        self._digest = hashlib.sha256(repr(name).encode()).digest()

    @cached_property
    def _generator(self) -> np.random.Generator:
        # Made when it is needed: that takes ten times as long as the hash.
        return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(self._digest, "big")))

    def uniform(self, size: int) -> NDArray[np.float64]:
        """`[size]` numbers uniform on [0, 1)."""
        return self._generator.random(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        """`[size]` standard normal numbers."""
        return self._generator.standard_normal(size)

    def order(self, size: int) -> NDArray[np.int64]:
        """`[size]` whole numbers from 0 on, in random order."""
        return np.argsort(self.uniform(size), kind="stable")


class SecureRandomness:
    """Numbers from the operating system's cryptographic generator: takes no seed, never repeats.

    It is asked afresh for every call. No state is kept in this process that could be read, or be
    shared by a fork.

    Guarantee:
        Who sees any number of its outputs cannot predict another. Each normal number is the sum of
        four independent Box-Muller numbers divided by two, so that the gaps between floating-point
        results do not give away what went in (Mironov 2012 shows the danger of a single rounded
        sample, Holohan and Braghin 2021 the remedy).
    """

    reproducible: ClassVar[bool] = False
    __slots__ = ()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """`[size]` numbers uniform on [0, 1): multiples of 2⁻⁵³."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, size: int) -> NDArray[np.float64]:
        """`[size]` standard normal numbers."""
        half = (size + 1) // 2
        total = np.zeros((2, half))
        for _ in range(4):
            # Box and Muller 1958: sine and cosine of one pair are independent of each other.
            radius = np.sqrt(-2.0 * np.log1p(-self.uniform(half)))
            angle = 2.0 * math.pi * self.uniform(half)
            total += radius * np.stack((np.cos(angle), np.sin(angle)))
        return total.reshape(-1)[:size] / 2.0

    def order(self, size: int) -> NDArray[np.int64]:
        """`[size]` whole numbers from 0 on, in random order."""
        return np.argsort(self.uniform(size), kind="stable")
