"""What a sweep can tell apart: intervals over seeds and test patients, and who is best.

Cells are compared by **paired differences**: with the same seed they have the same patients, the
same division and the same test patients, so that what these do to all cells cancels out. Every
interval is value ± t · SE; what differs is where SE comes from.

*Several seeds, each with other test patients* (they are drawn by seed). Runs of different seeds
share patients, so the variance of the n differences, divided by n, understates how much another n
would differ. The corrected resampled t-test multiplies it by 1/n + n_test/n_train instead (Nadeau
and Bengio 2003, "Inference for the Generalization Error", section 3), with n - 1 degrees of
freedom. The variance over seeds is never taken to be less than what resampling the test patients of
a seed gives: two or three seeds that agree by chance prove nothing.

*Several seeds, all with the same test patients* (the data say who is kept for testing). Seeds then
know nothing about other patients. SE² = s²/n + v, with v the variance over resampled patients of
the mean over seeds (a bootstrap over patients within each hospital, Davison and Hinkley 1997,
section 3.8), and the degrees of freedom of Satterthwaite (1946).

*One seed*: SE² = v of that seed, as many degrees of freedom as test patients less one. Such an
interval is about these trainings only: it does not know what another seed would give.

**The winner.** Of K cells, the one with the best mean is called the winner only if the interval of
its difference to *each* other cell excludes zero, each at the level 1 - α/(K - 1) (Bonferroni).
Guarantee, if each interval is right: a cell that is not the best, or one of several that are
equally good, is called the winner with a probability of at most α. (To be called so, it must be
better than one that is as good by more than its interval allows, on one side: for K cells together
K · α/(2(K - 1)), which is at most α.) And the cells that are not told apart from the first contain
the true best one with a probability of at least 1 - α/2. This is selection in the manner of Hsu
(1996), "Multiple Comparisons".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedward.simulations.report.results import Estimate

RESAMPLES = 1000
"""Of patients: a standard error of its square root of two thousandth, 2 %, is exact enough."""
_DEFINED = 0.5
"""Share of the resamples in which a metric must be defined to have a variance."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """How the seeds of a sweep hang together.

    Attributes:
        same_patients: whether every seed has the same test patients.
        ratio: patients that test by patients that train.
        patients: that test, in one seed.
    """

    same_patients: bool
    ratio: float
    patients: int


@dataclass(frozen=True)
class Sample:
    """A metric of one cell, or a difference of two.

    Attributes:
        values: `[seeds]`.
        resampled: `[seeds, resamples]`: the metric in resamples of the test patients, the same
            ones for all cells; None where the cells have not the same test patients.
    """

    values: Floats
    resampled: Floats | None

    def __sub__(self, other: Sample) -> Sample:
        """The paired difference."""
        both = self.resampled is not None and other.resampled is not None
        return Sample(
            self.values - other.values,
            self.resampled - other.resampled if both else None,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class Ranking:
    """Who is best.

    Attributes:
        best: the cell with the best mean.
        winner: the same, if it is told apart from every other cell; else None.
        level: of each interval in `differences`.
        differences: best less other, by the other's name.
        tied: the others that are not told apart from the best.
    """

    best: str
    winner: str | None
    level: float
    differences: Mapping[str, Estimate]
    tied: tuple[str, ...]


def interval(sample: Sample, design: Design, level: float) -> Estimate:
    """The mean over seeds with its interval; without one where there is nothing to base it on.

    Args:
        sample: at least one seed.
        design: of the sweep.
        level: of confidence, such as 0.95.
    """
    mean = float(sample.values.mean())
    found = _standard_error(sample, design)
    if found is None:
        return Estimate(value=mean)
    error, freedom = found
    if error == 0.0 and mean != 0.0:
        return Estimate(value=mean)  # no spread at all: nothing is known about it
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Estimate(value=mean, low=mean - half, high=mean + half)


def rank(
    samples: Mapping[str, Sample], design: Design, confidence: float, *, higher_is_better: bool
) -> Ranking:
    """Who is best, and who cannot be told apart from it.

    Args:
        samples: of at least two cells, by name; the first of equals counts as best.
        design: of the sweep.
        confidence: 1 - α, over all comparisons together.
        higher_is_better: the direction of the metric.
    """
    sign = 1.0 if higher_is_better else -1.0
    best = max(samples, key=lambda name: sign * samples[name].values.mean())
    level = 1 - (1 - confidence) / (len(samples) - 1)
    differences = {
        name: interval(samples[best] - sample, design, level)
        for name, sample in samples.items()
        if name != best
    }
    tied = tuple(name for name, found in differences.items() if not _excludes_zero(found))
    return Ranking(best, None if tied else best, level, differences, tied)


def _excludes_zero(found: Estimate) -> bool:
    return found.low is not None and found.high is not None and found.low * found.high > 0


def _standard_error(sample: Sample, design: Design) -> tuple[float, float] | None:
    """Standard error of the mean and its degrees of freedom."""
    count = len(sample.values)
    spread = float(sample.values.var(ddof=1)) if count > 1 else 0.0
    if count == 1 or design.same_patients:
        patients = _variance(sample.resampled)
        if patients is None or design.patients < 2:
            return None
        return _together(spread / count, count - 1, patients, design.patients - 1)
    if sample.resampled is not None:
        each = [_variance(sample.resampled[[seed]]) for seed in range(count)]
        known = [variance for variance in each if variance is not None]
        spread = max(spread, float(np.mean(known)) if known else 0.0)
    return float(np.sqrt((1 / count + design.ratio) * spread)), count - 1


def _together(
    seeds: float, seeds_freedom: int, patients: float, patients_freedom: int
) -> tuple[float, float]:
    """Two independent parts of a variance as one, with the degrees of freedom of Satterthwaite."""
    total = seeds + patients
    if total == 0.0 or seeds_freedom == 0:
        return float(np.sqrt(total)), patients_freedom
    parts = seeds**2 / seeds_freedom + patients**2 / patients_freedom
    return float(np.sqrt(total)), total**2 / parts


def _variance(resampled: Floats | None) -> float | None:
    """Over resamples, of the mean over seeds; None where too few of them are defined."""
    if resampled is None:
        return None
    means = resampled.mean(axis=0)
    defined = means[np.isfinite(means)]
    if len(defined) < max(2, _DEFINED * len(means)):
        return None
    return float(defined.var(ddof=1))
