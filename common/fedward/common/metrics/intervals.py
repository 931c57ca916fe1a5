"""Percentile intervals from resampling patients (cluster bootstrap).

Rows of a patient are alike, so a bootstrap over rows would promise more certainty than there is: a
resample draws as many patients as there are, with replacement, and takes all rows of each (Davison
and Hinkley 1997, section 3.8). A thousand resamples are evaluated at once, as weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedward.common.errors import DataError
from fedward.common.metrics.binary import THRESHOLD, ScoreBins
from fedward.common.metrics.checks import Floats, Ints, checked, checked_ids
from fedward.common.metrics.counting import evaluate, exact_counts, summary_metrics
from fedward.common.metrics.counts import Summary
from fedward.common.metrics.multiclass import ClassBins
from fedward.common.metrics.regression import ErrorSums, error_terms
from fedward.common.models.outputs import Kind

EXACT_ROWS = 2_000
"""Up to so many rows a resample uses every distinct score; above, `FINE_BINS` quantile bins."""
FINE_BINS = 1_000
_CHUNK = 1_000_000
"""Numbers in the largest array: resamples are worked off in chunks, so memory stays bounded."""
_ENOUGH = 0.5
"""Share of resamples in which a metric must be defined to have an interval."""


@dataclass(frozen=True)
class Interval:
    """A metric with its interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


def bootstrap(
    kind: Kind,
    truth: ArrayLike,
    scores: ArrayLike,
    patient: NDArray[Any] | None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    stratum: NDArray[Any] | None = None,
) -> dict[str, Interval]:
    """Every metric with its percentile interval over resampled patients.

    Values are exact whatever the number of rows; intervals use at most `FINE_BINS` score bins when
    there are more than `EXACT_ROWS` rows. A metric that is undefined in some resamples (say, only
    one class drawn) has the interval of the others, or none if more than half are undefined. Where
    every resample gives the same value (a perfect score) the interval has no width: it knows
    nothing about patients unlike those seen.

    Args:
        kind: of task.
        truth: `[rows]`.
        scores: `[rows, outputs]`.
        patient: `[rows]`, whom a row belongs to; None says that every row is another patient.
        resamples: 0 for values without intervals.
        confidence: of the interval, e.g. 0.95.
        seed: same seed, same intervals.
        stratum: `[rows]`, e.g. the site: patients are drawn anew within each, and the same number
            at two sites is two patients.

    Raises:
        DataError: rows, patients or classes do not fit, or `confidence` is not between 0 and 1.
        TrainingError: scores are not finite or no probabilities.
    """
    if not 0 < confidence < 1 or resamples < 0:
        raise DataError(
            "a bootstrap needs resamples ≥ 0 and 0 < confidence < 1", hint="see [evaluation]"
        )
    y, s = checked(kind, truth, scores)
    value = evaluate(exact_counts(kind, y, s))
    if resamples == 0 or not len(y):
        return {name: Interval(found, None, None) for name, found in value.items()}
    found = _replicates(kind, y, s, patient, resamples, seed, stratum)
    return {name: _interval(value[name], found[name], confidence) for name in value}


def replicates(
    kind: Kind,
    truth: ArrayLike,
    scores: ArrayLike,
    patient: NDArray[Any] | None,
    *,
    resamples: int,
    seed: int = 0,
    stratum: NDArray[Any] | None = None,
) -> dict[str, Floats]:
    """Every metric in each resample, `[resamples]`, NaN where undefined; see `bootstrap`.

    The same seed draws the same patients, whatever the scores: models that were tried on the same
    rows can be compared resample by resample.

    Raises:
        DataError: rows, patients or classes do not fit, or there are no rows.
        TrainingError: scores are not finite or no probabilities.
    """
    y, s = checked(kind, truth, scores)
    if not len(y) or resamples < 1:
        raise DataError("there is nothing to resample", hint="give rows, and resamples ≥ 1")
    return _replicates(kind, y, s, patient, resamples, seed, stratum)


def _replicates(
    kind: Kind,
    truth: Floats,
    scores: Floats,
    patient: NDArray[Any] | None,
    resamples: int,
    seed: int,
    stratum: NDArray[Any] | None,
) -> dict[str, Floats]:
    summarise = _summariser(kind, truth, scores)
    site = np.zeros(len(truth), dtype=np.int64)
    if stratum is not None:
        site = checked_ids(stratum, len(truth))
    patients = _Patients.of(checked_ids(patient, len(truth)), site)
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(len(truth), 1))
    chunks = [
        summary_metrics(summarise(patients.draw(min(size, resamples - at), generator)))
        for at in range(0, resamples, size)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _interval(value: float | None, found: Floats, confidence: float) -> Interval:
    defined = found[np.isfinite(found)]
    if value is None or len(defined) < _ENOUGH * len(found):
        return Interval(value, None, None)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


@dataclass(frozen=True, eq=False)
class _Patients:
    """Whom to draw: `of_row` `[rows]`; per patient, where its stratum starts and how big it is."""

    of_row: Ints
    start: Ints
    size: Ints

    @classmethod
    def of(cls, patient: Ints, stratum: Ints) -> _Patients:
        """Number patients so that those of a stratum are neighbours."""
        distinct, of_row = np.unique(
            np.stack([stratum, patient], axis=1), axis=0, return_inverse=True
        )
        _, start, place, size = np.unique(
            distinct[:, 0], return_index=True, return_inverse=True, return_counts=True
        )
        place = place.reshape(-1)
        return cls(of_row.reshape(-1), start[place], size[place])

    def draw(self, resamples: int, generator: np.random.Generator) -> Floats:
        """How often each row occurs in each resample, `[resamples, rows]`."""
        patients = len(self.start)
        drawn = (generator.random((resamples, patients)) * self.size).astype(np.int64) + self.start
        drawn += np.arange(resamples)[:, None] * patients
        times = np.bincount(drawn.reshape(-1), minlength=resamples * patients)
        return times.reshape(resamples, patients).astype(np.float64)[:, self.of_row]


def _summariser(kind: Kind, truth: Floats, scores: Floats) -> Callable[[Floats], Summary]:
    """A function from row weights `[resamples, rows]` to the summary of each resample."""
    if kind == "regression":
        terms = error_terms(truth, scores[:, 0], float(truth.mean()), 1.0)
        return lambda weight: ErrorSums(weight @ terms)
    label = truth.astype(np.int64)
    if kind == "binary":
        return _Bins.of(label, scores[:, 0]).tally
    classes = scores.shape[1]
    each = [_Bins.of((label == k).astype(np.int64), scores[:, k]) for k in range(classes)]
    confusion = _Tally.of(label * classes + scores.argmax(axis=1), classes**2)
    return lambda weight: ClassBins(
        confusion.sums(weight).reshape(-1, classes, classes),
        tuple(bins.tally(weight) for bins in each),
    )


@dataclass(frozen=True, eq=False)
class _Tally:
    """Sums of row weights by cell: rows sorted once, then one pass per resample."""

    order: Ints
    present: Ints
    starts: Ints
    cells: int

    @classmethod
    def of(cls, cell: Ints, cells: int) -> _Tally:
        """For `cell` `[rows]`, numbers below `cells`."""
        order = np.argsort(cell, kind="stable")
        present, starts = np.unique(cell[order], return_index=True)
        return cls(order, present, starts, cells)

    def sums(self, weight: Floats) -> Floats:
        """`[resamples, cells]` of weights `[resamples, rows]`."""
        found = np.zeros((len(weight), self.cells))
        found[:, self.present] = np.add.reduceat(weight[:, self.order], self.starts, axis=1)
        return found


@dataclass(frozen=True, eq=False)
class _Bins:
    """Score bins of all rows, to be filled with the weights of resamples."""

    score: Floats
    cells: _Tally

    @classmethod
    def of(cls, truth: Ints, score: Floats) -> _Bins:
        """Bins by distinct score, or by quantile (never across the threshold) if there are many."""
        distinct, place = np.unique(score, return_inverse=True)
        place = place.reshape(-1)
        if len(score) > EXACT_ROWS and len(distinct) > FINE_BINS:
            fine = place * FINE_BINS // len(distinct) * 2 + (score >= THRESHOLD)
            _, place = np.unique(fine, return_inverse=True)
            place = place.reshape(-1)
            rows = np.bincount(place)
            lowest = np.full(len(rows), np.inf)
            np.minimum.at(lowest, place, score)
            # Rounding must not carry a mean over the lower edge of its bin.
            distinct = np.maximum(np.bincount(place, score) / rows, lowest)
        bins = len(distinct)
        return cls(distinct, _Tally.of(truth * bins + place, 2 * bins))

    def tally(self, weight: Floats) -> ScoreBins:
        """The bins of each resample, `[resamples, bins]`."""
        hist = self.cells.sums(weight)
        return ScoreBins(self.score, hist[:, : len(self.score)], hist[:, len(self.score) :])
