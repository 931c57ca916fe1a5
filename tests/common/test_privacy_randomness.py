"""Randomness: the right distributions, repeatable where meant, and never where not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fedward.common.privacy.randomness import (
    Randomness,
    SecureRandomness,
    SeededRandomness,
)

# Secure numbers differ every time: at this level a right implementation fails once in 10⁷ runs.
LEVEL = 1e-7
SOURCES = [SeededRandomness(11, "test"), SecureRandomness()]
N = 100_000


@pytest.mark.parametrize("source", SOURCES, ids=["seeded", "secure"])
def test_uniform(source: Randomness) -> None:
    numbers = source.uniform(N)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers, "uniform").pvalue > LEVEL
    assert stats.kstest(numbers * 0.97, "uniform").pvalue < LEVEL  # the test has power


@pytest.mark.parametrize("source", SOURCES, ids=["seeded", "secure"])
def test_normal(source: Randomness) -> None:
    numbers = source.normal(N)
    assert stats.kstest(numbers, "norm").pvalue > LEVEL
    assert stats.kstest(numbers * 0.95, "norm").pvalue < LEVEL
    low, high = stats.chi2.interval(1 - LEVEL, N)
    assert low < (numbers**2).sum() < high
    assert not low < ((0.98 * numbers) ** 2).sum() < high
    assert stats.kurtosistest(numbers).pvalue > LEVEL
    assert stats.skewtest(numbers).pvalue > LEVEL
    # A sum of four uniforms has the right mean and deviation, and the wrong tails.
    tame = (source.uniform(4 * N).reshape(4, N) - 0.5).sum(axis=0) * 3**0.5
    assert stats.kurtosistest(tame).pvalue < LEVEL


@pytest.mark.parametrize("source", SOURCES, ids=["seeded", "secure"])
def test_neighbours_are_independent(source: Randomness) -> None:
    numbers = source.normal(N)
    for lag in (1, 2, N // 2):
        assert stats.pearsonr(numbers[:-lag], numbers[lag:]).pvalue > LEVEL
        assert stats.pearsonr(numbers[:-lag] ** 2, numbers[lag:] ** 2).pvalue > LEVEL
    assert stats.pearsonr(numbers, source.normal(N)).pvalue > LEVEL


@pytest.mark.parametrize("source", SOURCES, ids=["seeded", "secure"])
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_sizes(source: Randomness, size: int) -> None:
    for numbers in (source.uniform(size), source.normal(size)):
        assert numbers.shape == (size,)
        assert numbers.dtype == np.float64
        assert np.isfinite(numbers).all()


def test_uniform_has_all_its_bits() -> None:
    numbers = SecureRandomness().uniform(4096) * 2.0**53
    assert (numbers == np.floor(numbers)).all()
    assert abs((numbers % 2).mean() - 0.5) < 0.06
    assert len(np.unique(numbers)) == 4096


def test_secure_takes_no_seed_and_never_repeats() -> None:
    assert list(inspect.signature(SecureRandomness).parameters) == []
    with pytest.raises(TypeError):
        SecureRandomness(1)  # type: ignore[call-arg]
    one, other = SecureRandomness(), SecureRandomness()
    assert not one.reproducible
    assert not np.intersect1d(one.uniform(1000), other.uniform(1000)).size
    assert not np.intersect1d(one.normal(1000), one.normal(1000)).size
    # No state: a copy of the object is no copy of a stream.
    twin = copy.deepcopy(one)
    assert not np.intersect1d(one.uniform(1000), twin.uniform(1000)).size


def test_seeded_repeats() -> None:
    one, other = SeededRandomness(3, "a", 1), SeededRandomness(3, "a", 1)
    assert one.reproducible
    assert (one.uniform(10) == other.uniform(10)).all()
    assert (one.normal(10) == other.normal(10)).all()


def test_seeded_streams_differ_by_seed_and_path() -> None:
    paths: list[tuple[str | int, ...]] = [
        (),
        ("a",),
        ("b",),
        ("a", 1),
        ("a", "1"),
        (1, "a"),
        ("a1",),
    ]
    streams = [SeededRandomness(seed, *path).normal(5000) for seed in (0, 1) for path in paths]
    matrix = np.asarray(np.corrcoef(streams))
    off = matrix[~np.eye(len(streams), dtype=bool)]
    assert np.abs(off).max() < 5.5 / 5000**0.5
    assert len({stream[0] for stream in streams}) == len(streams)


def test_seeded_takes_numpy_integers() -> None:
    path = np.int64(4)
    assert SeededRandomness(2, int(path)).normal(1) == SeededRandomness(2, path).normal(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [SeededRandomness(5, "order"), SecureRandomness()])
@pytest.mark.parametrize("size", [0, 1, 2, 17, 1000])
def test_an_order_is_a_permutation(source: Randomness, size: int) -> None:
    order = source.order(size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


@pytest.mark.parametrize("make", [SeededRandomness, lambda *_: SecureRandomness()])
def test_every_order_is_as_likely(make: Callable[..., Randomness]) -> None:
    """All 24 orders of 4, from successive calls and from streams of many paths."""
    successive, n = make(6, "one"), 6000
    for draw in (lambda _: successive.order(4), lambda index: make(6, "site", index).order(4)):
        codes = [int(draw(index) @ [64, 16, 4, 1]) for index in range(n)]
        _, counts = np.unique(codes, return_counts=True)
        assert len(counts) == 24
        assert stats.chisquare(counts).pvalue > LEVEL
        # Not so if a twentieth of them were left as they are: the test has power.
        skewed = counts * 0.95 + np.eye(24)[0] * n * 0.05
        assert stats.chisquare(skewed).pvalue < LEVEL


def test_orders_of_different_streams_and_calls_are_independent() -> None:
    size = 2000
    sources = [SeededRandomness(8, *path) for path in [("a", 1), ("a", 2), ("b", 1)]]
    orders = [source.order(size) for source in sources for _ in range(3)]
    for index, one in enumerate(orders):
        for other in orders[:index]:
            assert stats.pearsonr(one, other).pvalue > LEVEL
            assert stats.pearsonr(one[1:], other[:-1]).pvalue > LEVEL
    assert stats.pearsonr(orders[0], np.roll(orders[0], 0)).pvalue < LEVEL
