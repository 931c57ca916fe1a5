"""Calibrated noise spends the budget: all of it, and not more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.errors import PrivacyError
from fedward.common.privacy.accounting import epsilon
from fedward.common.privacy.calibration import (
    SMALLEST_NOISE,
    gaussian_noise_multiplier,
    noise_multiplier_for,
)
from fedward.common.privacy.events import GaussianRelease, SampledGaussian


@settings(max_examples=10, deadline=None)
@given(
    budget=st.floats(0.1, 20.0),
    delta=st.sampled_from([1e-6, 1e-5, 1e-3]),
    q=st.floats(0.005, 1.0),
    steps=st.integers(50, 2000),
)
def test_spends_at_most_all_and_at_least_98_percent(
    budget: float, delta: float, q: float, steps: int
) -> None:
    sigma = noise_multiplier_for(epsilon=budget, delta=delta, sampling_probability=q, steps=steps)
    cost = epsilon([SampledGaussian(q, sigma, steps)], delta)
    assert cost <= budget
    assert cost >= 0.98 * budget or sigma == SMALLEST_NOISE


@pytest.mark.parametrize(
    ("q", "steps", "budget", "sigma"),
    [
        *((0.2, 100, e, s) for e, s in ((8, 1.44), (4, 2.38), (2, 4.17), (1, 7.63))),
        *((0.05, 400, e, s) for e, s in ((8, 0.92), (4, 1.34), (2, 2.19), (1, 3.88))),
    ],
)
def test_known_noise(q: float, steps: int, budget: float, sigma: float) -> None:
    found = noise_multiplier_for(epsilon=budget, delta=1e-5, sampling_probability=q, steps=steps)
    assert sigma - 0.006 <= found <= sigma * 1.006 + 0.006


def test_other_releases_share_the_budget() -> None:
    alone = noise_multiplier_for(epsilon=3, delta=1e-3, sampling_probability=0.1, steps=300)
    also = [GaussianRelease(2.0)]
    shared = noise_multiplier_for(
        epsilon=3, delta=1e-3, sampling_probability=0.1, steps=300, also=also
    )
    assert shared > 1.05 * alone
    cost = epsilon([*also, SampledGaussian(0.1, shared, 300)], 1e-3)
    assert 0.98 * 3 <= cost <= 3


@pytest.mark.parametrize("count", [1, 7])
def test_releases(count: int) -> None:
    sigma = gaussian_noise_multiplier(epsilon=2.0, delta=1e-4, count=count)
    assert 1.96 <= epsilon([GaussianRelease(sigma, count)], 1e-4) <= 2.0
    # Independent Gaussian releases add up as 1/σ², so n of them need √n times the noise of one.
    one = gaussian_noise_multiplier(epsilon=2.0, delta=1e-4, count=1)
    assert sigma == pytest.approx(one * count**0.5, rel=0.01)


def test_a_generous_budget_still_gets_noise() -> None:
    sigma = noise_multiplier_for(epsilon=90, delta=1e-3, sampling_probability=1e-3, steps=1)
    assert sigma == SMALLEST_NOISE


def test_out_of_reach() -> None:
    with pytest.raises(PrivacyError, match=r"cannot be reached.*fewer rounds"):
        noise_multiplier_for(epsilon=1e-4, delta=1e-5, sampling_probability=1.0, steps=10_000)


def test_spent_by_others_alone() -> None:
    with pytest.raises(PrivacyError, match="cannot be reached"):
        noise_multiplier_for(
            epsilon=1.0,
            delta=1e-5,
            sampling_probability=0.1,
            steps=10,
            also=[GaussianRelease(1.0)],
        )


@pytest.mark.parametrize("budget", [0.0, -1.0, 101.0, float("nan")])
def test_budget_out_of_range(budget: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon is out of range"):
        gaussian_noise_multiplier(epsilon=budget, delta=1e-5, count=1)
