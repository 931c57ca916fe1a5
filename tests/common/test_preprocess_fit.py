"""Fitting: sources of values, noise in the sums, and what is refused."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import DataError, RoundError
from fedward.common.preprocess import Statistics, fit
from fedward.common.study.load import EXAMPLE
from fedward.common.study.schema import Study

AGE = {"name": "age", "min": 20.0, "max": 100.0, "missing": "impute"}
SMOKER = {"name": "smoker", "type": "boolean", "missing": "impute"}
STAGE = {
    "name": "stage",
    "type": "categorical",
    "categories": ["I", "II"],
    "missing": "impute",
}
DRUG = {"name": "drug", "type": "categorical", "missing": "impute"}


def make_study(*features, private=False, image=None, **preprocess):
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": features}
    if image:
        table |= {"data": {"modality": "image"}, "model": {"name": "cnn"}}
        preprocess |= {"image": image}
    table["preprocess"] = preprocess
    if private:
        table["privacy"] = {"mode": "dp", "epsilon": 3.0, "delta": 1e-3}
    return Study.model_validate(table)


def sums(count=(), total=(), square=(), levels=(), level_counts=(), noise_variance=0.0):
    arrays = [np.array(values, dtype=np.float64) for values in (count, total, square)]
    counts = tuple(np.array(c, dtype=np.float64) for c in level_counts)
    return Statistics(100.0, *arrays, levels, counts, noise_variance)


def test_bounds_map_the_public_range_to_minus_one_and_one():
    study = make_study(AGE, SMOKER, STAGE, standardise="bounds", impute="bounds")
    made = fit(study)
    assert (made.scope, made.complete) == ("public", True)
    assert [(n.mean, n.deviation, n.fill) for n in made.numeric] == [(60, 40, 60), (0.5, 0.5, 0.5)]
    assert made.categorical[0].fill is None


def test_none_leaves_numbers_alone():
    made = fit(make_study(AGE, standardise="none", impute="bounds"))
    assert (made.numeric[0].mean, made.numeric[0].deviation) == (0.0, 1.0)


def test_public_images_are_centred():
    made = fit(make_study(image={"height": 8, "width": 8, "channels": 3}, standardise="bounds"))
    assert made.image_mean.tolist() == made.image_deviation.tolist() == [0.5] * 3


def test_exact_sums_are_turned_back_into_the_features_units():
    # z = -0.5 and 0.5, that is 40 and 80 years.
    made = fit(make_study(AGE), sums([2], [0], [0.5]))
    assert made.scope == "federated"
    number = made.numeric[0]
    assert (number.mean, number.deviation, number.fill) == (60.0, 20.0, 60.0)


def test_levels_come_from_the_study_or_from_the_sites():
    made = fit(
        make_study(STAGE, DRUG),
        sums(levels=(("I", "II"), ("a", "b", "c")), level_counts=([3, 9], [0, 5, 5])),
    )
    stage, drug = made.categorical
    assert (stage.levels, stage.fill, stage.listed) == (("I", "II"), 1, True)
    assert (drug.levels, drug.fill, drug.listed) == (("b", "c"), 0, False)


def test_features_that_nobody_knows_are_refused():
    with pytest.raises(DataError, match="age has no value"):
        fit(make_study(AGE), sums([0], [0], [0]))
    with pytest.raises(DataError, match="stage has no value"):
        fit(make_study(STAGE), sums(levels=(("I", "II"),), level_counts=([0, 0],)))
    with pytest.raises(DataError, match="drug has no level"):
        fit(make_study(DRUG), sums(levels=((),), level_counts=([],)))


def test_missing_sums_are_refused():
    with pytest.raises(RoundError, match="no sums"):
        fit(make_study(AGE))


noisy = st.floats(-1e4, 1e4)


@given(noisy, noisy, noisy, st.floats(1e-3, 1e4))
def test_noise_never_leaves_the_public_range(count, total, square, variance):
    made = fit(
        make_study(AGE, private=True), sums([count], [total], [square], noise_variance=variance)
    )
    number = made.numeric[0]
    assert 20.0 <= number.mean <= 100.0
    assert 20.0 <= number.fill <= 100.0
    assert 0.0 < number.deviation <= 40.0


def test_a_drowned_count_falls_back_to_the_bounds():
    study = make_study(AGE, private=True)
    number = fit(study, sums([29], [29], [29], noise_variance=100.0)).numeric[0]
    assert (number.mean, number.deviation, number.fill) == (60.0, 40.0, 60.0)
    number = fit(study, sums([31], [31], [31], noise_variance=100.0)).numeric[0]
    assert number.mean == 100.0


def test_a_negative_variance_is_raised_to_what_noise_could_hide():
    study = make_study(AGE, private=True)
    number = fit(study, sums([3000], [1500], [10], noise_variance=100.0)).numeric[0]
    assert number.deviation == pytest.approx(40 * np.sqrt(3 * 10 / 3000))


def test_little_noise_converges_to_the_exact_fit():
    noised = fit(make_study(AGE, private=True), sums([2e6], [1e5], [4e5], noise_variance=1e-6))
    exact = fit(make_study(AGE), sums([2e6], [1e5], [4e5]))
    assert noised == exact


def test_noised_levels_may_all_be_negative():
    study = make_study(STAGE, private=True)
    made = fit(study, sums(levels=(("I", "II"),), level_counts=([-3, -1],), noise_variance=9.0))
    assert made.categorical[0].fill == 1
