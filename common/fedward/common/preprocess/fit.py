"""From sums over sites to the frozen transform.

Each part of a transform has a source: `federated` sums, the `site`'s own sums, public `bounds`, or
none. What comes from sums is a mean and a deviation per numeric feature (or channel) and the most
frequent level per categorical feature.

Exact sums give the mean and the (population) deviation of all rows. Noised sums are treated as what
they are: means stay within the public bounds, a deviation is at most half the public range and at
least what the noise could hide, and where the noise drowns the count itself the public bounds are
taken instead. All of that is post-processing of a private release and costs nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import DataError, PrivacyError, RoundError
from fedward.common.preprocess.layout import Layout, layout, needs_federated, needs_site
from fedward.common.preprocess.statistics import Statistics, standard_error
from fedward.common.preprocess.transform import (
    CategoricalInput,
    Channel,
    NumericInput,
    Transform,
)
from fedward.common.study.schema import Feature, Study

Vector = NDArray[np.float64]
Source = Literal["federated", "bounds", "site", "none"]
_RESOLUTION = float(np.finfo(np.float32).eps) ** 2
"""Variance relative to z² below which a float32 column is constant and the rest is rounding."""
_DROWNED = 3.0
"""A noised count of fewer standard errors than this says nothing."""


def fit(study: Study, statistics: Statistics | None = None) -> Transform:
    """Make the transform that all sites share.

    Args:
        study: says where each value comes from.
        statistics: sums over all sites, needed if `needs_federated(study)`.

    Returns:
        The transform; not `complete` if `needs_site(study)`: then each site calls `fit_site`.

    Raises:
        DataError: a feature has no value at any site (or in too few patients everywhere).
        PrivacyError: the study is private and the sums are exact.
        RoundError: the study needs sums and there are none.
    """
    shared = needs_federated(study)
    if statistics is None and shared:
        raise RoundError("no sums for preprocessing", hint="collect them from the sites first")
    if statistics is not None:
        _check_noise(study, statistics)
    pre = study.preprocess
    own = needs_site(study)
    scope: Literal["federated", "public"] = "federated" if shared else "public"
    mean, deviation = _standard(study, statistics if pre.standardise == "federated" else None)
    for_fill = statistics if pre.impute == "federated" else None
    inputs = (*zip(mean.tolist(), deviation.tolist(), strict=True),)
    if study.data.modality == "image":
        channels = tuple(Channel(mean=m, deviation=d) for m, d in inputs)
        return Transform(scope="site" if own else scope, complete=not own, channels=channels)
    fill = _fill(study, for_fill).tolist()
    return Transform(
        scope="site" if own else scope,
        complete=not own,
        numeric=tuple(
            NumericInput(name=f.name, mean=m, deviation=d, fill=value, missing=f.missing)
            for f, (m, d), value in zip(study.data.numeric, inputs, fill, strict=True)
        ),
        categorical=tuple(
            _category(study, feature, index, statistics)
            for index, feature in enumerate(study.data.categorical)
        ),
    )


def fit_site(study: Study, transform: Transform, statistics: Statistics) -> Transform:
    """Complete the shared transform at one site, if `needs_site(study)`; same as `fit` with it.

    Args:
        study: says what comes from each site's own rows.
        transform: the shared one; inputs keep their names and order.
        statistics: sums of this site alone: `site_statistics`, or in a private study its noised
            `local_statistics`. Exact ones would break the promise: a patient would move the inputs
            of every other patient, which clipping does not bound.

    Raises:
        DataError: a feature has no value at this site.
        PrivacyError: the study is private and the sums are exact.
    """
    _check_noise(study, statistics)
    pre = study.preprocess
    numeric, categorical, channels = transform.numeric, transform.categorical, transform.channels
    if pre.standardise == "site":
        mean, deviation = (values.tolist() for values in _standard(study, statistics))
        scale = [{"mean": m, "deviation": d} for m, d in zip(mean, deviation, strict=True)]
        numeric = tuple(n.model_copy(update=s) for n, s in zip(numeric, scale, strict=False))
        channels = tuple(c.model_copy(update=s) for c, s in zip(channels, scale, strict=False))
    if pre.impute == "site":
        fill = _fill(study, statistics).tolist() if numeric else []
        numeric = tuple(
            n.model_copy(update={"fill": value}) for n, value in zip(numeric, fill, strict=True)
        )
        categorical = tuple(
            c.model_copy(update={"fill": _most_frequent(c, index, statistics)})
            for index, c in enumerate(categorical)
        )
    changed = {"numeric": numeric, "categorical": categorical, "channels": channels}
    return transform.model_copy(update={**changed, "complete": True})


def _check_noise(study: Study, statistics: Statistics) -> None:
    if study.private and statistics.noise_variance == 0:
        raise PrivacyError(
            "exact sums must not shape the inputs of a private study",
            hint="use the noised sums that the privacy plan pays for",
        )


def _standard(study: Study, statistics: Statistics | None) -> tuple[Vector, Vector]:
    """Mean and deviation of each column; of nothing (0 and 1) while the sums are not known."""
    sums = layout(study)
    if study.preprocess.standardise == "bounds":
        return sums.centre, sums.half
    if study.preprocess.standardise == "none" or statistics is None:
        return np.zeros(len(sums.names)), np.ones(len(sums.names))
    mean = _mean(sums, statistics, np.ones(len(sums.names), dtype=np.bool_))
    deviation = _deviation(statistics, mean)
    constant = np.isnan(deviation)
    return sums.centre + sums.half * mean, np.where(constant, 1.0, sums.half * deviation)


def _fill(study: Study, statistics: Statistics | None) -> Vector:
    """What stands for a missing value of each numeric feature; 0 where none may be missing."""
    sums = layout(study)
    if study.preprocess.impute == "bounds":
        return np.where(sums.may_miss, sums.centre, 0.0)
    if statistics is None:
        return np.zeros(len(sums.names))
    mean = _mean(sums, statistics, sums.may_miss)
    return np.where(sums.may_miss, sums.centre + sums.half * mean, 0.0)


def _mean(sums: Layout, statistics: Statistics, wanted: NDArray[np.bool_]) -> Vector:
    """Means in public units; 0 where `wanted` is False or noise drowns the count."""
    error = standard_error(statistics)
    usable = statistics.count > _DROWNED * error
    if error == 0 and (wanted & ~usable).any():
        name = sums.names[int(np.argmax(wanted & ~usable))]
        raise DataError(
            f"feature {name} has no value in enough patients",
            hint="check the sites' mapping of this column, or remove the feature from the study",
        )
    mean: Vector = np.divide(
        statistics.total,
        statistics.count,
        out=np.zeros_like(statistics.total),
        where=usable & wanted,
    )
    return np.clip(mean, -1.0, 1.0) if error else mean


def _deviation(statistics: Statistics, mean: Vector) -> Vector:
    """Deviations in public units; NaN for a constant column."""
    error = standard_error(statistics)
    usable = statistics.count > _DROWNED * error
    moment = np.divide(statistics.square, statistics.count, out=np.ones_like(mean), where=usable)
    variance = moment - mean**2
    if not error:
        return np.sqrt(np.where(variance > _RESOLUTION * moment, variance, np.nan))
    # The noise of square/count and of mean² together; below that a small deviation is a guess,
    # and too small a guess blows the inputs up. Where nothing is known: half the public range.
    doubt = np.divide(_DROWNED * error, statistics.count, out=np.ones_like(mean), where=usable)
    return np.sqrt(np.where(usable, np.clip(variance, np.minimum(doubt, 1.0), 1.0), 1.0))


def _category(
    study: Study, feature: Feature, index: int, statistics: Statistics | None
) -> CategoricalInput:
    found: tuple[str, ...] = ()
    if statistics is not None:
        counted = zip(statistics.levels[index], statistics.level_counts[index], strict=True)
        found = tuple(name for name, count in counted if count > 0)
    levels = feature.categories or found
    if not levels:
        raise DataError(
            f"feature {feature.name} has no level in enough patients of any site",
            hint="list its categories in the study, or remove the feature",
        )
    shared = CategoricalInput(
        name=feature.name,
        levels=levels,
        fill=None,
        missing=feature.missing,
        listed=bool(feature.categories),
    )
    if study.preprocess.impute != "federated" or statistics is None:
        return shared
    return shared.model_copy(update={"fill": _most_frequent(shared, index, statistics)})


def _most_frequent(feature: CategoricalInput, index: int, statistics: Statistics) -> int | None:
    """Position of the most frequent level, the first of equals; None where none may be missing."""
    if feature.missing == "refuse":
        return None
    names, counts = statistics.levels[index], statistics.level_counts[index].tolist()
    known = dict(zip(names, counts, strict=True))
    order = [known.get(level, 0.0) for level in feature.levels]
    if statistics.noise_variance == 0 and max(order) <= 0:
        raise DataError(
            f"feature {feature.name} has no value in enough patients",
            hint="check the sites' mapping of this column, or remove the feature from the study",
        )
    return int(np.argmax(order))
