"""Safetensors files that are written and read piece by piece.

Its library copies the model twice to write it, and maps the whole file to read it: on a server that
holds a model of hundreds of megabytes twice already, that is the largest moment of a run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTH = 8
_ALIGNED = 8
_LARGEST_HEADER = 100_000_000  # as of the library
_PIECE = 16 << 20
_DTYPES = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}


def pieces(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """A file, piece by piece; nothing is copied.

    The widest types come first, so that every value is where its type demands.

    Args:
        tensors: by name; little-endian and in C order.
        metadata: texts.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    arrays = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    end = 0
    for name, value in arrays.items():
        start, end = end, end + value.nbytes
        kind = f"{value.dtype.kind.upper()}{8 * value.itemsize}"
        shape = list(value.shape)
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    yield len(header).to_bytes(_LENGTH, "little") + header
    for value in arrays.values():
        yield value.reshape(-1).view(np.uint8).data


def read(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a file; each tensor is read once, into its place.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError, AttributeError: it is not such a file, or not all of it.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > min(size, _LARGEST_HEADER):
            raise ValueError("no header")
        table = json.loads(file.read(length).decode())
        metadata = table.pop("__metadata__")
        found: dict[str, NDArray[Any]] = {}
        at = _LENGTH + length
        for name, entry in sorted(table.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            start, stop = (_LENGTH + length + offset for offset in entry["data_offsets"])
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            fits = start == at and stop - start == math.prod(shape) * dtype.itemsize
            if not fits or stop > size or min(shape, default=0) < 0:
                raise ValueError("tensors do not follow each other")
            found[name], at = np.empty(shape, dtype), stop
            _fill(file, found[name])
        if at != size:
            raise ValueError("surplus bytes")
        return metadata, found


def _fill(file: FileIO, value: NDArray[Any]) -> None:
    view = value.reshape(-1).view(np.uint8).data
    while view:
        count = file.readinto(view[:_PIECE])
        if not count:
            raise ValueError("ends too early")
        view = view[count:]
