"""Sums without noise: counts leave in whole cells, means as they are."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedward.client.statistics import local_statistics, site_statistics
from fedward.common.preprocess import Statistics, fit, merge
from fedward.common.study.load import EXAMPLE
from fedward.common.study.schema import Study
from fedward.common.table import MISSING, Features, FeatureTable, ImageStack

CELL = 10
FEATURES: list[dict[str, Any]] = [
    {"name": "age", "min": 0.0, "max": 120.0, "missing": "impute"},
    {"name": "marker", "missing": "impute"},
    {"name": "smoker", "type": "boolean", "missing": "impute"},
    {"name": "stage", "type": "categorical", "categories": ["I", "II", "III"], "missing": "impute"},
    {"name": "drug", "type": "categorical", "missing": "impute"},
]


def make_study(min_cell: int = CELL, **changes: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": FEATURES}
    table["evaluation"] = {"min_cell": min_cell}
    return Study.model_validate({**table, **changes})


def make_table(rows: int, seed: int = 0, missing: float = 0.2, shift: float = 0.0) -> FeatureTable:
    draw = np.random.default_rng(seed)
    ages = np.clip(draw.normal(55 + shift, 12, rows), 0, 120)
    values = [ages, draw.lognormal(3 + shift / 20, 1, rows), draw.random(rows) < 0.3]
    numeric = np.stack(values, axis=1).astype(np.float32)
    numeric[draw.random(numeric.shape) < missing] = np.nan
    codes = np.stack([draw.integers(0, 3, rows), draw.integers(0, 9, rows)], axis=1)
    codes[draw.random(codes.shape) < missing] = MISSING
    levels = (("III", "I", "II"), tuple("hgfedcbai"))
    return FeatureTable(numeric, codes.astype(np.int32), levels)


def release(
    features: Features, patient: NDArray[np.int64] | None = None, study: Study | None = None
) -> Statistics:
    study = study or make_study()
    patient = np.arange(len(features)) if patient is None else patient
    sent = local_statistics(study, features, patient, plan=None, randomness=None)
    return Statistics.from_arrays(study, sent.to_arrays(), sent.levels_json)


def counts_of(statistics: Statistics) -> list[float]:
    counts = [statistics.patients, *statistics.count.tolist()]
    return [*counts, *np.concatenate(statistics.level_counts).tolist()]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 150),
    each=st.integers(1, 4),
    cell=st.integers(2, 25),
    seed=st.integers(0, 1000),
)
def test_counts_are_whole_cells_near_the_exact_ones(
    rows: int, each: int, cell: int, seed: int
) -> None:
    study, table = make_study(cell), make_table(rows, seed)
    patient = np.arange(rows) // each
    released = release(table, patient, study)
    assert all(count % cell == 0 for count in counts_of(released))
    present = ~np.isnan(table.numeric)
    for place in range(3):
        exact, people = present[:, place].sum(), len(np.unique(patient[present[:, place]]))
        count = released.count[place]
        if people < cell:
            assert (count, released.total[place], released.square[place]) == (0.0, 0.0, 0.0)
        else:
            assert count >= cell
            assert abs(count - exact) <= cell / 2
    for place, (names, counts) in enumerate(
        zip(released.levels, released.level_counts, strict=True)
    ):
        for name, count in zip(names, counts.tolist(), strict=True):
            having = table.codes[:, place] == table.levels[place].index(name)
            if len(np.unique(patient[having])) < cell:
                assert count == 0
            else:
                assert abs(count - having.sum()) <= cell / 2


@pytest.mark.parametrize("rows", [13, 47, 96, 314])
def test_means_of_a_site_stay(rows: int) -> None:
    table = make_table(rows, missing=0.1)
    released, exact = release(table), site_statistics(make_study(1), table, np.arange(rows))
    assert (released.count != exact.count).any()
    for sums, truth in ((released.total, exact.total), (released.square, exact.square)):
        np.testing.assert_allclose(sums / released.count, truth / exact.count, rtol=1e-14)
    assert (released.total != exact.total).any()


def test_a_cell_of_one_changes_nothing() -> None:
    table, study = make_table(97), make_study(1)
    released, exact = release(table, study=study), site_statistics(study, table, np.arange(97))
    for name, array in exact.to_arrays().items():
        if name != "level_counts":
            np.testing.assert_array_equal(released.to_arrays()[name], array)
    assert released.level_counts[0].tolist() == exact.level_counts[0].tolist()


def test_own_statistics_of_a_site_stay_exact() -> None:
    table = make_table(97, missing=0.1)
    own = site_statistics(make_study(), table, np.arange(97))
    assert own.count.tolist() == (~np.isnan(table.numeric)).sum(axis=0).tolist()


def test_one_patient_more_shows_only_at_steps() -> None:
    table = make_table(200, missing=0.0)
    table.codes[:] = 0
    steps = []
    for rows in range(CELL, 200):
        one, more = (release(table.take(np.arange(n))) for n in (rows, rows + 1))
        if counts_of(one) != counts_of(more):
            steps.append(rows + 1)
    assert steps == list(range(15, 201, CELL))


def test_what_counts_leave_out_does_not_show() -> None:
    """Three of 100 lack a value or have a rare level: the difference of counts does not tell."""
    table = make_table(100, missing=0.0)
    table.codes[:] = 0
    whole = release(table)
    table.numeric[:3] = np.nan
    table.codes[:3] = MISSING
    assert counts_of(release(table)) == counts_of(whole)
    table.codes[:3] = 1
    assert counts_of(release(table)) == counts_of(whole)


@pytest.mark.parametrize("seed", range(5))
def test_federated_means_are_within_the_stated_bound(seed: int) -> None:
    draw = np.random.default_rng(seed)
    tables = [
        make_table(int(draw.integers(15, 120)), seed * 100 + n, shift=8.0 * n) for n in range(6)
    ]
    parts = [release(table) for table in tables]
    total = merge(parts)
    fitted = fit(make_study(), total).numeric
    off = 0.0
    for place, number in enumerate(fitted):
        columns = [table.numeric[:, place].astype(np.float64) for table in tables]
        pooled = np.nanmean(np.concatenate(columns))
        farthest = max(abs(np.nanmean(column) - pooled) for column in columns)
        bound = CELL / 2 * len(tables) / total.count[place] * farthest
        assert abs(number.mean - pooled) <= bound + 1e-9
        assert number.fill == number.mean
        off = max(off, abs(number.mean - pooled) / bound)
    assert off > 1e-3  # the weights are rounded indeed


def test_sites_of_one_kind_need_no_bound() -> None:
    """Where all sites have the same mean, weights do not matter."""
    table = make_table(53, missing=0.0)
    twice = table.take(np.tile(np.arange(53), 2))
    fitted = fit(make_study(), merge([release(table), release(twice)])).numeric
    np.testing.assert_allclose([n.mean for n in fitted], table.numeric.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.3, 0.0])
def test_a_constant_feature_still_has_deviation_one(value: float) -> None:
    study = make_study(data={"modality": "tabular", "features": [{"name": "x"}]})
    values = np.full((997, 1), value, dtype=np.float32)
    table = FeatureTable(values, np.zeros((997, 0), dtype=np.int32), ())
    assert fit(study, release(table, study=study)).numeric[0].deviation == 1.0


def test_pictures_too() -> None:
    study = make_study(
        data={"modality": "image"},
        preprocess={"image": {"height": 8, "width": 8}},
        model={"name": "cnn"},
    )
    pixels = np.random.default_rng(0).integers(0, 256, (47, 8, 8, 1), dtype=np.uint8)
    released = release(ImageStack(pixels, np.arange(47)), study=study)
    assert (released.patients, released.count.tolist()) == (50.0, [50.0])
    mean = fit(study, released).image_mean
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
