"""The first uniform numbers of many seeded streams: what NumPy gives, without its cost of a stream.

A simulation of a thousand sites opens a thousand streams each round and draws some fifty numbers of
each. NumPy takes 25 µs to seed one (a hash of the key in scalar code, an object, a lock); here all
keys are hashed at once, and a single generator is put into each stream's first state.

The hash is that of `numpy.random.SeedSequence` (O'Neill 2015, "Developing a seed_seq alternative"),
the state that of `numpy.random.PCG64DXSM`. NumPy promises that neither changes (NEP 19); the tests
compare with NumPy's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
_POOL = 4
_KEY_WORDS = 8
_SHIFT = np.uint32(16)
_MIX = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_MASK = (1 << 128) - 1


def _constants(first: int, multiplier: int, count: int) -> tuple[Words, Words]:
    """Constants of successive hashes, `[count, 1]`: what is added, what is multiplied by."""
    added, factors = [], []
    for _ in range(count):
        added.append(first)
        first = first * multiplier & 0xFFFFFFFF
        factors.append(first)
    return np.array(added, np.uint32)[:, None], np.array(factors, np.uint32)[:, None]


_IN = _constants(0x43B0D7E5, 0x931E8875, _POOL + _POOL * (_POOL - 1) + _POOL * _POOL)
_OUT = _constants(0x8B51F9DD, 0x58F38DED, 2 * _POOL)


def _hash(values: Words, constants: tuple[Words, Words], first: int, count: int) -> Words:
    """Hash `count` words of each key, `[count, keys]` or `[keys]`, with successive constants."""
    added, factors = (table[first : first + count] for table in constants)
    values = (values ^ added) * factors
    found: Words = values ^ (values >> _SHIFT)
    return found


def _mixed(one: Words, other: Words) -> Words:
    mixed: Words = _MIX[0] * one - _MIX[1] * other
    return mixed ^ (mixed >> _SHIFT)


def seeds(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """`[keys, 4]`: what `SeedSequence(int.from_bytes(key, "big")).generate_state(4, uint64)` gives.

    Args:
        keys: of 32 bytes each, the first four of them not all 0 (NumPy would take it for shorter).
    """
    entropy = np.frombuffer(b"".join(keys), ">u4").reshape(-1, _KEY_WORDS)[:, ::-1].T
    entropy = np.ascontiguousarray(entropy, np.uint32)
    pool = _hash(entropy[:_POOL], _IN, 0, _POOL)
    done = _POOL
    for source in range(_POOL):
        others = [place for place in range(_POOL) if place != source]
        pool[others] = _mixed(pool[others], _hash(pool[source], _IN, done, len(others)))
        done += len(others)
    for source in range(_POOL, _KEY_WORDS):
        pool = _mixed(pool, _hash(entropy[source], _IN, done, _POOL))
        done += _POOL
    words = _hash(np.concatenate([pool, pool]), _OUT, 0, 2 * _POOL).astype("<u4")
    return np.ascontiguousarray(words.T).view("<u8").astype(np.uint64)


def first_uniforms(keys: Sequence[bytes], into: Sequence[NDArray[np.float64]]) -> None:
    """Fill each array with the first numbers of `Generator(PCG64DXSM(int.from_bytes(key, "big")))`.

    Args:
        keys: of 32 bytes each.
        into: an array for each, of whatever size.
    """
    bits = np.random.PCG64DXSM(0)
    generator = np.random.Generator(bits)
    state = bits.state
    for key, found, own in zip(keys, into, seeds(keys).tolist(), strict=True):
        if not any(key[:4]):
            short = np.random.PCG64DXSM(int.from_bytes(key, "big"))
            np.random.Generator(short).random(out=found)
            continue
        high, low, stream_high, stream_low = own
        increment = ((stream_high << 64 | stream_low) << 1 | 1) & _MASK
        first = ((increment + (high << 64 | low)) * _MULTIPLIER + increment) & _MASK
        state["state"]["state"], state["state"]["inc"] = first, increment
        bits.state = state
        generator.random(out=found)
