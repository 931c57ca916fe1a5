"""The three moves of DP-SGD on plain arrays: sample, clip, add noise.

Nothing here knows a study. `plan.PrivacyPlan` calls these with its own constants, so that what runs
is what is accounted; call them directly only in tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import PrivacyError
from fedward.common.privacy.randomness import Randomness, normals


def poisson_drawn(uniform: NDArray[np.float64], probability: float) -> NDArray[np.bool_]:
    """Who is drawn, given a uniform number for each: any shape.

    Guarantee:
        Each is drawn with `probability`, independently of every other. Fixed-size or shuffled
        batches would not have the privacy that `SampledGaussian` accounts for.

    Raises:
        PrivacyError: `probability` is not in (0, 1].
    """
    if not 0.0 < probability <= 1.0:
        raise PrivacyError(
            "a sampling probability is out of range", hint="it must be above 0 and at most 1"
        )
    return uniform < probability


def poisson_sample(patients: int, probability: float, randomness: Randomness) -> NDArray[np.int64]:
    """Indices of the sampled patients, ascending; may be none, may be all; see `poisson_drawn`."""
    return np.flatnonzero(poisson_drawn(randomness.uniform(patients), probability))


def sample_rows(groups: NDArray[np.int64], most: int, randomness: Randomness) -> NDArray[np.int64]:
    """At most `most` rows of each group, uniformly without replacement.

    Args:
        groups: `[rows]`, ascending: which group each row belongs to.
        most: rows to keep per group, ≥ 1.
        randomness: one uniform number is used per row, if any group is too large.

    Returns:
        Positions in `groups` of the kept rows, ascending.
    """
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else groups
    sizes = np.diff(np.r_[starts, len(groups)])
    if not len(groups) or sizes.max() <= most:
        return np.arange(len(groups), dtype=np.int64)
    # Rows in a random order within their group; the first `most` of each group stay.
    order = np.lexsort((randomness.uniform(len(groups)), groups))
    rank = np.arange(len(groups)) - np.repeat(starts, sizes)
    return np.sort(order[rank < most]).astype(np.int64)


def clip_factors(norms: NDArray[np.float64], max_norm: float) -> NDArray[np.float64]:
    """What to multiply each vector by so that its L2 norm is at most `max_norm`.

    A zero vector keeps factor 1. Nothing is divided by zero.

    Args:
        norms: `[vectors]`, L2 norms ≥ 0.
        max_norm: the bound C, > 0.

    Raises:
        PrivacyError: a norm is NaN or infinite (no factor bounds such a vector), or `max_norm` is
            not positive and finite.
    """
    if not (0.0 < max_norm < math.inf):
        raise PrivacyError(
            "a clipping bound is out of range", hint="it must be positive and finite"
        )
    if not np.isfinite(norms).all():
        raise PrivacyError(
            "a vector to be clipped is not finite", hint="lower the learning rate, check the data"
        )
    return np.asarray(max_norm / np.maximum(norms, max_norm), dtype=np.float64)


def add_gaussian(
    total: NDArray[np.floating], deviation: float, randomness: Randomness
) -> NDArray[np.float64]:
    """`total` plus independent Gaussian noise of standard deviation `deviation` on every element.

    Guarantee:
        If one patient can move `total` by at most C in L2 norm, this is a Gaussian mechanism with
        noise multiplier `deviation / C`. An empty or zero `total` gets its noise like any other.

    Args:
        total: any shape.
        deviation: in the units of `total`, > 0.
        randomness: where the noise comes from.

    Raises:
        PrivacyError: `deviation` is not positive and finite, or `total` has an element that is not
            finite (noise would not hide it).
    """
    _check_deviation(deviation)
    exact = np.asarray(total, dtype=np.float64)
    if not np.isfinite(exact).all():
        raise PrivacyError(
            "a sum that noise should protect is not finite",
            hint="lower the learning rate, check the data",
        )
    return exact + deviation * randomness.normal(exact.size).reshape(exact.shape)


def add_gaussian_to_each(
    totals: NDArray[np.floating], deviations: Sequence[float], sources: Sequence[Randomness]
) -> None:
    """`add_gaussian` for many sums at once, in place: row by row the same, up to rounding.

    A row that is not finite becomes NaN as a whole: noise would not hide it, and whoever owns it
    is not to learn more than that its training diverged.

    Args:
        totals: `[sums, values]`, changed.
        deviations: of each sum, > 0.
        sources: of each sum's noise.

    Raises:
        PrivacyError: a deviation is not positive and finite.
    """
    for deviation in deviations:
        _check_deviation(deviation)
    finite = np.isfinite(totals).all(axis=1)
    noise = normals(sources, totals.shape[1]).astype(totals.dtype, copy=False)
    noise *= np.asarray(deviations, totals.dtype)[:, None]
    totals += noise
    if not finite.all():
        totals[~finite] = np.nan


def _check_deviation(deviation: float) -> None:
    if not (0.0 < deviation < math.inf):
        raise PrivacyError(
            "the standard deviation of privacy noise is out of range",
            hint="it must be positive and finite",
        )
