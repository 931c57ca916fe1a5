"""Named arrays: packing, comparing, measuring."""

from __future__ import annotations

import contextlib
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import numpy as safetensors

from fedward.common.errors import ModelError, RoundError
from fedward.common.tensors import (
    Weights,
    check_weights,
    cosine,
    difference,
    flatten,
    from_safetensors,
    norm,
    safetensors_pieces,
    to_safetensors,
    unflatten,
)

NAMES = st.text("abcwxyz._0123456789", min_size=1, max_size=12)
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def weights(draw: st.DrawFn, elements: st.SearchStrategy[float] = FINITE) -> Weights:
    return {
        name: draw(npst.arrays(np.float32, draw(SHAPES), elements=elements))
        for name in draw(st.lists(NAMES, unique=True, max_size=4))
    }


def same(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and np.array_equal(a[k], b[k], equal_nan=True)
        for k in a
    )


@given(weights(st.floats(width=32)))
def test_safetensors_round_trip_keeps_order_bits_and_shapes(given_weights: Weights) -> None:
    packed = to_safetensors(given_weights)
    unpacked = from_safetensors(packed)
    assert same(unpacked, given_weights)
    assert to_safetensors(unpacked) == packed
    assert all(array.flags.writeable for array in unpacked.values())


@given(weights(st.floats(width=32)))
def test_the_bytes_are_those_of_the_library(given_weights: Weights) -> None:
    """Which copies a model twice to write it."""
    library = safetensors.save(given_weights, {"order": json.dumps(list(given_weights))})
    assert to_safetensors(given_weights) == library


def test_a_model_is_packed_without_a_copy() -> None:
    array = np.zeros((1000, 1000), np.float32)
    tracemalloc.start()
    try:
        pieces = list(safetensors_pieces({"w": array}))
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 10
    finally:
        tracemalloc.stop()
    assert sum(len(piece) for piece in pieces[1:]) == array.nbytes


def test_order_is_the_models_and_not_the_alphabets() -> None:
    one = np.zeros(1, np.float32)
    assert list(from_safetensors(to_safetensors({"z": one, "a": one}))) == ["z", "a"]


def test_foreign_safetensors_are_read() -> None:
    packed = safetensors.save({"w": np.ones((2, 2), np.float32)})
    assert same(from_safetensors(packed), {"w": np.ones((2, 2), np.float32)})


def test_non_contiguous_arrays_are_packed_by_value() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert same(from_safetensors(to_safetensors({"w": array})), {"w": array})


@given(st.binary(max_size=200))
def test_bytes_that_are_not_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="new copy"):
        from_safetensors(data)


@given(weights(), st.data())
def test_a_damaged_byte_never_escapes_as_another_error(w: Weights, data: st.DataObject) -> None:
    packed = bytearray(to_safetensors(w))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ModelError):
        from_safetensors(bytes(packed))


def test_other_types_and_false_orders_are_refused() -> None:
    with pytest.raises(ModelError, match="not float32"):
        from_safetensors(safetensors.save({"w": np.zeros(1, np.float64)}))
    for order in (json.dumps(["v"]), json.dumps([]), "7", "{", json.dumps({"w": 1, "v": 2})):
        packed = safetensors.save({"w": np.zeros(1, np.float32)}, {"order": order})
        with pytest.raises(ModelError, match="damaged"):
            from_safetensors(packed)


@given(weights())
def test_flatten_and_back(w: Weights) -> None:
    vector = flatten(w)
    assert vector.dtype == np.float32
    assert vector.shape == (sum(a.size for a in w.values()),)
    assert same(unflatten(vector, w), w)


def test_unflatten_refuses_another_length_and_copies() -> None:
    like = {"w": np.zeros((2, 2), np.float32)}
    for size in (0, 3, 5):
        with pytest.raises(RoundError, match="the model has 4 values"):
            unflatten(np.zeros(size, np.float32), like)
    vector = np.zeros(4, np.float32)
    unflatten(vector, like)["w"][0, 0] = 1
    assert not vector.any()


@given(weights())
def test_norm_is_that_of_the_flat_vector(w: Weights) -> None:
    exact = math.sqrt(math.fsum(float(x) ** 2 for x in flatten(w)))
    assert norm(w) == pytest.approx(exact, rel=1e-12)


def test_norm_neither_overflows_nor_vanishes() -> None:
    assert norm({"w": np.full(4, 1e38, np.float32)}) == pytest.approx(2e38, rel=1e-6)
    assert norm({"w": np.full(4, 1e-38, np.float32)}) == pytest.approx(2e-38, rel=1e-6)
    assert norm({}) == 0.0
    assert norm({"w": np.zeros((0, 3), np.float32)}) == 0.0
    assert math.isnan(norm({"w": np.array([np.nan], np.float32)}))
    assert norm({"w": np.array([np.inf], np.float32)}) == math.inf


@given(weights())
def test_difference_undoes_addition_of_itself(w: Weights) -> None:
    twice = {k: a + a for k, a in w.items()}
    assert same(difference(twice, w), w)
    assert norm(difference(w, w)) == 0.0


def test_difference_may_overflow_quietly() -> None:
    big = {"w": np.array([3e38], np.float32)}
    result = difference(big, {"w": -big["w"]})
    assert np.isinf(result["w"]).all()
    with pytest.raises(RoundError, match="infinite"):
        check_weights(result, big)


@given(weights())
def test_cosine_of_itself_its_opposite_and_zero(w: Weights) -> None:
    zero = {k: np.zeros_like(a) for k, a in w.items()}
    expected = 1.0 if norm(w) else 0.0
    assert cosine(w, w) == pytest.approx(expected)
    assert cosine(w, {k: -a for k, a in w.items()}) == pytest.approx(-expected)
    assert cosine(w, zero) == 0.0


def test_cosine_known_angles() -> None:
    x = {"w": np.array([1, 0], np.float32), "b": np.array([0], np.float32)}
    y = {"w": np.array([1, 1], np.float32), "b": np.array([0], np.float32)}
    z = {"w": np.array([0, 0], np.float32), "b": np.array([5], np.float32)}
    assert cosine(x, y) == pytest.approx(math.sqrt(0.5))
    assert cosine(x, z) == 0.0
    assert math.isnan(cosine(x, {**y, "b": np.array([np.nan], np.float32)}))
    with pytest.raises(RoundError):
        cosine(x, {"w": x["w"]})


@given(weights())
def test_weights_fit_themselves(w: Weights) -> None:
    check_weights(w, w)


ONE = np.ones(2, np.float32)
LIKE: Weights = {"w": ONE, "b": ONE}
BAD: dict[str, tuple[dict[str, object], str]] = {
    "missing": ({"w": ONE}, "tensor b is missing"),
    "nothing": ({}, "tensor w is missing"),
    "unexpected": ({"w": ONE, "b": ONE, "c": ONE}, "tensor c is unexpected"),
    "renamed": ({"w": ONE, "c": ONE}, "tensor b is missing"),
    "order": ({"b": ONE, "w": ONE}, "tensor b stands where w belongs"),
    "type": ({"w": ONE, "b": np.ones(2)}, "tensor b has type float64"),
    "integers": ({"w": ONE, "b": np.ones(2, np.int32)}, "tensor b has type int32"),
    "list": ({"w": [1.0, 1.0], "b": ONE}, "tensor w is a list"),
    "shape": ({"w": np.ones((1, 2), np.float32), "b": ONE}, r"tensor w has shape \(1, 2\)"),
    "nan": ({"w": ONE, "b": np.array([0, np.nan], np.float32)}, "tensor b holds NaN"),
    "infinite": ({"w": ONE, "b": np.array([0, -np.inf], np.float32)}, "tensor b holds NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_misfits_are_named(case: str) -> None:
    bad, message = BAD[case]
    with pytest.raises(RoundError, match=message):
        check_weights(bad, LIKE)  # type: ignore[arg-type]
