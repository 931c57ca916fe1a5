"""From events to ε: privacy loss distributions are the truth, another accountant checks them.

The truth is dp-accounting's PLD (Koskela et al. 2020; connect-the-dots discretisation, Doroshenko
et al. 2022) under adding or removing one patient. It is pessimistic: discretisation and truncation
can only make ε larger. The cross-check is Opacus' PRV accountant (Gopi et al. 2021), an independent
implementation of another algorithm.

    >>> from fedward.common.privacy.events import SampledGaussian
    >>> study = SampledGaussian(sampling_probability=4 / 30, noise_multiplier=2.734, steps=1500)
    >>> round(epsilon([study], delta=1e-2), 2)
    5.8
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Literal

from fedward.common.errors import MissingExtraError, PrivacyError
from fedward.common.privacy.events import GaussianRelease, PrivacyEvent, compress

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

LARGEST_EPSILON = 100.0
"""Above this ε promises nothing (e¹⁰⁰), and is not computed exactly."""
SMALLEST_DELTA = 1e-10
"""Below this the accountants' own truncation of tails would count."""

_ABSOLUTE_TOLERANCE = 0.03
_RELATIVE_TOLERANCE = 0.01
_TAIL = 1e-15  # mass that dp-accounting may truncate; sets how wide a distribution gets
_MOST_POINTS = 1_000_000
_STAGE = 4096
_ORDERS = (*range(2, 17), 20, 24, 32, 48, 64, 96, 128, 256)  # whole: always exact

Resolution = Literal["fine", "coarse"]


@dataclass(frozen=True)
class Spent:
    """What a sequence of releases cost one patient.

    Attributes:
        epsilon: by PLD; the figure to report.
        crosscheck: by PRV, an upper bound that lies about 0.01 above the truth.
        delta: at which both hold.
    """

    epsilon: float
    crosscheck: float
    delta: float


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """ε that one patient loses by all events together, at `delta`; without the cross-check.

    Guarantee:
        The releases described by `events` are together (ε, δ)-differentially private under adding
        or removing one patient, with sampling probabilities and the number of steps held fixed.
        The result is never below the true ε. No events cost 0. Where the cost is beyond
        `LARGEST_EPSILON` the (larger) Rényi bound is returned, which may be infinite.

    Args:
        events: everything that was, or would be, released about the same patients.
        delta: in [1e-10, 1).

    Raises:
        PrivacyError: `delta` is out of range.
    """
    return resolved_epsilon(compress(events), delta, "fine")


def spent(events: Sequence[PrivacyEvent], delta: float) -> Spent:
    """ε by two independent accountants, for anything that is reported or written to a ledger.

    Guarantee:
        As for `epsilon`; and a defect in one accountant cannot pass unseen unless it is within
        max(0.03, 1 %) of the other.

    Raises:
        PrivacyError: the accountants disagree, the cost is above `LARGEST_EPSILON`, or `delta` is
            out of range.
        MissingExtraError: Opacus is not installed.
    """
    merged = compress(events)
    cost = resolved_epsilon(merged, delta, "fine")
    if not merged:
        return Spent(0.0, 0.0, delta)
    if cost > LARGEST_EPSILON:
        raise PrivacyError(
            f"these releases cost more than epsilon = {LARGEST_EPSILON:.0f}, which protects nobody",
            hint="take more noise, fewer rounds or smaller batches",
        )
    other = crosscheck_epsilon(merged, delta, cost)
    if not abs(other - cost) <= max(_ABSOLUTE_TOLERANCE, _RELATIVE_TOLERANCE * cost):
        raise PrivacyError(
            f"two accountants disagree on epsilon ({cost:.3f} and {other:.3f})",
            hint="do not release anything; report this as a defect together with the study file",
        )
    return Spent(cost, other, delta)


@lru_cache(maxsize=4096)
def resolved_epsilon(
    events: tuple[PrivacyEvent, ...], delta: float, resolution: Resolution
) -> float:
    """`epsilon` of compressed events; `coarse` is faster and larger, at most by about 1 %."""
    if not SMALLEST_DELTA <= delta < 1.0:
        raise PrivacyError("delta is out of range", hint="take a delta from 1e-10 to below 1")
    if not events:
        return 0.0
    from dp_accounting.rdp import RdpAccountant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on Rényi orders: a bound it is all the same
        bound = RdpAccountant(_ORDERS).compose(_composed(events))
        upper = float(bound.get_epsilon(delta))
        if not upper <= LARGEST_EPSILON:
            return upper
        interval = _interval(events, 2 * float(bound.get_epsilon(_TAIL)), resolution)
        parts = [_distribution(q, sigma, n, interval) for q, sigma, n in _as_sampled(events)]
        whole = reduce(lambda a, b: a.compose(b), parts)
        return min(upper, float(whole.get_epsilon_for_delta(delta)))


def _composed(events: tuple[PrivacyEvent, ...]) -> DpEvent:
    """Our events in dp-accounting's words."""
    import dp_accounting

    parts: list[DpEvent] = []
    for q, sigma, count in _as_sampled(events):
        one = dp_accounting.GaussianDpEvent(sigma)
        if q < 1.0:
            one = dp_accounting.PoissonSampledDpEvent(q, one)
        parts.append(dp_accounting.SelfComposedDpEvent(one, count))
    return dp_accounting.ComposedDpEvent(parts)


def _distribution(q: float, sigma: float, count: int, interval: float) -> PrivacyLossDistribution:
    """Privacy loss of `count` equal releases, on a grid of `interval`, rounded up.

    Long compositions go in two stages: dp-accounting is slow where it composes a small distribution
    very often at once. A stage may move 1e-15 of mass to infinity, which `SMALLEST_DELTA` dwarfs.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    def gaussian(deviation: float) -> PrivacyLossDistribution:
        return from_gaussian_mechanism(
            deviation,
            pessimistic_estimate=True,
            value_discretization_interval=interval,
            sampling_prob=q,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        )

    if q == 1.0:
        return gaussian(sigma / math.sqrt(count))  # n Gaussian releases are exactly one with σ/√n
    one = gaussian(sigma)
    stages, rest = divmod(count, _STAGE)
    parts = [one.self_compose(_STAGE).self_compose(stages)] if stages else []
    parts += [one.self_compose(rest)] if rest else []
    return reduce(lambda a, b: a.compose(b), parts)


def _as_sampled(events: tuple[PrivacyEvent, ...]) -> list[tuple[float, float, int]]:
    """`(q, σ/C, count)` of each event; a release of everyone is sampling with q = 1."""
    return [
        (1.0, event.noise_multiplier, event.count)
        if isinstance(event, GaussianRelease)
        else (event.sampling_probability, event.noise_multiplier, event.steps)
        for event in events
    ]


def _interval(events: tuple[PrivacyEvent, ...], width: float, resolution: Resolution) -> float:
    """Grid spacing for the privacy loss, so that rounding to the grid stays negligible.

    One release has a loss of standard deviation about q/σ; rounding adds a variance of at most
    interval²/4 to each. Hence a small fraction of the root mean square of q/σ (measured: `fine` is
    within 0.01 % of ten times as fine), unless the grid over `width` would have too many points.
    """
    fraction, ceiling = (0.03, 3e-4) if resolution == "fine" else (0.1, 5e-3)
    entries = _as_sampled(events)
    count = sum(n for _, _, n in entries)
    typical = math.sqrt(sum(n * (q / sigma) ** 2 for q, sigma, n in entries) / count)
    return max(min(ceiling, fraction * typical), width / _MOST_POINTS)


@lru_cache(maxsize=4096)
def crosscheck_epsilon(events: tuple[PrivacyEvent, ...], delta: float, near: float) -> float:
    """ε by Opacus' PRV accountant.

    Args:
        events: compressed events.
        delta: at which ε is wanted.
        near: ε by PLD; sets how precise the check needs to be.

    Raises:
        PrivacyError: PRV cannot handle these events, so nothing confirms the PLD.
        MissingExtraError: Opacus is not installed.
    """
    import numpy as np

    try:
        from opacus.accountants.prv import PRVAccountant
    except ImportError as error:
        raise MissingExtraError(
            "the privacy cross-check needs Opacus", hint="pip install 'fedward[client]'"
        ) from error
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, count) for q, sigma, count in _as_sampled(events)]
    precision = max(0.01, _RELATIVE_TOLERANCE * near / 10)
    try:
        # q = 1 takes log(0) on the way to a right result; both libraries note numerical orders.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta, eps_error=precision))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        raise PrivacyError(
            "the second accountant cannot confirm the cost of these releases",
            hint="take more noise, fewer rounds or a larger delta",
        ) from error
