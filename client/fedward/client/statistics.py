"""A site's sums for preprocessing: what leaves it, and what never does.

Without differential privacy a feature or level with values from fewer than `[evaluation] min_cell`
patients is left out, and every count (of patients, of a feature's rows, of a level's) is rounded to
a multiple of `min_cell`, at least one cell. So are the differences of counts: how many rows lack a
value cannot be told. Sums are scaled as their count was: the mean and the mean square of a site are
exact, its weight among the sites is rounded. So a mean over the sites that send it differs from
that of their pooled rows by at most min_cell / 2 · sites / (sum of released counts) times the
farthest distance of a site's mean from the pooled one. Rounding is no promise: the exact mean of
whole numbers is a fraction, and whoever looks for its denominator may find the number of rows. A
study that must promise needs `mode = "dp"`.

Guarantee:
    With a plan, the released vector is a Gaussian mechanism over patients (add or remove one). One
    patient contributes the mean over at most `max_rows_per_patient` of their rows of (present, z,
    z², one-hot levels), with z clipped to [-1, 1] by public bounds, and 1 for itself. That vector
    has an L2 norm of at most `Layout.patient_norm`, a public constant, and is clipped to it against
    rounding. Gaussian noise of `statistics_noise_multiplier · patient_norm` is added to each
    coordinate. Edge cases: no patient gives noise alone; a missing value contributes 0; an infinite
    value is clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.client.columns import check_features, columns, one_hots
from fedward.common.errors import PrivacyError
from fedward.common.preprocess.layout import DATA, Layout, layout
from fedward.common.preprocess.statistics import Statistics
from fedward.common.privacy.mechanisms import add_gaussian, clip_factors
from fedward.common.privacy.plan import PrivacyPlan
from fedward.common.privacy.randomness import Randomness
from fedward.common.study.schema import Study
from fedward.common.table import Features, FeatureTable

Vector = NDArray[np.float64]
Patients = NDArray[np.int64]


def local_statistics(
    study: Study,
    features: Features,
    patient: Patients,
    *,
    plan: PrivacyPlan | None,
    randomness: Randomness | None,
) -> Statistics:
    """Sums that leave the site; see the module for what they reveal.

    Args:
        study: says which sums it needs.
        features: rows of the training patients.
        patient: int64 `[rows]`, 0 … patients - 1.
        plan: of a private study, whose `statistics_event` accounts for this release; else None.
        randomness: source of the noise; None without a plan.

    Raises:
        PrivacyError: a private study without plan, noise source or public bounds, or a plan that
            does not pay for statistics.
        DataError: the features are not those of the study.
    """
    if plan is not None:
        return _private_sums(study, features, patient, plan, randomness)
    if study.private:
        raise PrivacyError(
            "sums of a private study must carry noise", hint="give the privacy plan of the site"
        )
    smallest = study.evaluation.min_cell
    count, total, square, levels, level_counts = _exact_sums(
        layout(study, {"federated"}), features, patient, smallest
    )
    rounded = _whole_cells(count, smallest)
    scale = np.divide(rounded, count, out=np.zeros_like(count), where=count > 0)
    return Statistics(
        max(float(smallest), float(_whole_cells(np.array(_patients(patient)), smallest))),
        rounded,
        total * scale,
        square * scale,
        levels,
        tuple(_whole_cells(counts, smallest) for counts in level_counts),
    )


def site_statistics(study: Study, features: Features, patient: Patients) -> Statistics:
    """Exact sums over the site's own rows. They never leave the site.

    To complete a transform where `[preprocess]` says `site`, and for training on one site alone. In
    a private study use the noised `local_statistics` instead, once, for everything: inputs that
    depend exactly on all patients would void the promise.

    Raises:
        PrivacyError: the study is private.
        DataError: the features are not those of the study.
    """
    if study.private:
        raise PrivacyError(
            "preprocessing of a private study must not use exact sums of a site",
            hint="use the noised sums that the privacy plan pays for",
        )
    exact = _exact_sums(layout(study, DATA), features, patient, smallest=1)
    return Statistics(float(_patients(patient)), *exact)


def _whole_cells(counts: NDArray[Any], smallest: int) -> Vector:
    """Counts rounded to whole cells, halves up. One that may leave is of one cell at least."""
    return np.asarray(np.floor((counts + smallest // 2) / smallest) * smallest, dtype=np.float64)


def _exact_sums(
    sums: Layout, features: Features, patient: Patients, smallest: int
) -> tuple[Vector, Vector, Vector, tuple[tuple[str, ...], ...], tuple[Vector, ...]]:
    """Count, total, square, levels and level counts, without cells of too few patients."""
    check_features(sums, features)
    moments = np.zeros((3, len(sums.names)))
    for index, column in enumerate(columns(sums, features)):
        if column is not None and _patients(patient[column.present > 0]) >= smallest:
            moments[:, index] = [a.sum() for a in (column.present, column.value, column.square)]
    counted = [
        _count_levels(features, index, listed, patient, smallest if wanted else None)
        for index, (listed, wanted) in enumerate(
            zip(sums.categories, sums.wanted_levels, strict=True)
        )
    ]
    levels = tuple(names for names, _ in counted)
    return moments[0], moments[1], moments[2], levels, tuple(counts for _, counts in counted)


def _count_levels(
    features: Features,
    index: int,
    listed: tuple[str, ...],
    patient: Patients,
    smallest: int | None,
) -> tuple[tuple[str, ...], Vector]:
    """Names and row counts of one feature's levels; rare ones are 0 if listed, else not named."""
    if smallest is None or not isinstance(features, FeatureTable):
        return listed, np.zeros(len(listed))
    codes = features.codes[:, index]
    counts = {}
    for code, name in enumerate(features.levels[index]):
        rows = np.flatnonzero(codes == code)
        if _patients(patient[rows]) >= smallest:
            counts[name] = float(len(rows))
    names = listed or tuple(sorted(counts))
    return names, np.array([counts.get(name, 0.0) for name in names], dtype=np.float64)


def _private_sums(
    study: Study,
    features: Features,
    patient: Patients,
    plan: PrivacyPlan,
    randomness: Randomness | None,
) -> Statistics:
    multiplier = plan.statistics_noise_multiplier
    if multiplier is None or not multiplier > 0 or randomness is None:
        raise PrivacyError(
            "the privacy plan does not pay for sums for preprocessing",
            hint="make the plan from the study whose sums these are, and give a noise source",
        )
    sums = layout(study, DATA)
    check_features(sums, features)
    if (sums.wanted & ~sums.bounded).any():
        name = sums.names[int(np.argmax(sums.wanted & ~sums.bounded))]
        raise PrivacyError(f"feature {name} has no public bounds", hint="give it min and max")
    if not all(sums.categories):
        raise PrivacyError(
            "a categorical feature has no public list of categories", hint="list its categories"
        )
    total = patient_vectors(sums, features, patient, plan.max_rows_per_patient).sum(axis=0)
    deviation = multiplier * sums.patient_norm
    noised = add_gaussian(total, deviation, randomness)
    return _unpack(sums, noised, deviation**2)


def patient_vectors(
    sums: Layout, features: Features, patient: Patients, max_rows: int
) -> NDArray[np.float64]:
    """What each patient adds to the private sums, before noise: float64 `[patients, coordinates]`.

    Guarantee:
        Every row has an L2 norm of at most `sums.patient_norm`, and depends on the rows of its own
        patient alone. Coordinates: the patient itself; for each wanted column its value, its
        presence if it may miss, its square if it is squared; then wanted levels.
    """
    chosen = _first_rows(patient, max_rows)
    owner = patient[chosen]
    patients = _highest(patient) + 1
    rows = np.maximum(np.bincount(owner, minlength=patients), 1)

    def mean(values: Vector) -> Vector:
        return np.asarray(np.bincount(owner, values, patients) / rows, dtype=np.float64)

    parts = [(np.bincount(owner, minlength=patients) > 0).astype(np.float64)]
    picked = features.take(chosen)
    for index, column in enumerate(columns(sums, picked, clip=True)):
        if column is None:
            continue
        parts.append(mean(column.value))
        if sums.may_miss[index]:
            parts.append(mean(column.present))
        if sums.squared[index]:
            parts.append(mean(column.square))
    parts += [mean(hot) for hot in one_hots(sums, picked)]
    vectors = np.stack(parts, axis=1)
    norms = np.linalg.norm(vectors, axis=1).astype(np.float64)
    return vectors * clip_factors(norms, sums.patient_norm)[:, None]


def _unpack(sums: Layout, noised: Vector, variance: float) -> Statistics:
    values = iter(noised.tolist())
    patients = next(values)
    moments = np.zeros((3, len(sums.names)))
    for index in np.flatnonzero(sums.wanted):
        total = next(values)
        count = next(values) if sums.may_miss[index] else patients
        square = next(values) if sums.squared[index] else count
        moments[:, index] = count, total, square
    counts = tuple(
        np.array([next(values) if wanted else 0.0 for _ in listed], dtype=np.float64)
        for listed, wanted in zip(sums.categories, sums.wanted_levels, strict=True)
    )
    return Statistics(
        patients, moments[0], moments[1], moments[2], sums.categories, counts, variance
    )


def _first_rows(patient: Patients, most: int) -> NDArray[np.int64]:
    """Positions of the first `most` rows of each patient: no other patient's rows matter."""
    order = np.argsort(patient, kind="stable")
    grouped = patient[order]
    start = np.searchsorted(grouped, grouped, side="left")
    rank = np.arange(len(grouped)) - start
    return np.sort(order[rank < most]).astype(np.int64)


def _patients(patient: Patients) -> int:
    return len(np.unique(patient))


def _highest(patient: Patients) -> int:
    return int(patient.max()) if len(patient) else -1
