"""Sites from a column, and divisions that cannot be made."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedward.client.cohort import Cohort
from fedward.common.errors import DataError
from fedward.common.study.schema import Partition
from fedward.common.table import FeatureTable
from fedward.simulations.partition import partition


def make_cohort(patients=60, *, test_every=4, target=None, **extra):
    patient = np.arange(patients, dtype=np.int64)
    values = np.zeros((patients, 1), dtype=np.float32)
    return Cohort(
        site="all",
        features=FeatureTable(values, np.zeros((patients, 0), dtype=np.int32), ()),
        target=(patient // 2 % 2 if target is None else target).astype(np.float32),
        patient=patient,
        test=patient % test_every == 0,
        extra=extra,
    )


def by_column(cohort, column="ward", min_patients=2, **options):
    rule = Partition(kind="column", column=column, min_patients=min_patients)
    return partition(cohort, rule, seed=0, **options)


def drawn(cohort, kind="iid", **options):
    settings = {"sites": 3, "min_patients": 2} | options
    flags = {k: settings.pop(k) for k in ("two_classes", "regression") if k in settings}
    return partition(cohort, Partition(kind=kind, **settings), seed=0, **flags)


def test_a_column_gives_the_real_hospitals():
    ward = np.array(["Zürich / West", "Basel", "basel"], dtype=object)[np.arange(60) // 20]
    parts = by_column(make_cohort(ward=ward))
    assert [part.site for part in parts] == ["basel", "zurich-west", "basel-2"]
    assert [set(part.extra["ward"]) for part in parts] == [
        {"Basel"},
        {"Zürich / West"},
        {"basel"},
    ]


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, 2.0, 30.0]),
        np.array([1, 2, 30]),
        np.array(["東京", "???", "a" * 90]),
        np.array(["-x-", "x", "x-2"]),
        np.array([True, False, True]),
    ],
)
def test_names_are_short_safe_and_unique(values):
    parts = by_column(make_cohort(ward=values[np.arange(60) // 20]))
    names = [part.site for part in parts]
    assert len(set(names)) == len(np.unique(values))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) for name in names)


@pytest.mark.parametrize("gap", [None, "", float("nan"), "  "])
def test_rows_without_a_site_are_refused(gap):
    ward = np.array(["a"] * 59 + [gap], dtype=object)
    with pytest.raises(DataError, match="lacks values"):
        by_column(make_cohort(ward=ward))


def test_a_patient_at_two_sites_is_refused():
    cohort = make_cohort(ward=np.array(["a", "b"])[np.arange(60) % 2])
    twice = Cohort(
        "all", cohort.features, cohort.target, cohort.patient // 2, cohort.test, cohort.extra
    )
    with pytest.raises(DataError, match="patient at two sites"):
        by_column(twice)


def test_an_absent_column_is_refused():
    with pytest.raises(DataError, match="no such column"):
        by_column(make_cohort())


def test_a_small_hospital_is_refused_by_name():
    ward = np.array(["large"] * 55 + ["tiny"] * 5)
    with pytest.raises(DataError, match=r"tiny has fewer than min_patients.*lower min_patients"):
        by_column(make_cohort(ward=ward), min_patients=10)


def test_a_hospital_that_cannot_test_is_refused():
    ward = np.where(np.arange(60) % 4 == 0, "a", "b")
    with pytest.raises(DataError, match="no patient to"):
        by_column(make_cohort(ward=ward))


def test_a_hospital_with_one_class_is_refused_if_asked():
    ward = np.array(["a", "b"])[np.arange(60) // 30]
    cohort = make_cohort(ward=ward, target=np.arange(60) // 30)
    assert len(by_column(cohort)) == 2
    with pytest.raises(DataError, match=r"single_class"):
        by_column(cohort, two_classes=True)


def test_nobody_cannot_be_divided():
    for divide in (drawn, by_column):
        with pytest.raises(DataError, match="no patients"):
            divide(make_cohort(0, ward=np.zeros(0)))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
def test_too_many_sites_are_refused(kind):
    with pytest.raises(DataError, match=r"too few patients.*lower sites or min_patients"):
        drawn(make_cohort(60), kind, sites=31)
    with pytest.raises(DataError, match="too few patients"):
        drawn(make_cohort(60, test_every=30), kind, sites=3)


@pytest.mark.parametrize("sites", [1, 2, 6])
@pytest.mark.parametrize("kind", ["iid", "quantity"])
def test_exactly_enough_patients_are_enough(kind, sites):
    parts = drawn(make_cohort(60), kind, sites=sites, min_patients=60 // sites)
    assert [part.patients for part in parts] == [60 // sites] * sites
    parts = drawn(make_cohort(60, test_every=2), kind, sites=30, min_patients=1)
    assert [part.patients for part in parts] == [2] * 30


def test_dirichlet_that_cannot_be_met_says_what_to_change():
    with pytest.raises(DataError, match=r"after 1000 draws.*larger alpha"):
        drawn(make_cohort(60), "dirichlet", alpha=0.01, min_patients=15)


def test_dirichlet_needs_classes():
    with pytest.raises(DataError, match="needs classes"):
        drawn(make_cohort(), "dirichlet", regression=True)
    with pytest.raises(DataError, match="needs classes"):
        drawn(make_cohort(target=np.linspace(0, 1, 60)), "dirichlet")
    assert len(drawn(make_cohort(target=np.linspace(0, 1, 60)), "quantity")) == 3


@pytest.mark.parametrize("values", [np.array(["a"] * 60), np.full(60, np.nan)])
def test_feature_shift_needs_numbers(values):
    with pytest.raises(DataError, match="sort by"):
        drawn(make_cohort(ward=values), "feature-shift", column="ward")
    with pytest.raises(DataError, match="cannot sort by column brightness"):
        drawn(make_cohort(), "feature-shift", column="brightness")
