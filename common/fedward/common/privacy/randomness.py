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
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fedward.common.privacy.streams import first_uniforms


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
    generators are keyed by a hash of both. Normal numbers have a stream of their own: they are most
    of what a private simulation draws, so their bits come from AES, which processors are fast at.

    Args:
        seed: of the experiment.
        path: what the numbers are for, such as a site's name, a round, and "noise".
    """

    reproducible: ClassVar[bool] = True

    def __init__(self, seed: int, *path: str | int) -> None:
        name = (int(seed), *(part if isinstance(part, str) else int(part) for part in path))
        self._digest = hashlib.sha256(repr(name).encode()).digest()
        self._ahead = 0

    @cached_property
    def _generator(self) -> np.random.Generator:
        # Made when it is needed: that takes ten times as long as the hash.
        bits = np.random.PCG64DXSM(int.from_bytes(self._digest, "big"))
        bits.advance(self._ahead)
        return np.random.Generator(bits)

    @cached_property
    def _cipher(self) -> CipherContext:
        return Cipher(algorithms.AES(self._digest), modes.CTR(bytes(16))).encryptor()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """`[size]` numbers uniform on [0, 1)."""
        return self._generator.random(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        """`[size]` standard normal numbers, in single precision."""
        found: NDArray[np.float64] = _seeded_normals([self], size)[0].astype(np.float64)
        return found

    def order(self, size: int) -> NDArray[np.int64]:
        """`[size]` whole numbers from 0 on, in random order."""
        return np.argsort(self.uniform(size), kind="stable")

    def bits(self, words: int) -> NDArray[np.uint32]:
        """The next `[words]` words of 32 bits of the stream that normal numbers come from."""
        return np.frombuffer(self._cipher.update(bytes(4 * words)), np.uint32)

    def take_first(self, size: int) -> bytes | None:
        """Let somebody else compute the first uniform numbers of this stream.

        Args:
            size: how many; the next ones are had from `uniform`.

        Returns:
            What the stream is keyed by; None if numbers were drawn from it before.
        """
        if self._ahead or "_generator" in vars(self):
            return None
        self._ahead = size
        return self._digest


def uniforms(sources: Sequence[Randomness], counts: Sequence[int]) -> NDArray[np.float64]:
    """The next uniform numbers of many streams, as `uniform` of each would give them.

    Args:
        sources: one for each row.
        counts: how many numbers of each.

    Returns:
        `[sources, largest count]`, padded with 1, which no uniform number is.
    """
    found = np.ones((len(sources), max(counts, default=0)))
    keys, rows = [], []
    for row, (source, count) in enumerate(zip(sources, counts, strict=True)):
        key = source.take_first(count) if isinstance(source, SeededRandomness) else None
        if key is None:
            found[row, :count] = source.uniform(count)
        else:
            keys.append(key)
            rows.append(row)
    if keys:
        first_uniforms(keys, [found[row, : counts[row]] for row in rows])
    return found


def normals(sources: Sequence[Randomness], size: int) -> NDArray[np.floating]:
    """The next standard normal numbers of many streams, as `normal` of each: `[sources, size]`."""
    seeded = [source for source in sources if isinstance(source, SeededRandomness)]
    if len(seeded) == len(sources) > 0:
        return _seeded_normals(seeded, size)
    return np.stack([source.normal(size) for source in sources])


def _seeded_normals(sources: Sequence[SeededRandomness], size: int) -> NDArray[np.float32]:
    """Box and Muller 1958 in single precision: no experiment sees more of a normal number."""
    half = (size + 1) // 2
    bits = np.empty((len(sources), 2, half), np.uint32)
    for own, source in zip(bits, sources, strict=True):
        own[...] = source.bits(2 * half).reshape(2, half)
    unit = bits.astype(np.float32)
    radius, angle = unit[:, 0] + np.float32(0.5), unit[:, 1]  # above 0, so that its log is finite
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0 * math.pi * 2.0**-32)
    found = np.empty_like(unit)
    np.multiply(np.cos(angle), radius, out=found[:, 0])
    np.multiply(np.sin(angle), radius, out=found[:, 1])
    return found.reshape(len(sources), -1)[:, :size]


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
