"""The frozen transform: exact in JSON, right on every kind of feature, strict about its input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import DataError, ModelError
from fedward.common.preprocess import Transform
from fedward.common.preprocess.transform import CategoricalInput, Channel, NumericInput
from fedward.common.table import MISSING, FeatureTable

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


def number(name="x", mean=10.0, deviation=2.0, fill=12.0, missing="impute"):
    return NumericInput(name=name, mean=mean, deviation=deviation, fill=fill, missing=missing)


def category(missing="impute", fill=1, listed=True):
    return CategoricalInput(
        name="stage", levels=("I", "II", "III"), fill=fill, missing=missing, listed=listed
    )


def transform(*features):
    return Transform(
        scope="public",
        complete=True,
        numeric=tuple(f for f in features if isinstance(f, NumericInput)),
        categorical=tuple(f for f in features if isinstance(f, CategoricalInput)),
    )


def table(numeric=(), codes=(), levels=("I", "II", "III")):
    rows = max(len(numeric), len(codes))
    return FeatureTable(
        np.array(numeric, dtype=np.float32).reshape(rows, -1),
        np.array(codes, dtype=np.int32).reshape(rows, -1),
        (levels,) if len(codes) else (),
    )


@given(st.lists(st.tuples(finite, positive, finite), min_size=1), st.text(), st.text(min_size=1))
def test_json_keeps_every_bit(numbers, name, level):
    made = Transform(
        scope="site",
        complete=False,
        numeric=tuple(
            NumericInput(name=name, mean=m, deviation=d, fill=f, missing="impute")
            for m, d, f in numbers
        ),
        categorical=(
            CategoricalInput(name=name, levels=(level,), fill=None, missing="refuse", listed=False),
        ),
        channels=tuple(Channel(mean=m, deviation=d) for m, d, _ in numbers),
    )
    back = Transform.from_json(made.to_json())
    assert back == made
    assert [n.mean.hex() for n in back.numeric] == [n.mean.hex() for n in made.numeric]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"scope": "everywhere", "complete": true}',
        '{"scope": "public", "complete": true, "secret": 1}',
        '{"scope": "public", "complete": true, "channels": [{"mean": 0.5, "deviation": 0}]}',
        '{"scope": "public", "complete": true, "channels": [{"mean": NaN, "deviation": 1}]}',
    ],
)
def test_damaged_json_is_refused(text):
    with pytest.raises(ModelError, match="damaged"):
        Transform.from_json(text)


def test_numbers_are_standardised_and_filled():
    got = transform(number()).apply(table([10.0, 14.0, np.nan]))
    assert got.dtype == np.float32
    assert got.tolist() == [[0.0], [2.0], [1.0]]


def test_names_and_columns_agree():
    made = transform(number("age", missing="indicator"), number("bmi"), category("indicator"))
    assert made.names == (
        *("age", "bmi", "stage=I", "stage=II", "stage=III", "age missing", "stage missing"),
    )
    assert made.width == 7
    got = made.apply(table([[np.nan, 10.0], [10.0, np.nan]], [2, MISSING]))
    assert got.tolist() == [[1, 0, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0, 1]]


def test_codes_are_read_by_the_name_of_their_level():
    got = transform(category()).apply(table(codes=[0, 1, 2], levels=("III", "I", "II")))
    assert got.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("fill", "row"), [(0, [1, 0, 0]), (2, [0, 0, 1]), (None, [0, 0, 0])])
def test_missing_and_unseen_levels_take_the_fill(fill, row):
    got = transform(category(fill=fill)).apply(
        table(codes=[MISSING, 3], levels=("I", "II", "III", "IV"))
    )
    assert got.tolist() == [row, row]


def test_rare_levels_of_an_open_list_are_none_of_the_known():
    made = transform(category("refuse", fill=None, listed=False))
    unseen = table(codes=[0, 1], levels=("I", "IV"))
    assert made.apply(unseen).tolist() == [[1, 0, 0], [0, 0, 0]]
    with pytest.raises(DataError, match="stage lacks a value"):
        made.apply(table(codes=[0, MISSING]))
    with pytest.raises(DataError, match="stage lacks a value"):
        transform(category("refuse", fill=None)).apply(unseen)


def test_missing_numbers_are_refused_where_the_study_says_so():
    with pytest.raises(DataError, match="x lacks a value"):
        transform(number(missing="refuse")).apply(table([1.0, np.nan]))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
def test_inputs_are_finite_or_refused(value):
    with pytest.raises(DataError, match="x has a value that is not finite"):
        transform(number(deviation=1e-3)).apply(table([1.0, value]))


def test_other_columns_are_refused():
    with pytest.raises(DataError, match="columns"):
        transform(number()).apply(table([[1.0, 2.0]]))
    with pytest.raises(DataError, match="columns"):
        transform(number()).apply(table(codes=[1]))


def test_an_incomplete_transform_does_nothing():
    made = transform(number()).model_copy(update={"complete": False})
    with pytest.raises(ModelError, match="not got them yet"):
        made.apply(table([1.0]))
    with pytest.raises(ModelError, match="not got them yet"):
        _ = made.image_mean


def test_no_rows_give_no_rows():
    empty = FeatureTable(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int32), (("I",),))
    assert transform(number(), category()).apply(empty).shape == (0, 4)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.just(float("nan")), min_size=1),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
)
def test_apply_equals_the_formula_row_by_row(values, mean, deviation):
    made = transform(number(mean=mean, deviation=deviation, fill=mean, missing="indicator"))
    got = made.apply(table(values))
    for value, row in zip(values, got.tolist(), strict=True):
        absent = value != value
        expected = 0.0 if absent else (value - mean) / deviation
        assert row[0] == pytest.approx(expected, rel=1e-6, abs=1e-30)
        assert row[1] == absent


def test_image_constants_are_float32_per_channel():
    made = Transform(
        scope="public", complete=True, channels=(Channel(mean=0.1, deviation=0.2),) * 3
    )
    assert made.image_mean.dtype == made.image_deviation.dtype == np.float32
    assert made.image_mean.tolist() == [np.float32(0.1)] * 3
    assert made.names == ("channel 0", "channel 1", "channel 2")
