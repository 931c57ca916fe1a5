"""Named arrays: a model's weights, or an update of them, as plain NumPy.

Order matters: two sets of weights fit each other only if names, order, shapes and types agree.

    >>> a = {"w": np.array([3.0, 0.0], np.float32), "b": np.array([4.0], np.float32)}
    >>> norm(a)
    5.0
    >>> list(from_safetensors(to_safetensors(a)))
    ['w', 'b']
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from fedward.common import tensor_file
from fedward.common.errors import ModelError, RoundError

Weights = dict[str, NDArray[np.float32]]
"""Arrays by name, in the order of the model's `state_dict`."""

_ORDER = "order"
_HEADER = 8  # bytes that hold the length of a safetensors header


def check_weights(weights: Weights, like: Weights) -> None:
    """Refuse weights that do not fit a model, or that are not numbers.

    Args:
        weights: what came in.
        like: weights of the same model, for names, order and shapes.

    Raises:
        RoundError: names the first tensor that differs and says how: missing, unexpected, another
            type, another shape, NaN or infinite values.
    """
    _check_layout(weights, like)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise _misfit(name, "holds NaN or infinite values")


def check_layout(specs: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], like: Weights) -> None:
    """Refuse what does not have the layout of a model, before a value of it is read.

    Args:
        specs: element type and shape by name, in order.
        like: weights of the model.

    Raises:
        RoundError: names the first tensor that differs and says how.
    """
    for name, expected in zip_longest(specs, like):
        if name == expected:
            continue
        if expected is not None and expected not in specs:
            raise _misfit(expected, "is missing")
        if name is not None and name not in like:
            raise _misfit(name, "is unexpected")
        raise _misfit(str(name), f"stands where {expected} belongs")
    for name, (dtype, shape) in specs.items():
        if dtype != np.float32:
            raise _misfit(name, f"has type {dtype}, not float32")
        if shape != like[name].shape:
            raise _misfit(name, f"has shape {shape}, not {like[name].shape}")


def _check_layout(weights: Weights, like: Weights) -> None:
    for name, array in weights.items():
        if not isinstance(array, np.ndarray | np.generic):  # sums of 0-d arrays are generic
            raise _misfit(name, f"is a {type(array).__name__}, not an array")
    check_layout({name: (array.dtype, array.shape) for name, array in weights.items()}, like)


def _misfit(name: str, what: str) -> RoundError:
    return RoundError(
        f"tensor {name} {what}", hint="every party must run the same study with the same version"
    )


def flatten(weights: Weights) -> NDArray[np.float32]:
    """All values as one new float32 vector, in order; empty for no tensors."""
    if not weights:
        return np.zeros(0, np.float32)
    return np.concatenate([array.ravel() for array in weights.values()]).astype(np.float32)


def unflatten(vector: NDArray[np.float32], like: Weights) -> Weights:
    """The inverse of `flatten`: a copy of `vector`, cut into the names and shapes of `like`.

    Raises:
        RoundError: `vector` has another length than `like` has values.
    """
    sizes = [array.size for array in like.values()]
    if vector.shape != (sum(sizes),):
        raise RoundError(
            f"a vector has shape {vector.shape}, the model has {sum(sizes)} values",
            hint="every party must run the same study with the same version",
        )
    parts = np.split(vector.astype(np.float32), np.cumsum(sizes)[:-1]) if sizes else []
    return {
        name: part.reshape(like[name].shape).copy() for name, part in zip(like, parts, strict=True)
    }


def norm(weights: Weights) -> float:
    """Euclidean norm over all values, summed in float64; 0 for no values, NaN if one is NaN."""
    return math.sqrt(_dot(weights, weights))


def difference(after: Weights, before: Weights) -> Weights:
    """`after - before`, tensor by tensor: the update.

    Raises:
        RoundError: the two do not have the same names, types and shapes.
    """
    _check_layout(after, before)
    with np.errstate(all="ignore"):  # an overflow becomes infinite, and `check_weights` says so
        return {name: np.asarray(after[name] - before[name], np.float32) for name in after}


def cosine(a: Weights, b: Weights) -> float:
    """Cosine of the angle between two updates, in [-1, 1]; 0 if either is zero, NaN if one is NaN.

    Raises:
        RoundError: the two do not have the same names, types and shapes.
    """
    _check_layout(a, b)
    lengths = norm(a) * norm(b)
    if lengths == 0.0:
        return 0.0  # no direction: neither agreement nor contradiction
    return float(np.clip(_dot(a, b) / lengths, -1.0, 1.0))


def _dot(a: Weights, b: Weights) -> float:
    # float64: squares of float32 values neither overflow nor vanish there.
    return float(sum(np.vdot(a[name].astype(np.float64), b[name].astype(np.float64)) for name in a))


def to_safetensors(weights: Weights) -> bytes:
    """Pack as safetensors; the same weights give the same bytes."""
    return b"".join(safetensors_pieces(weights))


def safetensors_pieces(weights: Weights) -> Iterator[bytes | memoryview]:
    """The same piece by piece, so that no second model is held.

    The format sorts tensors by name, so their order travels in its metadata.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    return tensor_file.pieces(arrays, {_ORDER: json.dumps(list(weights))})


def from_safetensors(data: bytes) -> Weights:
    """Unpack what `to_safetensors` packed, as writable arrays.

    Raises:
        ModelError: the bytes are not safetensors, or hold something else than float32.
    """
    try:
        arrays = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged("are damaged") from error
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise _damaged(f"hold {array.dtype} values in {name}, not float32")
    order = _stored_order(data, list(arrays))
    return {name: np.array(arrays[name], np.float32) for name in order}


def _stored_order(data: bytes, names: list[str]) -> list[str]:
    # `load` has checked the header; it only does not hand out the metadata.
    length = int.from_bytes(data[:_HEADER], "little")
    header = json.loads(data[_HEADER : _HEADER + length])
    stored = header.get("__metadata__", {}).get(_ORDER)
    if stored is None:
        return names
    try:
        order = json.loads(stored)
    except ValueError as error:
        raise _damaged("are damaged") from error
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
        raise _damaged("are damaged")
    return [str(name) for name in order]


def _damaged(what: str) -> ModelError:
    return ModelError(f"the weights {what}", hint="get a new copy of the model")
