"""What one patient can do to the private sums, and whether the noise is what the plan says."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedward.client.statistics import local_statistics, patient_vectors
from fedward.common.errors import PrivacyError
from fedward.common.preprocess import Layout, Statistics, fit, layout, merge
from fedward.common.privacy.plan import make_plan
from fedward.common.privacy.randomness import SecureRandomness, SeededRandomness
from fedward.common.study.load import EXAMPLE
from fedward.common.study.schema import Study
from fedward.common.table import FeatureTable, ImageStack

FEATURES = [
    {"name": "a", "min": -5.0, "max": 5.0, "missing": "impute"},
    {"name": "b", "min": 0.0, "max": 1.0},
    {"name": "c", "type": "boolean", "missing": "indicator"},
    {"name": "d", "type": "categorical", "categories": ["x", "y", "z"], "missing": "impute"},
]
IMAGE = {"height": 8, "width": 8, "channels": 3}


def make_study(features=FEATURES, image=None, **preprocess):
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": features}
    if image:
        table |= {"data": {"modality": "image"}, "model": {"name": "cnn"}}
        preprocess |= {"image": image}
    table["preprocess"] = preprocess
    table["privacy"] = {"mode": "dp", "epsilon": 3.0, "delta": 1e-4, "max_rows_per_patient": 3}
    return Study.model_validate(table)


def make_table(rows, generator, *, extreme=False):
    numeric = np.stack(
        [generator.normal(0, 2, rows), generator.random(rows), generator.random(rows) < 0.5], axis=1
    ).astype(np.float32)
    if extreme:
        numeric = generator.choice(
            np.array([-np.inf, -1e30, -5, 0, 1, 5, 1e30, np.inf], dtype=np.float32), numeric.shape
        )
    numeric[generator.random(rows) < 0.3, 0] = np.nan
    codes = generator.integers(-1, 3, (rows, 1)).astype(np.int32)
    return FeatureTable(numeric, codes, (("z", "x", "y"),))


def vectors(study, features, patient, most=3):
    return patient_vectors(layout(study), features, patient, most)


def test_the_bound_is_the_norm_of_the_worst_patient():
    study = make_study()
    # 1 patient; a: value, presence, square; b: value, square; c: value, presence; d: one level.
    assert layout(study).patient_norm == pytest.approx(np.sqrt(1 + 3 + 2 + 2 + 1))
    worst = FeatureTable(
        np.full((4, 3), 9e9, dtype=np.float32), np.zeros((4, 1), dtype=np.int32), (("x", "y", "z"),)
    )
    reached = np.linalg.norm(vectors(study, worst, np.zeros(4, dtype=np.int64)))
    assert reached == pytest.approx(layout(study).patient_norm, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    patients=st.integers(1, 12),
    rows=st.integers(1, 200),
    extreme=st.booleans(),
)
def test_removing_a_patient_moves_the_sums_by_at_most_the_bound(seed, patients, rows, extreme):
    study, generator = make_study(), np.random.default_rng(seed)
    table = make_table(rows, generator, extreme=extreme)
    patient = generator.integers(0, patients, rows)
    total = vectors(study, table, patient).sum(axis=0)
    for gone in range(patients):
        kept = np.flatnonzero(patient != gone)
        others = vectors(study, table.take(kept), patient[kept]).sum(axis=0)
        assert np.linalg.norm(total - others) <= layout(study).patient_norm * (1 + 1e-12)


class Tight(Layout):
    """A layout whose bound is below what patients reach, as if the arithmetic above were wrong."""

    @property
    def patient_norm(self):
        return 1.25


def test_the_bound_is_enforced_and_not_only_computed():
    tight = Tight(**vars(layout(make_study())))
    table = make_table(50, np.random.default_rng(0))
    got = patient_vectors(tight, table, np.arange(50), 3)
    assert np.linalg.norm(got, axis=1).max() == pytest.approx(1.25)


def test_row_level_sums_would_break_the_bound():
    # The same patient a hundred times: still one contribution.
    study = make_study()
    table = make_table(1, np.random.default_rng(0))
    once = vectors(study, table, np.zeros(1, dtype=np.int64))
    often = vectors(study, table.take(np.zeros(100, dtype=np.int64)), np.zeros(100, dtype=np.int64))
    np.testing.assert_allclose(once, often)


def test_only_the_first_rows_of_a_patient_count():
    study, table = make_study(), make_table(10, np.random.default_rng(2))
    patient = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 0])
    first = np.array([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(
        vectors(study, table, patient), vectors(study, table.take(first), patient[first])
    )


def test_image_patients_are_bounded_too():
    study = make_study(image=IMAGE)
    pixels = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    pixels[:3] = 255
    got = vectors(study, ImageStack(pixels, np.arange(6)), np.array([0, 0, 0, 1, 1, 2]))
    assert layout(study).patient_norm == pytest.approx(np.sqrt(7))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.sqrt(7))


def noise_of(study, plan, *, draws, randomness):
    """Noise of `draws` releases over nobody, coordinate by coordinate."""
    table, nobody = make_table(0, np.random.default_rng(0)), np.zeros(0, dtype=np.int64)
    released = [
        local_statistics(study, table, nobody, plan=plan, randomness=randomness)
        for _ in range(draws)
    ]
    return np.array(
        [
            [s.patients, *s.total, s.count[0], s.count[2], *s.square[:2], *s.level_counts[0]]
            for s in released
        ]
    )


@pytest.mark.parametrize(("scale", "fits"), [(1.0, True), (0.9, False), (1.1, False), (2.0, False)])
def test_noise_has_the_scale_that_the_plan_accounts_for(scale, fits):
    study = make_study()
    plan = make_plan(study, 100)
    expected = scale * plan.statistics_noise_multiplier * layout(study).patient_norm
    # With a quarter of the draws, a scale that is a tenth too large would pass more often than not.
    noise = noise_of(study, plan, draws=1500, randomness=SeededRandomness(3, "noise"))
    assert noise.shape == (1500, 11)
    p_value = stats.kstest(noise.ravel(), "norm", args=(0, expected)).pvalue
    assert (p_value > 1e-3) == fits
    # Independent coordinates: no pair shares its noise (b's count is the patients', by design).
    correlation = np.corrcoef(noise.T) - np.eye(11)
    assert np.abs(correlation).max() < 0.25


def test_secure_noise_is_fresh_and_has_the_scale():
    study = make_study()
    plan = make_plan(study, 100)
    noise = noise_of(study, plan, draws=100, randomness=SecureRandomness())
    expected = plan.statistics_noise_multiplier * layout(study).patient_norm
    assert 0.85 < noise.std() / expected < 1.15
    assert len(np.unique(noise)) == noise.size


def test_what_is_accounted_is_what_runs():
    study = make_study()
    plan = make_plan(study, 100)
    assert plan.statistics_event().noise_multiplier == plan.statistics_noise_multiplier
    released = local_statistics(
        study,
        make_table(50, np.random.default_rng(0)),
        np.arange(50),
        plan=plan,
        randomness=SeededRandomness(1),
    )
    deviation = plan.statistics_noise_multiplier * layout(study).patient_norm
    assert released.noise_variance == pytest.approx(deviation**2)
    assert Statistics.from_arrays(study, released.to_arrays(), released.levels_json).noise_variance


def test_many_patients_drown_the_noise_and_few_drown_in_it():
    study, generator = make_study(), np.random.default_rng(5)
    plan = make_plan(study, 1000)

    def fitted(rows, seed):
        table = make_table(rows, generator)
        released = local_statistics(
            study, table, np.arange(rows), plan=plan, randomness=SeededRandomness(seed)
        )
        return fit(study, merge([released]))

    large = fitted(200_000, 1).numeric
    assert large[0].mean == pytest.approx(0.0, abs=0.05)
    assert large[0].deviation == pytest.approx(2.0, rel=0.05)
    assert large[1].mean == pytest.approx(0.5, abs=0.01)
    # Nothing is known of a handful of patients: what remains is the public range.
    for seed in range(20):
        for number, half in zip(fitted(3, seed).numeric, (5.0, 0.5, 0.5), strict=True):
            assert number.deviation <= half * (1 + 1e-12)
            assert number.deviation >= 0.1 * half


def test_a_plan_that_does_not_pay_is_refused():
    study = make_study()
    bounds = make_study([FEATURES[1]], standardise="bounds", impute="bounds")
    table = bounds.model_copy(
        update={"aggregation": bounds.aggregation.model_copy(update={"weights": "equal"})}
    )
    free = make_plan(table, 100)
    assert free.statistics_noise_multiplier is None
    features, patient = make_table(5, np.random.default_rng(0)), np.arange(5)
    with pytest.raises(PrivacyError, match="does not pay"):
        local_statistics(study, features, patient, plan=free, randomness=SeededRandomness(1))
    with pytest.raises(PrivacyError, match="does not pay"):
        local_statistics(study, features, patient, plan=make_plan(study, 100), randomness=None)


def test_features_without_public_bounds_are_refused():
    features = [{"name": "free"}, *FEATURES[1:]]
    plain = tomllib.loads(EXAMPLE) | {"data": {"modality": "tabular", "features": features}}
    study = Study.model_validate(plain)
    plan = make_plan(make_study(), 100)
    with pytest.raises(PrivacyError, match="free has no public bounds"):
        local_statistics(
            study,
            make_table(5, np.random.default_rng(0)),
            np.arange(5),
            plan=plan,
            randomness=SeededRandomness(1),
        )
