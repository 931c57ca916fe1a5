"""How much noise a budget asks for: the inverse of `accounting`.

>>> sigma = noise_multiplier_for(
...     epsilon=5.8, delta=1e-2, sampling_probability=4 / 30, steps=1500
... )
>>> round(sigma, 1)
2.7
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from fedward.common.errors import PrivacyError
from fedward.common.privacy.accounting import LARGEST_EPSILON, Resolution, resolved_epsilon
from fedward.common.privacy.events import PrivacyEvent, SampledGaussian, compress

LARGEST_NOISE = 1e4
"""σ/C beyond which a step teaches nothing: such a study is refused."""
SMALLEST_NOISE = 0.1
"""σ/C never falls below this, however large the budget is."""

_SLACK = 0.004  # stop searching once a noise multiplier spends between 99.6 % and all of ε


def noise_multiplier_for(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    also: Sequence[PrivacyEvent] = (),
) -> float:
    """The smallest noise multiplier σ/C (to within 1 %) for DP-SGD within a budget.

    Guarantee:
        `SampledGaussian(sampling_probability, σ, steps)` and everything in `also` together cost at
        most `epsilon` at `delta` by `accounting.epsilon`, and at least 98 % of it unless σ is
        `SMALLEST_NOISE`.

    Args:
        epsilon: budget, in (0, 100].
        delta: in [1e-10, 1).
        sampling_probability: q in (0, 1].
        steps: number of noisy steps over the whole study, ≥ 1.
        also: what else is released about the same patients.

    Raises:
        PrivacyError: the budget is out of range, spent by `also` alone, or would need a noise
            multiplier above `LARGEST_NOISE`.
    """
    if not 0.0 < epsilon <= LARGEST_EPSILON:
        raise PrivacyError(
            "epsilon is out of range",
            hint=f"take an epsilon above 0 and at most {LARGEST_EPSILON:.0f}",
        )
    return _calibrate(epsilon, delta, sampling_probability, steps, compress(also))


def gaussian_noise_multiplier(*, epsilon: float, delta: float, count: int) -> float:
    """σ/C of each of `count` releases over all patients that together cost at most `epsilon`.

    Guarantee and errors are those of `noise_multiplier_for`.
    """
    return noise_multiplier_for(epsilon=epsilon, delta=delta, sampling_probability=1.0, steps=count)


@lru_cache(maxsize=4096)
def _calibrate(
    budget: float, delta: float, q: float, steps: int, also: tuple[PrivacyEvent, ...]
) -> float:
    def cost(sigma: float, resolution: Resolution) -> float:
        return resolved_epsilon(
            compress((*also, SampledGaussian(q, sigma, steps))), delta, resolution
        )

    if cost(LARGEST_NOISE, "fine") > budget:
        raise PrivacyError(
            f"epsilon = {budget:.4g} cannot be reached in {steps} steps",
            hint="take a larger epsilon, fewer rounds, fewer local steps or a smaller batch",
        )
    guess = q * math.sqrt(2.0 * steps * math.log(1.25 / delta)) / budget
    sigma = _search(lambda s: cost(s, "coarse"), budget, guess)
    # The coarse cost is pessimistic, so this loop ends at once; it is here to make that certain.
    while cost(sigma, "fine") > budget:
        sigma = min(sigma * 1.002, LARGEST_NOISE)
    return sigma


def _search(cost: Callable[[float], float], budget: float, guess: float) -> float:
    """A σ whose (decreasing) cost is within `_SLACK` below the budget.

    Bracket by doubling, then interpolate log ε over log σ, which is nearly a straight line, keeping
    the bracket so that nothing can run away.
    """
    high = min(max(guess, SMALLEST_NOISE), LARGEST_NOISE)
    while (at_high := cost(high)) > budget and high < LARGEST_NOISE:
        high = min(2.0 * high, LARGEST_NOISE)
    low, at_low = high, at_high
    while at_low <= budget:
        if low == SMALLEST_NOISE:
            return SMALLEST_NOISE
        high, at_high = low, at_low
        low = max(low / 2.0, SMALLEST_NOISE)
        at_low = cost(low)
    aim = budget * (1.0 - _SLACK / 2.0)
    for _ in range(60):
        if at_high >= budget * (1.0 - _SLACK) or high / low < 1.0 + 1e-6:
            break
        middle = _between(low, at_low, high, at_high, aim)
        at_middle = cost(middle)
        if at_middle > budget:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return high


def _between(low: float, at_low: float, high: float, at_high: float, aim: float) -> float:
    """Where the straight line in logarithms meets `aim`, kept off both ends of the bracket."""
    share = 0.5
    if math.isfinite(at_low) and at_high > 0.0:
        share = math.log(at_low / aim) / math.log(at_low / at_high)
    return float(low * (high / low) ** min(max(share, 0.02), 0.98))
