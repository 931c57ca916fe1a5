"""Arrays that are not copied are Flower arrays all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedward.server.arrays import (
    Blocks,
    ResidentArray,
    array_record,
    block_of,
    same_array,
    settled,
    spec_of,
)
from fedward.server.blocks import LARGEST, SMALLEST, block_size, blocks, cut

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_nothing_is_copied_and_nobody_can_change_it() -> None:
    array = ResidentArray(VALUES)
    assert np.shares_memory(array.numpy(), VALUES)
    assert np.shares_memory(array.block(3, 7), VALUES)
    with pytest.raises(ValueError, match="read-only"):
        array.numpy()[0, 0] = 1.0
    assert VALUES.flags.writeable


def test_it_is_flowers_array_in_every_way_flower_looks_at_it() -> None:
    ours, theirs = ResidentArray(VALUES), Array(VALUES)
    assert isinstance(ours, Array)
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data
    assert ours.deflate() == theirs.deflate()
    assert ours.object_id == theirs.object_id
    inflated = Array.inflate(ours.deflate(), ours.children)
    assert type(inflated) is Array
    assert (inflated.numpy() == VALUES).all()
    assert ArrayRecord({"w": ours})["w"].data == theirs.data
    assert "data" not in repr(ours)


def test_equality_is_by_content() -> None:
    assert ResidentArray(VALUES) == ResidentArray(VALUES.copy())
    assert ResidentArray(VALUES) == Array(VALUES)
    assert ResidentArray(VALUES) != ResidentArray(VALUES + 1)
    assert ResidentArray(VALUES) != ResidentArray(VALUES.reshape(4, 3))
    assert ResidentArray(VALUES) != ResidentArray(VALUES.astype(np.float64))
    assert ResidentArray(VALUES) != "VALUES"


@pytest.mark.parametrize("shape", [(), (0,), (70_000,), (3, 0, 2)])
def test_arrays_of_any_shape_are_compared(shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    assert same_array(ResidentArray(values), Array(values))
    if values.size:
        other = values.copy()
        other.reshape(-1)[-1] = 2.0
        assert not same_array(ResidentArray(values), ResidentArray(other))


def test_a_settled_record_is_read_once_and_what_is_lazy_stays_so() -> None:
    class Lazy(ResidentArray):
        pass

    lazy = Lazy(VALUES)
    record = ArrayRecord()
    record["plain"], record["lazy"] = Array(VALUES), lazy
    found = settled(record)
    assert found["lazy"] is lazy
    assert isinstance(found["plain"], Blocks)
    assert list(found) == ["plain", "lazy"]
    assert (block_of(Array(VALUES), 5, 7) == [5.0, 6.0]).all()


def test_what_a_sender_says_about_an_array_is_not_believed() -> None:
    lying = Array("float32", (2,), "numpy.ndarray", Array(VALUES).data)
    assert spec_of(lying) == (np.dtype(np.float32), (3, 4))
    with pytest.raises(ValueError):  # noqa: PT011  (its words are numpy's)
        spec_of(Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY garbage"))


def test_a_record_holds_the_arrays_themselves() -> None:
    record = array_record({"b": VALUES, "a": VALUES})
    assert list(record) == ["b", "a"]
    assert np.shares_memory(record["b"].numpy(), VALUES)


LIKE: dict[str, Any] = {
    "big": np.arange(10, dtype=np.float32).reshape(2, 5),
    "none": np.zeros((0, 3), np.float32),
    "one": np.zeros((), np.float32),
    "row": np.arange(3, dtype=np.float32),
}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 10, 13, 14, 100])
def test_blocks_hold_every_value_once_and_are_no_larger_than_asked(size: int) -> None:
    seen = {name: np.zeros(value.shape) for name, value in LIKE.items()}
    named = []
    for block in blocks(LIKE, size):
        assert 0 < sum(part.stop - part.start for part in block) <= size or size > 13
        for part in block:
            named.append(part.name)
            part.of(seen[part.name])[...] += 1
    assert all((value == 1).all() for value in seen.values())
    assert list(dict.fromkeys(named)) == list(LIKE)


def test_a_small_model_is_one_block_in_its_own_shapes() -> None:
    (block,) = blocks(LIKE, 1000)
    assert {name: value.shape for name, value in cut(LIKE, block).items()} == {
        name: value.shape for name, value in LIKE.items()
    }


def test_a_model_without_values_has_one_block_or_none() -> None:
    assert [len(block) for block in blocks({"none": LIKE["none"]}, 5)] == [1]
    assert list(blocks({}, 5)) == []


def test_more_sites_have_smaller_blocks() -> None:
    assert block_size(0) == block_size(1) == block_size(8) == LARGEST
    assert block_size(9) < LARGEST
    assert block_size(10_000) == SMALLEST
