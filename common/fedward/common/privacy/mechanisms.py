"""The three moves of DP-SGD on plain arrays: sample, clip, add noise.

Nothing here knows a study. `plan.PrivacyPlan` calls these with its own constants, so that what runs
is what is accounted; call them directly only in tests.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import PrivacyError
from fedward.common.privacy.randomness import Randomness


def poisson_sample(patients: int, probability: float, randomness: Randomness) -> NDArray[np.int64]:
    """Indices of the sampled patients, ascending; may be none, may be all.

    Guarantee:
        Each of `patients` is drawn with `probability`, independently of every other. Fixed-size or
        shuffled batches would not have the privacy that `SampledGaussian` accounts for.

    Raises:
        PrivacyError: `probability` is not in (0, 1].
    """
    if not 0.0 < probability <= 1.0:
        raise PrivacyError(
            "a sampling probability is out of range", hint="it must be above 0 and at most 1"
        )
    return np.flatnonzero(randomness.uniform(patients) < probability).astype(np.int64)


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
    if not (0.0 < deviation < math.inf):
        raise PrivacyError(
            "the standard deviation of privacy noise is out of range",
            hint="it must be positive and finite",
        )
    exact = np.asarray(total, dtype=np.float64)
    if not np.isfinite(exact).all():
        raise PrivacyError(
            "a sum that noise should protect is not finite",
            hint="lower the learning rate, check the data",
        )
    return exact + deviation * randomness.normal(exact.size).reshape(exact.shape)
