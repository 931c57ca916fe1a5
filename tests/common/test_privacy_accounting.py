"""ε from events: published figures, and oracles that compute it another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from fedward.common.errors import PrivacyError
from fedward.common.privacy import accounting
from fedward.common.privacy.accounting import epsilon, resolved_epsilon, spent
from fedward.common.privacy.events import GaussianRelease, PrivacyEvent, SampledGaussian, compress

SITE_OF_30 = SampledGaussian(4 / 30, 2.734, 1500)


def convolved_delta(q: float, sigma: float, steps: int, at: float) -> float:
    """Oracle: δ(ε) of DP-SGD by convolving the privacy loss on a plain grid, both directions."""
    width, points = 1e-3, 2**17
    grid = (np.arange(points) - points // 2) * width
    edges = np.append(grid - width / 2, grid[-1] + width / 2)
    # The loss log(1 - q + q·exp((2x - 1)/2σ²)) rises with x: invert it at the edges of the grid.
    inside = np.maximum(np.exp(edges) - (1 - q), 1e-300) / q
    x = np.where(edges > math.log1p(-q), sigma**2 * np.log(inside) + 0.5, -np.inf)
    base: NDArray[np.float64] = norm.cdf(x, 0, sigma)
    mixed = (1 - q) * base + q * norm.cdf(x, 1, sigma)
    remove = np.diff(mixed)
    add = np.roll(np.diff(base)[::-1], 1)  # the loss is mirrored, and zero stays at the centre
    return max(_tail(mass, grid, steps, at) for mass in (remove, add))


def _tail(mass: NDArray[np.floating], grid: NDArray[np.floating], steps: int, at: float) -> float:
    spectrum = np.fft.rfft(np.fft.ifftshift(mass)) ** steps
    total = np.fft.fftshift(np.fft.irfft(spectrum, len(mass)))
    above = grid > at
    return float((total[above] * -np.expm1(at - grid[above])).sum())


def gaussian_delta(sigma: float, at: float) -> float:
    """Oracle: δ(ε) of one Gaussian release (Balle and Wang 2018, theorem 8)."""
    return float(
        norm.cdf(1 / (2 * sigma) - at * sigma)
        - math.exp(at) * norm.cdf(-1 / (2 * sigma) - at * sigma)
    )


def test_published_example_of_a_small_site() -> None:
    cost = spent([SITE_OF_30], 1e-2)
    assert cost.epsilon == pytest.approx(5.80, abs=0.005)
    assert cost.crosscheck == pytest.approx(5.81, abs=0.005)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "prv", "pld"),
    [
        (0.3, 2.0, 100, 7.94, 7.92),
        (0.05, 1.0, 500, 7.53, 7.52),
        (0.01, 0.6, 1000, 7.44, 7.43),
        (0.01, 1.0, 5000, 4.21, 4.20),
    ],
)
def test_known_figures(q: float, sigma: float, steps: int, prv: float, pld: float) -> None:
    cost = spent([SampledGaussian(q, sigma, steps)], 1e-5)
    assert cost.epsilon == pytest.approx(pld, abs=0.006)
    assert cost.crosscheck == pytest.approx(prv, abs=0.006)


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (SITE_OF_30, 1e-2),
        (SampledGaussian(0.3, 2.0, 100), 1e-3),
        (SampledGaussian(0.05, 1.0, 20), 1e-4),
        (SampledGaussian(0.8, 3.0, 10), 1e-3),
    ],
)
def test_sampled_agrees_with_a_convolution_of_our_own(event: SampledGaussian, delta: float) -> None:
    cost = epsilon([event], delta)
    q, sigma, steps = event.sampling_probability, event.noise_multiplier, event.steps
    assert convolved_delta(q, sigma, steps, cost * 1.003) < delta
    assert convolved_delta(q, sigma, steps, cost * 0.99) > delta


def test_sampled_agrees_with_simulated_privacy_loss() -> None:
    q, sigma, steps, delta = 0.3, 2.0, 40, 1e-2
    cost = epsilon([SampledGaussian(q, sigma, steps)], delta)
    rng = np.random.default_rng(5)
    loss = np.zeros(200_000)
    for _ in range(steps):
        x = rng.normal(0, sigma, len(loss)) + (rng.random(len(loss)) < q)
        loss += np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))

    def simulated(at: float) -> float:
        return float(np.maximum(0, -np.expm1(at - loss)).mean())

    assert simulated(cost) == pytest.approx(delta, rel=0.05)
    assert simulated(0.95 * cost) > 1.07 * delta


@pytest.mark.parametrize(("sigma", "delta"), [(0.5, 1e-5), (1.0, 1e-5), (3.0, 1e-2), (30.0, 1e-6)])
def test_releases_agree_with_the_analytic_gaussian(sigma: float, delta: float) -> None:
    cost = epsilon([GaussianRelease(sigma)], delta)
    assert gaussian_delta(sigma, cost * 1.0001 + 1e-6) <= delta
    assert gaussian_delta(sigma, cost * 0.999 - 1e-6) >= delta


def test_different_releases_compose_like_one_gaussian() -> None:
    events = [GaussianRelease(3.0, 4), GaussianRelease(5.0, 2, "evaluation")]
    together = 1 / math.sqrt(4 / 9 + 2 / 25)
    cost = epsilon(events, 1e-4)
    assert cost == pytest.approx(epsilon([GaussianRelease(together)], 1e-4), rel=1e-3)
    assert gaussian_delta(together, cost * 0.998) > 1e-4


def test_sampling_everyone_is_a_release() -> None:
    everyone = epsilon([SampledGaussian(1.0, 4.0, 8)], 1e-4)
    assert everyone == pytest.approx(epsilon([GaussianRelease(4.0, 8)], 1e-4), rel=1e-9)


def test_renyi_bound_lies_above() -> None:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(2.734, 4 / 30, 1500)]
    bound = accountant.get_epsilon(1e-2)
    assert bound == pytest.approx(6.73, abs=0.005)
    assert epsilon([SITE_OF_30], 1e-2) < bound


events = st.builds(
    SampledGaussian,
    st.floats(0.005, 0.9),
    st.floats(0.8, 20.0),
    st.integers(1, 300),
)


@settings(max_examples=8, deadline=None)
@given(events, st.sampled_from([1e-6, 1e-3]))
def test_less_of_anything_costs_less(event: SampledGaussian, delta: float) -> None:
    q, sigma, steps = event.sampling_probability, event.noise_multiplier, event.steps
    cost = epsilon([event], delta)
    slack = cost * 2e-3 + 1e-6
    assert epsilon([SampledGaussian(q, sigma, 2 * steps)], delta) >= cost - slack
    assert epsilon([SampledGaussian(q, sigma * 1.3, steps)], delta) <= cost + slack
    assert epsilon([SampledGaussian(q * 0.7, sigma, steps)], delta) <= cost + slack
    assert epsilon([event], delta * 10) <= cost + slack
    assert epsilon([event, GaussianRelease(5.0)], delta) > cost - slack


@settings(max_examples=15, deadline=None)
@given(events)
def test_coarse_is_never_below_fine_by_much_and_close(event: SampledGaussian) -> None:
    merged = compress([event])
    fine, coarse = (resolved_epsilon(merged, 1e-4, kind) for kind in ("fine", "coarse"))
    assert fine * 0.9999 - 1e-6 <= coarse <= fine * 1.02 + 1e-4


@settings(max_examples=10, deadline=None)
@given(st.lists(events, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_splitting_and_order_change_nothing(parts: list[SampledGaussian], shuffle: object) -> None:
    pieces: list[PrivacyEvent] = []
    for event in parts:
        q, sigma, steps = event.sampling_probability, event.noise_multiplier, event.steps
        pieces += [SampledGaussian(q, sigma, 1)] * steps
    shuffle.shuffle(pieces)  # type: ignore[attr-defined]
    assert epsilon(pieces, 1e-4) == epsilon(parts, 1e-4)


def test_very_many_steps() -> None:
    # Far from the first stage of composition; tiny steps in great number are a Gaussian.
    long = SampledGaussian(0.01, 40.0, 500_000)
    cost = epsilon([long], 1e-4)
    like = 1 / (0.01 / 40.0 * math.sqrt(500_000))
    assert cost == pytest.approx(epsilon([GaussianRelease(like)], 1e-4), rel=0.01)
    assert spent([long], 1e-4).epsilon == cost


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert spent([], 1e-5).epsilon == 0.0


def test_beyond_any_promise() -> None:
    careless = [SampledGaussian(0.5, 0.3, 10_000)]
    assert epsilon(careless, 1e-5) > 100.0
    assert epsilon([GaussianRelease(1e-3)], 1e-5) > 100.0
    with pytest.raises(PrivacyError, match="protects nobody"):
        spent(careless, 1e-5)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1e-11, 1.0, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon([SITE_OF_30], delta)


@pytest.mark.parametrize("wrong", [1.02, 0.98, 0.5, math.inf, math.nan])
def test_disagreement_refuses(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    def broken(merged: tuple[PrivacyEvent, ...], delta: float, near: float) -> float:
        return near * wrong

    monkeypatch.setattr(accounting, "crosscheck_epsilon", broken)
    with pytest.raises(PrivacyError, match="disagree"):
        spent([SITE_OF_30], 1e-2)


@pytest.mark.parametrize("share", [0.0005, 1.004])
def test_agreement_within_tolerance_passes(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    small = SampledGaussian(0.001, 20.0, 100) if share < 1 else SITE_OF_30

    def other(merged: tuple[PrivacyEvent, ...], delta: float, near: float) -> float:
        return near * share

    monkeypatch.setattr(accounting, "crosscheck_epsilon", other)
    assert spent([small], 1e-2).epsilon >= 0.0


def test_crosscheck_covers_all_kinds_of_events() -> None:
    mixed: list[PrivacyEvent] = [
        SITE_OF_30,
        GaussianRelease(9.0),
        GaussianRelease(20.0, 7, "evaluation"),
    ]
    cost = spent(mixed, 1e-3)
    assert abs(cost.crosscheck - cost.epsilon) <= max(0.03, 0.01 * cost.epsilon)
    without = spent([SITE_OF_30], 1e-3)
    assert cost.epsilon > without.epsilon
    assert cost.crosscheck > without.crosscheck
