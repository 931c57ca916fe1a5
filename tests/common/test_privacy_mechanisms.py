"""Sampling, clipping and noise, each with a wrong version that its test rejects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedward.common.errors import PrivacyError
from fedward.common.privacy.mechanisms import (
    add_gaussian,
    clip_factors,
    poisson_sample,
    sample_rows,
)
from fedward.common.privacy.randomness import Randomness, SecureRandomness, SeededRandomness

LEVEL = 1e-7


def rates_fit(batches: list[NDArray[np.int64]], patients: int, q: float) -> bool:
    """Whether every patient was drawn as often as a binomial allows (chi-square)."""
    drawn = np.bincount(np.concatenate(batches), minlength=patients)
    expected = len(batches) * q
    statistic = ((drawn - expected) ** 2 / (expected * (1 - q))).sum()
    return bool(stats.chi2.sf(statistic, patients) > LEVEL)


def sizes_fit(batches: list[NDArray[np.int64]], patients: int, q: float) -> bool:
    """Whether batch sizes vary as independent draws do, neither less nor more."""
    sizes = np.array([len(batch) for batch in batches])
    statistic = ((sizes - patients * q) ** 2).sum() / (patients * q * (1 - q))
    low, high = stats.chi2.interval(1 - LEVEL, len(batches))
    return bool(low * 0.97 < statistic < high * 1.03)


@pytest.mark.parametrize("source", [SeededRandomness(4), SecureRandomness()])
def test_poisson_sampling(source: Randomness) -> None:
    patients, q = 40, 0.15
    batches = [poisson_sample(patients, q, source) for _ in range(4000)]
    assert rates_fit(batches, patients, q)
    assert sizes_fit(batches, patients, q)
    assert not rates_fit(batches, patients, q * 1.1)


def test_fixed_size_batches_are_rejected() -> None:
    rng = np.random.default_rng(1)
    batches = [rng.choice(40, 6, replace=False).astype(np.int64) for _ in range(4000)]
    assert rates_fit(batches, 40, 0.15)  # each patient is drawn as often as it should be,
    assert not sizes_fit(batches, 40, 0.15)  # but not independently of the others


def test_sampling_pairs_are_independent() -> None:
    source = SeededRandomness(8)
    inside = np.zeros((4000, 10))
    for row in inside:
        row[poisson_sample(10, 0.4, source)] = 1.0
    off = np.asarray(np.corrcoef(inside.T))[~np.eye(10, dtype=bool)]
    assert np.abs(off).max() < 5.0 / 4000**0.5


def test_sampling_edges() -> None:
    source = SeededRandomness(2)
    assert poisson_sample(50, 1.0, source).tolist() == list(range(50))
    assert poisson_sample(0, 0.5, source).size == 0
    assert poisson_sample(5, 1e-12, source).dtype == np.int64
    for q in (0.0, 1.1, math.nan):
        with pytest.raises(PrivacyError, match="probability"):
            poisson_sample(5, q, source)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 6))
def test_rows_are_kept_whole_up_to_the_limit(sizes: list[int], most: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    kept = sample_rows(groups, most, SeededRandomness(0))
    assert (np.diff(kept) > 0).all()
    assert np.bincount(groups[kept], minlength=len(sizes)).tolist() == [
        min(size, most) for size in sizes
    ]


def test_rows_are_chosen_uniformly() -> None:
    source = SeededRandomness(6)
    groups = np.repeat(np.arange(3), [2, 7, 5]).astype(np.int64)
    drawn = np.zeros(14)
    for _ in range(6000):
        drawn[sample_rows(groups, 3, source)] += 1
    assert drawn[:2].tolist() == [6000, 6000]
    for rows in (drawn[2:9], drawn[9:]):
        # Without replacement the counts vary less than a multinomial's: the test errs on the safe
        # side against skew, which is what matters.
        assert stats.chisquare(rows).pvalue > 1e-4
        skewed = rows * np.linspace(0.9, 1.1, len(rows))
        assert stats.chisquare(skewed * rows.sum() / skewed.sum()).pvalue < 1e-4


@given(
    st.lists(st.floats(0.0, 1e30), max_size=20),
    st.floats(1e-6, 1e6),
)
def test_clipping_bounds_and_leaves_the_small_alone(norms: list[float], bound: float) -> None:
    values = np.array(norms, dtype=np.float64)
    factors = clip_factors(values, bound)
    assert (factors * values <= bound * (1 + 1e-12)).all()
    assert (factors[values <= bound] == 1.0).all()
    assert (factors > 0).all()


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_clipping_refuses_what_no_factor_bounds(norm: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        clip_factors(np.array([1.0, norm]), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_clipping_refuses_a_bound_that_is_none(bound: float) -> None:
    with pytest.raises(PrivacyError, match="bound"):
        clip_factors(np.array([1.0]), bound)


def deviation_fits(noise: NDArray[np.float64], deviation: float) -> bool:
    """Chi-square test of the standard deviation, both sides."""
    statistic = (noise**2).sum() / deviation**2
    low, high = stats.chi2.interval(1 - LEVEL, noise.size)
    return bool(low < statistic < high)


@pytest.mark.parametrize("source", [SeededRandomness(4), SecureRandomness()])
@pytest.mark.parametrize("deviation", [0.02, 1.0, 37.0])
def test_noise(source: Randomness, deviation: float) -> None:
    total = np.full((100, 300), 5.0, dtype=np.float32)
    noise = (add_gaussian(total, deviation, source) - 5.0).ravel()
    assert deviation_fits(noise, deviation)
    assert not deviation_fits(noise, deviation * 0.9)
    assert not deviation_fits(noise * 0.9, deviation)
    assert stats.kstest(noise / deviation, "norm").pvalue > LEVEL
    again = (add_gaussian(total, deviation, source) - 5.0).ravel()
    assert stats.pearsonr(noise, again).pvalue > LEVEL


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf])
def test_no_noise_is_refused(deviation: float) -> None:
    with pytest.raises(PrivacyError, match="out of range"):
        add_gaussian(np.zeros(3), deviation, SeededRandomness(0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_noise_on_what_it_cannot_hide_is_refused(value: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        add_gaussian(np.array([0.0, value]), 1.0, SeededRandomness(0))


def test_noise_on_nothing() -> None:
    assert add_gaussian(np.zeros((0, 3)), 1.0, SeededRandomness(0)).shape == (0, 3)
