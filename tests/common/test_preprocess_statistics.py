"""Sums on the wire: what the server accepts from a site."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

from fedward.common.errors import RoundError
from fedward.common.preprocess import Statistics, layout, merge, needs_federated, needs_site
from fedward.common.study.load import EXAMPLE
from fedward.common.study.schema import Study

FEATURES = [
    {"name": "age", "min": 0.0, "max": 120.0},
    {"name": "smoker", "type": "boolean", "missing": "impute"},
    {"name": "stage", "type": "categorical", "categories": ["I", "II"], "missing": "impute"},
    {"name": "drug", "type": "categorical"},
]


def make_study(features=FEATURES, *, private=False, image=None, min_cell=10, **preprocess):
    table = tomllib.loads(EXAMPLE)
    table["evaluation"] = {"min_cell": min_cell}
    table["data"] = {"modality": "tabular", "features": features}
    if image:
        table |= {"data": {"modality": "image"}, "model": {"name": "cnn"}}
        preprocess |= {"image": image}
    table["preprocess"] = preprocess
    if private:
        table["privacy"] = {"mode": "dp", "epsilon": 3.0, "delta": 1e-3}
    return Study.model_validate(table)


def make_statistics(**changes):
    fields = {
        "patients": 30.0,
        "count": np.array([30.0, 20.0]),
        "total": np.array([-3.0, 4.0]),
        "square": np.array([9.0, 20.0]),
        "levels": (("I", "II"), ("a", "b")),
        "level_counts": (np.array([10.0, 0.0]), np.array([10.0, 20.0])),
    }
    return Statistics(**(fields | changes))


def receive(study, statistics, **arrays):
    return Statistics.from_arrays(study, statistics.to_arrays() | arrays, statistics.levels_json)


def test_a_round_trip_keeps_everything():
    sent = make_statistics()
    got = receive(make_study(), sent)
    assert got.to_arrays().keys() == sent.to_arrays().keys()
    for name, array in sent.to_arrays().items():
        np.testing.assert_array_equal(got.to_arrays()[name], array)
    assert got.levels == sent.levels
    assert [c.tolist() for c in got.level_counts] == [[10.0, 0.0], [10.0, 20.0]]


def test_cells_of_one_patient_need_no_rounding():
    study = make_study(min_cell=1)
    assert receive(study, make_statistics(), count=np.array([31.0, 7.0])).count.tolist() == [31, 7]


def test_a_study_without_categories_has_no_level_counts():
    study = make_study(FEATURES[:2])
    sent = make_statistics(levels=(), level_counts=())
    assert receive(study, sent).level_counts == ()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"count": np.array([30.0])}, "count must be"),
        ({"count": np.array([30.0, 20.0], dtype=np.float32)}, "count must be"),
        ({"total": np.array([np.nan, 0.0])}, "total is not finite"),
        ({"square": np.array([np.inf, 0.0])}, "square is not finite"),
        ({"square": np.array([-1.0, 0.0])}, "square is negative"),
        ({"count": np.array([-30.0, 20.0])}, "count is negative"),
        ({"count": np.array([9.0, 20.0])}, "below the minimum"),
        ({"level_counts": np.array([10.0, 1.0, 10.0, 20.0])}, "below the minimum"),
        ({"count": np.array([30.0, 23.0])}, "count is not rounded"),
        ({"level_counts": np.array([10.0, 0.0, 11.0, 20.0])}, "level_counts is not rounded"),
        ({"patients": np.array([30.5])}, "patients is not rounded"),
        ({"level_counts": np.zeros(3)}, "level_counts must be"),
        ({"patients": np.array([3.0])}, "below the minimum"),
        ({"noise_variance": np.array([1.0])}, "noise_variance must be 0"),
        ({"rows": np.zeros(1)}, "array that the study does not have"),
    ],
)
def test_sums_that_cannot_be_right_are_refused(arrays, words):
    with pytest.raises(RoundError, match=words):
        receive(make_study(), make_statistics(), **arrays)


@pytest.mark.parametrize(
    "levels",
    [
        "",
        "{}",
        "[]",
        '[["I", "II"]]',
        '[["I", "II"], "ab"]',
        '[["I", "II"], [1, 2]]',
        '[["I", "II"], ["a", "a"]]',
        '[["II", "I"], ["a", "b"]]',
        "[" * 100_000,
        json.dumps([["I", "II"], ["a" * 1_000_001, "b"]]),
    ],
)
def test_levels_that_cannot_be_right_are_refused(levels):
    with pytest.raises(RoundError, match="levels"):
        Statistics.from_arrays(make_study(), make_statistics().to_arrays(), levels)


def test_a_missing_array_is_refused():
    arrays = make_statistics().to_arrays()
    del arrays["total"]
    with pytest.raises(RoundError, match="total is missing"):
        Statistics.from_arrays(make_study(), arrays, make_statistics().levels_json)


def test_private_sums_must_carry_noise_and_may_be_negative():
    study = make_study(FEATURES[:2], private=True)
    noised = make_statistics(
        levels=(), level_counts=(), patients=-4.0, count=np.array([-1.0, 3.0]), noise_variance=9.0
    )
    got = receive(study, noised)
    assert (got.patients, got.weight, got.noise_variance) == (-4.0, 1.0, 9.0)
    with pytest.raises(RoundError, match="noise_variance must be positive"):
        receive(study, noised, noise_variance=np.zeros(1))


def test_merging_adds_everything_noise_too():
    total = merge([make_statistics(noise_variance=4.0)] * 3)
    assert total.patients == 90.0
    assert total.noise_variance == 12.0
    assert total.count.tolist() == [90.0, 60.0]
    with pytest.raises(RoundError, match="no site"):
        merge([])


@pytest.mark.parametrize(
    ("features", "preprocess", "federated", "site"),
    [
        ([0], {}, True, False),
        ([0], {"standardise": "bounds"}, False, False),
        ([1], {"standardise": "bounds"}, True, False),
        ([1], {"standardise": "bounds", "impute": "bounds"}, False, False),
        ([1], {"standardise": "none", "impute": "site"}, False, True),
        ([0], {"standardise": "site"}, False, True),
        ([0, 2], {"standardise": "site"}, True, True),
        # Levels that the study does not list are always found together.
        ([3], {"standardise": "site", "impute": "site"}, True, False),
        ([3], {"standardise": "none", "impute": "bounds"}, True, False),
    ],
)
def test_who_must_send_sums(features, preprocess, federated, site):
    study = make_study([FEATURES[i] for i in features], **preprocess)
    assert (needs_federated(study), needs_site(study)) == (federated, site)


@pytest.mark.parametrize("source", ["federated", "site", "bounds", "none"])
def test_images_need_sums_only_where_deviations_come_from_data(source):
    study = make_study(image={"height": 8, "width": 8}, standardise=source)
    assert (needs_federated(study), needs_site(study)) == (source == "federated", source == "site")
    assert layout(study).patient_norm == np.sqrt(3.0 if source in ("federated", "site") else 1.0)
