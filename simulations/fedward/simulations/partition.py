"""One table becomes many virtual hospitals: by a column, evenly, or with a chosen kind of skew.

Every patient goes to exactly one site, with all rows. Who is kept for testing was decided before:
patients that train and patients that test are divided by the same rule, so that a site's test rows
look like its training rows. The same seed gives the same sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.common.errors import DataError
from fedward.common.study.schema import Partition
from fedward.simulations.partition_keys import by_column, mean_by_patient, sort_column

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_TRIES = 1000
_LEAST = 2
"""Patients of a site: one to train and one to test on."""


@dataclass(frozen=True)
class _Pool:
    """The patients to divide, each `[patients]`; `row` is `[rows]`: the patient of each row.

    `first` is a row of the patient, `value` what `feature-shift` sorts by, NaN where a patient has
    none.
    """

    row: Ints
    first: Ints
    label: Ints
    test: NDArray[np.bool_]
    value: Floats


def partition(
    cohort: Cohort,
    spec: Partition,
    *,
    seed: int,
    numeric: Sequence[str] = (),
    two_classes: bool = False,
    regression: bool = False,
) -> list[Cohort]:
    """Divide a cohort into sites.

    Args:
        cohort: rows of all sites together.
        spec: the kind of division and its settings.
        seed: of everything drawn here.
        numeric: names of the numeric features in table order: what `feature-shift` may sort by, in
            addition to `cohort.extra` and, for images, `brightness`.
        two_classes: ask for at least two classes among both training and test rows of each site.
        regression: the target is a number, not a class.

    Returns:
        Sites `site-01` …; for a column, one for each of its values, named by it.

    Raises:
        DataError: the data cannot be divided like this; the message says which setting to change.
    """
    if not len(cohort):
        raise DataError("there are no patients to divide", hint="check the source and its filter")
    pool = _pool(cohort, spec, numeric)
    if spec.kind == "column":
        names, assigned = by_column(cohort, spec.column or "")
        problem = _problem(cohort, pool.first, assigned, names, spec, two_classes=two_classes)
        if problem:
            raise DataError(f"partition by column {spec.column}: {problem[0]}", hint=problem[1])
        return _take(cohort, assigned, names)
    if spec.kind == "dirichlet" and (regression or (cohort.target % 1 != 0).any()):
        raise DataError(
            "partition kind 'dirichlet' needs classes, the target is a number",
            hint="take kind 'iid', 'quantity' or 'feature-shift'",
        )
    sites = spec.sites or 1
    tests = int(pool.test.sum())
    fewest = min(tests, len(pool.test) - tests)
    if len(pool.test) < sites * max(spec.min_patients, _LEAST) or fewest < sites:
        raise DataError(
            f"too few patients to train and test {sites} sites of {spec.min_patients} patients",
            hint="lower sites or min_patients of [simulation.partition]",
        )
    width = max(2, len(str(sites)))
    names = [f"site-{index + 1:0{width}d}" for index in range(sites)]
    assigned = _draw(cohort, spec, pool, names, seed=seed, two_classes=two_classes)
    return _take(cohort, assigned, names)


def _draw(
    cohort: Cohort,
    spec: Partition,
    pool: _Pool,
    names: list[str],
    *,
    seed: int,
    two_classes: bool,
) -> Ints:
    """The site of each row: the first draw in which every site can train and test."""
    generator = np.random.Generator(np.random.PCG64DXSM(seed))
    problem: tuple[str, str] | None = None
    for _ in range(_TRIES):
        assigned = _KINDS[spec.kind](pool, spec, len(names), generator)[pool.row]
        problem = _problem(cohort, pool.first, assigned, names, spec, two_classes=two_classes)
        if problem is None:
            return assigned
    what, hint = problem or ("", "")
    raise DataError(f"partition '{spec.kind}', after {_TRIES} draws: {what}", hint=hint)


def _iid(pool: _Pool, _spec: Partition, sites: int, generator: np.random.Generator) -> Ints:
    """Shuffle and deal out evenly."""
    total = _cut(np.ones(sites), len(pool.test))
    return _deal(generator.random(len(pool.test)), pool.test, total)


def _feature_shift(
    pool: _Pool, spec: Partition, sites: int, generator: np.random.Generator
) -> Ints:
    """Sort by a feature, blurred by `alpha` of its standard deviations, and cut evenly."""
    known = pool.value[~np.isnan(pool.value)]
    filled = np.where(np.isnan(pool.value), known.mean(), pool.value)
    blur = spec.alpha * known.std() * generator.standard_normal(len(filled))
    # Ties in random order: a binary feature would otherwise be cut by the order of the rows.
    order = np.lexsort((generator.random(len(filled)), filled + blur))
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    return _deal(rank, pool.test, _cut(np.ones(sites), len(rank)))


def _quantity(pool: _Pool, spec: Partition, sites: int, generator: np.random.Generator) -> Ints:
    """Sizes from a Dirichlet with `alpha` above the minimum, contents at random."""
    patients, least = len(pool.test), max(spec.min_patients, _LEAST)
    shares = generator.dirichlet(np.full(sites, spec.alpha))
    total = least + _cut(shares, patients - sites * least)
    return _deal(generator.random(patients), pool.test, total)


def _dirichlet(pool: _Pool, spec: Partition, sites: int, generator: np.random.Generator) -> Ints:
    """Each class is spread over the sites in shares from a Dirichlet with `alpha`.

    Label skew by a Dirichlet is from Hsu et al. 2019, section 3; drawing shares per class instead
    of per site (Yurochkin et al. 2019, section 4) makes sites differ in size too. The class of a
    patient is the most frequent one of its rows.
    """
    assigned = np.empty(len(pool.test), dtype=np.int64)
    for label in np.unique(pool.label):
        shares = generator.dirichlet(np.full(sites, spec.alpha))
        for test in (False, True):
            members = np.flatnonzero((pool.label == label) & (pool.test == test))
            dealt = np.repeat(np.arange(sites), _cut(shares, len(members)))
            assigned[generator.permutation(members)] = dealt
    return assigned


_KINDS: dict[str, Callable[[_Pool, Partition, int, np.random.Generator], Ints]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "quantity": _quantity,
    "feature-shift": _feature_shift,
}


def _deal(key: Floats, test: NDArray[np.bool_], total: Ints) -> Ints:
    """Sites of `total` patients in the order of `key`, each with its share of those who test.

    Every site gets at least one patient to train and one to test on: `total` is at least 2
    everywhere, and there are as many patients of either sort as sites.
    """
    tests = 1 + _cut((total - _LEAST).astype(np.float64), int(test.sum()) - len(total))
    assigned = np.empty(len(key), dtype=np.int64)
    for chosen, sizes in ((~test, total - tests), (test, tests)):
        members = np.flatnonzero(chosen)
        order = members[np.argsort(key[members], kind="stable")]
        assigned[order] = np.repeat(np.arange(len(total)), sizes)
    return assigned


def _cut(shares: Floats, patients: int) -> Ints:
    """Whole numbers in proportion to the shares, off by less than 1; their sum is `patients`."""
    if patients == 0:
        return np.zeros(len(shares), dtype=np.int64)
    ends = np.floor(np.cumsum(shares) / shares.sum() * patients + 0.5).astype(np.int64)
    ends[-1] = patients
    return np.asarray(np.diff(ends, prepend=0), dtype=np.int64)


def _pool(cohort: Cohort, spec: Partition, numeric: Sequence[str]) -> _Pool:
    _, first, row = np.unique(cohort.patient, return_index=True, return_inverse=True)
    value = np.zeros(len(first))
    if spec.kind == "feature-shift":
        value = mean_by_patient(sort_column(cohort, spec.column or "", numeric), row, len(first))
        if np.isnan(value).all():
            raise DataError(
                f"column {spec.column} has no values to sort by",
                hint="choose another column in [simulation.partition]",
            )
    label = np.zeros(len(first), dtype=np.int64)
    if spec.kind == "dirichlet":
        classes, code = np.unique(cohort.target, return_inverse=True)
        cells = np.bincount(row * len(classes) + code, minlength=len(first) * len(classes))
        label = cells.reshape(len(first), len(classes)).argmax(axis=1)
    return _Pool(row=row, first=first, label=label, test=cohort.test[first], value=value)


def _problem(
    cohort: Cohort,
    first: Ints,
    assigned: Ints,
    names: list[str],
    spec: Partition,
    *,
    two_classes: bool,
) -> tuple[str, str] | None:
    """What is wrong with a division and which setting helps, or None."""
    sites = len(names)
    site, test = assigned[first], cohort.test[first]
    drawn = {"column": "another kind or seed", "iid": "fewer sites, another seed"}.get(
        spec.kind, "a larger alpha, fewer sites"
    )
    small = np.bincount(site, minlength=sites) < spec.min_patients
    if small.any():
        where = names[int(np.argmax(small))]
        return (f"{where} has fewer than min_patients", f"lower min_patients, or take {drawn}")
    for kept, word in ((~test, "train"), (test, "test")):
        without = np.bincount(site[kept], minlength=sites) == 0
        if without.any():
            where = names[int(np.argmax(without))]
            return (f"{where} has no patient to {word} on", f"change holdout, or take {drawn}")
    if two_classes and not _all_have_two_classes(cohort, assigned, sites):
        hint = f"set [data] single_class = 'allow', or take {drawn}"
        return ("a site has one class only among its training or test rows", hint)
    return None


def _all_have_two_classes(cohort: Cohort, assigned: Ints, sites: int) -> bool:
    classes, code = np.unique(cohort.target, return_inverse=True)
    cell = (assigned * 2 + cohort.test) * len(classes) + code
    counts = np.bincount(cell, minlength=sites * 2 * len(classes))
    return bool(((counts.reshape(sites * 2, len(classes)) > 0).sum(axis=1) >= 2).all())


def _take(cohort: Cohort, assigned: Ints, names: list[str]) -> list[Cohort]:
    order = np.argsort(assigned, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(assigned, minlength=len(names)))[:-1]
    parts = zip(np.split(order, ends), names, strict=True)
    return [cohort.take(rows, site=name) for rows, name in parts]
