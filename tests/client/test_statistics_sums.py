"""Sums of sites, merged and fitted, against NumPy on the pooled rows."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.client.statistics import local_statistics, site_statistics
from fedward.common.errors import DataError, PrivacyError
from fedward.common.preprocess import Statistics, fit, fit_site, merge
from fedward.common.study.load import EXAMPLE
from fedward.common.study.schema import Study
from fedward.common.table import MISSING, FeatureTable, ImageStack

FEATURES = [
    {"name": "age", "min": 0.0, "max": 120.0, "missing": "impute"},
    {"name": "marker", "missing": "impute"},
    {"name": "smoker", "type": "boolean", "missing": "impute"},
    {"name": "stage", "type": "categorical", "categories": ["I", "II", "III"], "missing": "impute"},
    {"name": "drug", "type": "categorical", "missing": "impute"},
]


def make_study(features=FEATURES, *, min_cell=1, image=None, privacy=None, **preprocess):
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "image" if image else "tabular", "features": features}
    table["preprocess"] = preprocess | ({"image": image} if image else {})
    table["evaluation"] = {"min_cell": min_cell}
    table["privacy"] = privacy or {"mode": "none"}
    if image:
        table["data"].pop("features")
        table["model"] = {"name": "cnn"}
    return Study.model_validate(table)


def make_table(rows, seed=0, missing=0.2):
    generator = np.random.default_rng(seed)
    numeric = np.stack(
        [
            generator.uniform(20, 90, rows),
            generator.lognormal(3, 1, rows),
            generator.random(rows) < 0.3,
        ],
        axis=1,
    ).astype(np.float32)
    numeric[generator.random(numeric.shape) < missing] = np.nan
    codes = np.stack([generator.integers(0, 3, rows), generator.integers(0, 4, rows)], axis=1)
    codes[generator.random(codes.shape) < missing] = MISSING
    levels = (("III", "I", "II"), ("b", "a", "d", "c"))
    return FeatureTable(numeric, codes.astype(np.int32), levels)


def exact(study, features, patient):
    return local_statistics(study, features, patient, plan=None, randomness=None)


def send(study, statistics):
    return Statistics.from_arrays(study, statistics.to_arrays(), statistics.levels_json)


def check_against_pooled(transform, table):
    pooled = table.numeric.astype(np.float64)
    got = [(n.mean, n.deviation, n.fill) for n in transform.numeric]
    mean, deviation = np.nanmean(pooled, axis=0), np.nanstd(pooled, axis=0)
    np.testing.assert_allclose([g[0] for g in got], mean, rtol=1e-6)
    np.testing.assert_allclose([g[1] for g in got], deviation, rtol=1e-6)
    np.testing.assert_allclose([g[2] for g in got], mean, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(sites=st.integers(1, 64), order=st.randoms(use_true_random=False), seed=st.integers(0, 1000))
def test_any_split_and_order_gives_the_pooled_values(sites, order, seed):
    study, table = make_study(), make_table(400, seed=seed)
    owner = np.random.default_rng(seed).integers(0, sites, 400)
    parts = [
        send(study, exact(study, table.take(rows), np.arange(len(rows))))
        for rows in (np.flatnonzero(owner == site) for site in range(sites))
        if len(rows)
    ]
    order.shuffle(parts)
    transform = fit(study, merge(parts))
    check_against_pooled(transform, table)
    stage, drug = transform.categorical
    assert stage.levels == ("I", "II", "III")
    assert drug.levels == ("a", "b", "c", "d")
    for feature, column in ((stage, 0), (drug, 1)):
        codes = table.codes[:, column]
        names = [table.levels[column][code] for code in codes[codes != MISSING]]
        counts = [names.count(level) for level in feature.levels]
        assert counts[feature.fill] == max(counts)


def test_levels_of_sites_merge_by_name():
    study = make_study([FEATURES[4]])
    empty = np.zeros((3, 0), dtype=np.float32)
    one = FeatureTable(empty, np.array([[0], [1], [1]], dtype=np.int32), (("x", "z"),))
    two = FeatureTable(empty, np.array([[0], [0], [1]], dtype=np.int32), (("y", "x"),))
    total = exact(study, one, np.arange(3)) + exact(study, two, np.arange(3))
    assert total.levels == (("x", "y", "z"),)
    assert total.level_counts[0].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("bounds", "tolerance"), [({"min": 0.0, "max": 2e6}, 1e-6), ({}, 1e-3)])
def test_far_from_zero_the_deviation_survives(bounds, tolerance):
    # Bounded values are summed about their middle; without bounds float64 must carry the offset.
    study = make_study([{"name": "x", **bounds}])
    values = np.random.default_rng(1).normal(1e6, 1, (5000, 1)).astype(np.float32)
    table = FeatureTable(values, np.zeros((5000, 0), dtype=np.int32), ())
    sites = [np.arange(first, 5000, 7) for first in range(7)]
    parts = [exact(study, table.take(rows), np.arange(len(rows))) for rows in sites]
    fitted = fit(study, merge(parts)).numeric[0]
    assert fitted.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert fitted.deviation == pytest.approx(values.astype(np.float64).std(), rel=tolerance)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.3, 0.0])
@pytest.mark.parametrize("bounds", [{"min": -1.0, "max": 2e6}, {}])
def test_a_constant_feature_has_deviation_one(value, bounds):
    study = make_study([{"name": "x", **bounds}])
    values = np.full((997, 1), value, dtype=np.float32)
    table = FeatureTable(values, np.zeros((997, 0), dtype=np.int32), ())
    assert fit(study, exact(study, table, np.arange(997))).numeric[0].deviation == 1.0


def test_cells_of_too_few_patients_stay():
    study = make_study(min_cell=10)
    table = make_table(60, missing=0.0)
    # marker: 30 rows with a value, but of 9 patients; drug "a": of 9; stage I: of none.
    patient = np.r_[np.repeat(np.arange(9), 4), np.arange(9, 33)]
    numeric, codes = table.numeric.copy(), table.codes.copy()
    numeric[patient >= 9, 1] = np.nan
    codes[:, 0] = np.arange(60) % 2 * 2
    codes[:, 1] = np.where(patient < 9, 1, 0)
    released = exact(study, FeatureTable(numeric, codes, table.levels), patient)
    assert released.count.tolist() == [60.0, 0.0, 60.0]
    assert (released.total[1], released.square[1]) == (0.0, 0.0)
    assert released.levels == (("I", "II", "III"), ("b",))
    assert released.level_counts[0].tolist() == [0.0, 30.0, 30.0]
    one_more = patient.copy()
    one_more[np.flatnonzero(patient == 0)[0]] = 33  # a tenth patient with a marker and drug "a"
    released = exact(study, FeatureTable(numeric, codes, table.levels), one_more)
    assert released.count[1] == 40.0  # of 36 rows: a whole number of cells
    assert released.levels[1] == ("a", "b")


@pytest.mark.parametrize(
    ("patients", "weight"), [(0, 10), (1, 10), (14, 10), (15, 20), (24, 20), (25, 30), (104, 100)]
)
def test_the_number_of_patients_is_rounded(patients, weight):
    study = make_study(min_cell=10)
    table = make_table(patients)
    assert exact(study, table, np.arange(patients)).patients == weight


def test_nobody_and_nothing():
    study = make_study()
    nothing = exact(study, make_table(0), np.zeros(0, dtype=np.int64))
    assert not nothing.count.any()
    with pytest.raises(DataError, match="age has no value"):
        fit(study, nothing)
    table = make_table(50, missing=0.0)
    table.numeric[:, 1] = np.nan
    with pytest.raises(DataError, match="marker has no value"):
        fit(study, exact(study, table, np.arange(50)))


def test_one_patient_with_one_row():
    study = make_study()
    transform = fit(study, exact(study, make_table(1, missing=0.0), np.zeros(1, dtype=np.int64)))
    assert [n.deviation for n in transform.numeric] == [1.0, 1.0, 1.0]


def test_nothing_leaves_that_the_study_does_not_need():
    listed = [FEATURES[0] | {"missing": "refuse"}, FEATURES[3] | {"missing": "refuse"}]
    table = FeatureTable(
        np.full((50, 1), 7.0, dtype=np.float32), np.zeros((50, 1), dtype=np.int32), (("I",),)
    )
    for standardise in ("bounds", "site", "none"):
        released = exact(make_study(listed, standardise=standardise), table, np.arange(50))
        arrays = released.to_arrays()
        assert not any(arrays[n].any() for n in ("count", "total", "square", "level_counts"))


def test_site_scope_takes_the_sites_own_values():
    study = make_study(standardise="site", impute="site")
    ours, theirs = make_table(200, seed=1), make_table(300, seed=2)
    shared = fit(study, exact(study, ours, np.arange(200)) + exact(study, theirs, np.arange(300)))
    assert (shared.scope, shared.complete) == ("site", False)
    own = fit_site(study, shared, site_statistics(study, ours, np.arange(200)))
    assert own.complete
    assert own.names == shared.names
    check_against_pooled(own, ours)


def test_mixed_scope_keeps_the_federated_half():
    study = make_study(standardise="federated", impute="site")
    ours, theirs = make_table(200, seed=1), make_table(300, seed=2)
    ours.numeric[:, 0] += 15
    parts = [exact(study, ours, np.arange(200)), exact(study, theirs, np.arange(300))]
    own = fit_site(study, fit(study, merge(parts)), site_statistics(study, ours, np.arange(200)))
    pooled = np.concatenate((ours.numeric, theirs.numeric)).astype(np.float64)
    assert own.numeric[0].mean == pytest.approx(np.nanmean(pooled[:, 0]))
    assert own.numeric[0].fill == pytest.approx(np.nanmean(ours.numeric[:, 0].astype(np.float64)))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_channels_match_the_pooled_pixels(channels):
    study = make_study(image={"height": 8, "width": 8, "channels": channels})
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, channels), dtype=np.uint8)
    pixels[..., 0] //= 3
    rows = [np.arange(0, 100), np.arange(100, 290)]
    parts = [exact(study, ImageStack(pixels, r), np.arange(len(r))) for r in rows]
    transform = fit(study, merge(send(study, part) for part in parts))
    scaled = pixels[:290] / 255.0
    np.testing.assert_allclose(transform.image_mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(transform.image_deviation, scaled.std(axis=(0, 1, 2)), rtol=1e-6)


def test_images_are_read_a_few_at_a_time(monkeypatch):
    study = make_study(image={"height": 8, "width": 8, "channels": 1})
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    stack = ImageStack(pixels, np.arange(50))
    whole = exact(study, stack, np.arange(50))
    monkeypatch.setattr("fedward.client.columns._PIXELS_AT_ONCE", 7 * 64)
    chunked = exact(study, stack, np.arange(50))
    assert (whole.total, whole.square) == (chunked.total, chunked.square)


def test_values_that_cannot_be_summed_are_refused():
    study = make_study([{"name": "age"}])
    codes = np.zeros((2, 0), dtype=np.int32)
    for bad, words in ((np.nan, "lacks a value"), (np.inf, "infinite")):
        table = FeatureTable(np.array([[1.0], [bad]], dtype=np.float32), codes, ())
        with pytest.raises(DataError, match=words):
            exact(study, table, np.arange(2))
    two = FeatureTable(np.zeros((2, 2), dtype=np.float32), codes, ())
    with pytest.raises(DataError, match="not those of the study"):
        exact(study, two, np.arange(2))


def test_exact_sums_of_a_private_study_are_refused():
    privacy = {"mode": "dp", "epsilon": 3.0, "delta": 1e-3}
    study = make_study(FEATURES[:1], privacy=privacy)
    table = FeatureTable(np.ones((5, 1), dtype=np.float32), np.zeros((5, 0), dtype=np.int32), ())
    for collect in (exact, site_statistics):
        with pytest.raises(PrivacyError):
            collect(study, table, np.arange(5))
    without = make_study(FEATURES[:1])
    with pytest.raises(PrivacyError, match="exact sums"):
        fit(study, exact(without, table, np.arange(5)))
