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
from fedward.common.wire import strict
from fedward.common.wire.digest import remember

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
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 1 << 40


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
        LinkError: something in it may not travel: a dtype, a text that is no text, NaN.
        OutputError: the disk refuses.
    """
    digest = hashlib.sha256()
    size = 0
    header = _header(content)
    try:
        with path.open("wb", buffering=0) as file:
            for piece in _pieces(header, content):
                digest.update(piece)
                size += len(piece)
                while piece:  # a disk that is nearly full takes a part of it
                    piece = piece[file.write(piece) :]
            remember(file.fileno(), digest.digest())
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise output_error(path, error) from error
    return Written(path, digest.digest(), size)


def body_size(content: Content) -> int:
    """Bytes of the file that `write_body` would write."""
    return len(_header(content)) + sum(array.nbytes for array in content.arrays.values())


def _header(content: Content) -> bytes:
    table: dict[str, Any] = {}
    offset = 0
    for name, array in content.arrays.items():
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES or name.startswith("__"):
            raise LinkError(f"array {name} of type {array.dtype} may not travel", hint=_HINT)
        end = offset + array.nbytes
        table[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    try:
        records = {"config": _config(content.config), "metrics": _metrics(content.metrics)}
        text = json.dumps(
            {"__metadata__": {_RECORDS: strict.dumps(records).decode()}, **table},
            separators=(",", ":"),
        ).encode()
        strict.loads(text)
        strict.loads(strict.dumps(records))
    except (TypeError, ValueError) as error:
        raise LinkError("a message holds a value that may not travel", hint=_HINT) from error
    text += b" " * (-len(text) % _LENGTH)
    if len(text) > LARGEST_HEADER or len(table) > MOST_ARRAYS:
        raise LinkError("a message holds too many arrays or texts to travel", hint=_HINT)
    return len(text).to_bytes(_LENGTH, "little") + text


def _pieces(header: bytes, content: Content) -> Iterator[memoryview]:
    yield memoryview(header)
    for array in content.arrays.values():
        # One copy at a time, and none for an array that is little-endian and in C order already.
        plain = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        flat = plain.reshape(-1).view(np.uint8).data
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
            LinkError: the file ends too early, cannot be read, or holds neither true nor false.
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
        if spec.dtype == np.bool_ and result.size and result.view(np.uint8).max() > 1:
            raise _broken("has a truth value that is none")
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
    try:
        size = os.fstat(file).st_size
        length = int.from_bytes(os.pread(file, _LENGTH, 0), "little")
        if size < _LENGTH or length > min(LARGEST_HEADER, size - _LENGTH):
            raise _broken("has no header")
        text = os.pread(file, length, _LENGTH)
    except OSError as error:
        raise LinkError("a message's body cannot be read", hint=_HINT) from error
    try:
        table = dict(strict.loads(text))
        records = strict.loads(table.pop("__metadata__")[_RECORDS].encode())
        config, metrics = _config(records["config"]), _metrics(records["metrics"])
        specs = _specs(table, _LENGTH + length, size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken("has a header that cannot be read") from error
    return config, metrics, specs


def _config(given: Mapping[str, Any]) -> dict[str, Scalar]:
    for key, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise TypeError(key)
    return dict(given)


def _metrics(given: Mapping[str, Any]) -> dict[str, float]:
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
        if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("no shape")
        if math.prod(max(n, 1) for n in shape) > _MOST_ELEMENTS:  # an empty one may not be absurd
            raise ValueError("no shape")
        begin, end = entry["data_offsets"]
        if type(begin) is not int or type(end) is not int:  # 0.0 and false equal 0, too
            raise TypeError("no offsets")
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError("arrays do not follow each other")
        specs[name] = ArraySpec(dtype, shape, start + begin)
        position = end
    if start + position != size:
        raise ValueError("surplus bytes")
    return specs
