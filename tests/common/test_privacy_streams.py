"""Many seeded streams at once, against NumPy's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.privacy.randomness import (
    Randomness,
    SecureRandomness,
    SeededRandomness,
    normals,
    uniforms,
)
from fedward.common.privacy.streams import first_uniforms, seeds

KEYS = st.binary(min_size=32, max_size=32)


@given(st.lists(KEYS.filter(lambda key: any(key[:4])), min_size=1, max_size=5))
def test_seeds_are_those_of_numpy(keys: Sequence[bytes]) -> None:
    for key, found in zip(keys, seeds(keys), strict=True):
        wanted = np.random.SeedSequence(int.from_bytes(key, "big")).generate_state(4, np.uint64)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("key", [bytes(32), bytes(4) + b"k" * 28, bytes(3) + b"k" * 29, b"k" * 32])
def test_numbers_are_those_of_numpy_also_for_keys_that_begin_with_zeros(key: bytes) -> None:
    found = [np.zeros(5), np.zeros(3)]
    first_uniforms([key, b"other" + bytes(27)], found)
    wanted = np.random.Generator(np.random.PCG64DXSM(int.from_bytes(key, "big"))).random(5)
    np.testing.assert_array_equal(found[0], wanted)


def streams(count: int) -> list[SeededRandomness]:
    return [SeededRandomness(3, f"site-{index}", 4) for index in range(count)]


@given(st.lists(st.integers(0, 9), max_size=6))
def test_uniform_numbers_are_those_that_each_stream_gives(counts: list[int]) -> None:
    found = uniforms(streams(len(counts)), counts)
    again = streams(len(counts))
    assert found.shape == (len(counts), max(counts, default=0))
    for row, count, source in zip(found, counts, again, strict=True):
        np.testing.assert_array_equal(row[:count], source.uniform(count))
        assert (row[count:] == 1.0).all()


def test_a_stream_goes_on_after_its_first_numbers() -> None:
    [source], [whole] = streams(1), streams(1)
    first, second = uniforms([source], [4])[0], uniforms([source], [3])[0]
    parts = [first, second, source.uniform(5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.uniform(12))


def test_streams_are_keyed_by_all_of_their_name() -> None:
    names = [(1, "a", 2), (1, "a", 3), (1, "b", 2), (2, "a", 2)]
    found = uniforms([SeededRandomness(*name) for name in names], [8] * 4)
    assert len({row.tobytes() for row in found}) == len(names)
    found = normals([SeededRandomness(*name) for name in names], 8)
    assert len({row.tobytes() for row in found}) == len(names)


@pytest.mark.parametrize("size", [0, 1, 6, 7])
def test_normal_numbers_are_those_that_each_stream_gives(size: int) -> None:
    sources, again = streams(3), streams(3)
    for _ in range(2):
        found = normals(sources, size)
        wanted = np.stack([source.normal(size) for source in again])
        np.testing.assert_array_equal(found, wanted)


def test_bits_are_those_of_aes_in_counter_mode() -> None:
    """Against the block cipher itself, a block at a time."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(repr((3, "site-0", 4)).encode()).digest()
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  (that is the block cipher)
    wanted = b"".join(blocks.update(number.to_bytes(16, "big")) for number in range(3))
    assert streams(1)[0].bits(12).tobytes() == wanted


def test_secure_numbers_are_asked_of_each() -> None:
    sources: list[Randomness] = [SecureRandomness(), *streams(1)]
    assert normals(sources, 5).shape == (2, 5)
    found = uniforms(sources, [5, 2])
    np.testing.assert_array_equal(found[1, :2], streams(1)[0].uniform(2))
    assert (found[0] < 1.0).all()
