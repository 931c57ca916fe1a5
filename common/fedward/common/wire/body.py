"""The body of a task or a reply: arrays, configuration and numbers in one safetensors file.

Anything that reads safetensors can open it; we write and read it ourselves so that neither side
ever holds more of it than a block. What came over the wire is checked before a value is used: no
pickle, no dtype but those of `DTYPES`, no gaps, no overlaps, no surplus bytes.

    >>> import tempfile
    >>> content = Content({"server-round": 3}, {"weight": 1.0}, {"w": np.ones((2, 2), np.float32)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write_body(Path(folder) / "task", content)
    ...     with Body.open(Path(folder) / "task") as body:
    ...         body.config["server-round"], body.specs["w"].shape, float(body.array("w").sum())
    (3, (2, 2), 4.0)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import LinkError
from fedward.common.files import output_error

Scalar = str | int | float | bool

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Element types that may travel, under their names in safetensors."""
LARGEST_HEADER = 4 << 20
MOST_ARRAYS = 20_000
BLOCK = 1 << 20
"""Bytes read or written at a time."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RECORDS = "fedward"
_LENGTH = 8


@dataclass(frozen=True)
class Content:
    """What a body says.

    Attributes:
        config: texts and numbers by key.
        metrics: numbers by key.
        arrays: arrays by name, in order.
    """

    config: Mapping[str, Scalar] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A body on disk.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        size: in bytes.
    """

    path: Path
    sha256: bytes
    size: int


@dataclass(frozen=True)
class ArraySpec:
    """Where an array is in a body.

    Attributes:
        dtype: of its elements.
        shape: as usual.
        start: first byte in the file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def write_body(path: Path, content: Content) -> Written:
    """Write a body file; not fsynced, for a spool that is remade when it is lost.

    Raises:
        LinkError: an array has a dtype that may not travel.
        OutputError: the disk refuses.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("wb", buffering=0) as file:
            for piece in _pieces(content):
                digest.update(piece)
                size += file.write(piece)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise output_error(path, error) from error
    return Written(path, digest.digest(), size)


def _pieces(content: Content) -> Iterator[memoryview]:
    table: dict[str, Any] = {}
    arrays: list[NDArray[Any]] = []
    offset = 0
    for name, array in content.arrays.items():
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES or name.startswith("__"):
            raise LinkError(f"array {name} of type {array.dtype} may not travel", hint=_HINT)
        arrays.append(np.asarray(array, dtype=dtype, order="C"))
        end = offset + array.nbytes
        table[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    records = json.dumps({"config": dict(content.config), "metrics": dict(content.metrics)})
    header = json.dumps({"__metadata__": {_RECORDS: records}, **table}, separators=(",", ":"))
    text = header.encode()
    text += b" " * (-len(text) % _LENGTH)
    yield memoryview(len(text).to_bytes(_LENGTH, "little") + text)
    for array in arrays:
        flat = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), BLOCK):
            yield flat[start : start + BLOCK]


class Body:
    """A body file, open for reading block by block.

    Attributes:
        config: texts and numbers by key.
        metrics: numbers by key.
        specs: arrays by name, in order.
        path: of the file.
    """

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file
        self.config, self.metrics, self.specs = _read_header(file)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open and check a body.

        Raises:
            LinkError: it is missing, or is not a body.
        """
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise LinkError("a message's body cannot be read", hint=_HINT) from error
        try:
            return cls(path, file)
        except BaseException:
            os.close(file)
            raise

    def array(self, name: str) -> NDArray[Any]:
        """A whole array, as a writable copy."""
        spec = self.specs[name]
        return self.block(name, 0, spec.size).reshape(spec.shape)

    def block(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` of the flattened array.

        Raises:
            LinkError: the file ends too early, or cannot be read.
        """
        spec = self.specs[name]
        result = np.empty(stop - start, spec.dtype)
        view = result.view(np.uint8).data
        position = spec.start + start * spec.dtype.itemsize
        while view:
            try:
                count = os.preadv(self._file, [view[: 16 * BLOCK]], position)
            except OSError as error:
                raise LinkError("a message's body cannot be read", hint=_HINT) from error
            if count == 0:
                raise _broken("ends too early")
            view, position = view[count:], position + count
        return result

    def content(self) -> Content:
        """Everything, in memory."""
        return Content(self.config, self.metrics, {name: self.array(name) for name in self.specs})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


_HINT = "check that both sides run the same version of fedward"


def _broken(what: str) -> LinkError:
    return LinkError(f"a message's body {what}", hint=_HINT)


def _read_header(
    file: int,
) -> tuple[dict[str, Scalar], dict[str, float], dict[str, ArraySpec]]:
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, _LENGTH, 0), "little")
    if size < _LENGTH or length > min(LARGEST_HEADER, size - _LENGTH):
        raise _broken("has no header")
    try:
        header = json.loads(os.pread(file, length, _LENGTH), parse_constant=_no_constant)
        table = dict(header)
        records = json.loads(table.pop("__metadata__")[_RECORDS], parse_constant=_no_constant)
        config, metrics = _config(records["config"]), _metrics(records["metrics"])
        specs = _specs(table, _LENGTH + length, size)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise _broken("has a header that cannot be read") from error
    return config, metrics, specs


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _config(given: dict[str, Any]) -> dict[str, Scalar]:
    for key, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise TypeError(key)
    return dict(given)


def _metrics(given: dict[str, Any]) -> dict[str, float]:
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(key)
    return {key: float(value) for key, value in given.items()}


def _specs(table: dict[str, Any], start: int, size: int) -> dict[str, ArraySpec]:
    if len(table) > MOST_ARRAYS:
        raise ValueError("too many arrays")
    specs: dict[str, ArraySpec] = {}
    position = 0
    for name, entry in table.items():
        dtype = DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
            raise ValueError("no shape")
        begin, end = entry["data_offsets"]
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError("arrays do not follow each other")
        specs[name] = ArraySpec(dtype, shape, start + begin)
        position = end
    if start + position != size:
        raise ValueError("surplus bytes")
    return specs
