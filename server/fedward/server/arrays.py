"""Flower arrays that are not copied: a model in memory as it is, an update on disk block by block.

Flower's own `Array` holds the bytes of an `.npy` file: every look at it copies the values once and
parses a header. Here values stay where they are and are serialised only if a carrier of Flower's
asks for bytes.

    >>> record = array_record({"w": np.arange(3, dtype=np.float32)})
    >>> record["w"].numpy(), block_of(record["w"], 1, 3)
    (array([0., 1., 2.], dtype=float32), array([1., 2.], dtype=float32))
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

_STYPE = "numpy.ndarray"


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """NumPy's name of an element type, which takes it longer than all else about a small array."""
    return str(dtype)


@runtime_checkable
class Blocks(Protocol):
    """An array that can be read in part, wherever it is; `Array`s of the link are such."""

    dtype: str
    shape: tuple[int, ...]

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` of the flattened array."""
        ...


class ResidentArray(Array):
    """A Flower array whose values stay as they are, in memory.

    Args:
        values: are shared, not copied; whoever reads them here cannot change them.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        shared = np.asarray(values, order="C").view()
        shared.flags.writeable = False
        self.__dict__["_values"] = shared
        self.dtype = dtype_name(shared.dtype)
        self.shape = tuple(shared.shape)
        self.stype = _STYPE

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """An `.npy` file, made anew each time: only Flower's own carriers ask for it."""
        buffer = io.BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> NDArray[Any]:
        """The values themselves, read-only."""
        values: NDArray[Any] = self.__dict__["_values"]
        return values

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` of the flattened array, read-only."""
        return self.numpy().reshape(-1)[start:stop]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and same_array(self, other)

    __hash__ = None  # type: ignore[assignment]  # as of Flower's

    def __repr__(self) -> str:
        return f"ResidentArray(dtype={self.dtype!r}, shape={self.shape!r})"


# Flower names an object's class in what it sends; the other side knows only this one.
ResidentArray.__qualname__ = "Array"


def array_record(weights: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Named arrays for a message, not copied."""
    record = ArrayRecord()  # built item by item: its constructor would serialise every array
    for key, value in weights.items():
        record[key] = ResidentArray(value)
    return record


def settled(record: ArrayRecord) -> ArrayRecord:
    """The same arrays, each readable block by block.

    Raises:
        TypeError, ValueError, EOFError: an array of Flower's own holds no `.npy` file.
    """
    result = ArrayRecord()
    for key, array in record.items():
        result[key] = array if isinstance(array, Blocks) else ResidentArray(array.numpy())
    return result


def block_of(array: Array, start: int, stop: int) -> NDArray[Any]:
    """Elements `start` to `stop` of a flattened array."""
    if isinstance(array, Blocks):
        return array.block(start, stop)
    return array.numpy().reshape(-1)[start:stop]


def spec_of(array: Array) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Element type and shape of an array, as they are and not as its sender says they are.

    Raises:
        TypeError, ValueError, EOFError: it cannot be read.
    """
    if not isinstance(array, Blocks):
        values = array.numpy()
        return values.dtype, values.shape
    return np.dtype(array.dtype), tuple(array.shape)


_BLOCK = 1 << 16


def same_array(one: Array, other: Array) -> bool:
    """Whether two arrays have one type and shape, and the same bytes. Reads a block at a time."""
    if (one.dtype, tuple(one.shape)) != (other.dtype, tuple(other.shape)):
        return False
    size = int(np.prod(one.shape, dtype=np.int64))
    return all(
        block_of(one, start, min(start + _BLOCK, size)).tobytes()
        == block_of(other, start, min(start + _BLOCK, size)).tobytes()
        for start in range(0, size, _BLOCK)
    )
