"""Between Flower's records and the bodies that travel. What came is read from disk by need.

A body has exactly the records of `common.records`: arrays, configuration, metrics. A `LazyArray`
is a Flower array whose values stay in the body's file until somebody wants them, whole or a block
at a time, so that a reply costs no memory until it is used.
"""

from __future__ import annotations

import io
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import LinkError
from fedward.common.wire.body import Body, Content, Scalar
from fedward.server.arrays import dtype_name, same_array

_STYPE = "numpy.ndarray"
_HINT = "a message holds arrays, texts and numbers only"


class _Shared:
    """An open body, closed when the last array of it is gone."""

    def __init__(self, body: Body) -> None:
        self.body = body
        weakref.finalize(self, body.close)


class LazyArray(Array):
    """An array in a body's file.

    Args:
        source: the body; stays open for as long as one of its arrays is there.
        name: of the array in it.

    Attributes:
        dtype: NumPy's name of the element type.
        shape: as usual.
    """

    def __init__(self, source: _Shared, name: str) -> None:
        spec = source.body.specs[name]
        self.__dict__["_source"] = source
        self.__dict__["_name"] = name
        self.dtype = dtype_name(spec.dtype)
        self.shape = spec.shape
        self.stype = _STYPE

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop` of the flattened array, read now.

        Raises:
            LinkError: the file cannot be read.
        """
        source: _Shared = self.__dict__["_source"]
        return source.body.block(self.__dict__["_name"], start, stop)

    def numpy(self) -> NDArray[Any]:
        """All of it, read now.

        Raises:
            LinkError: the file cannot be read.
        """
        return self.block(0, math.prod(self.shape)).reshape(self.shape)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """An `.npy` file, made anew each time: only Flower's own carriers ask for it."""
        buffer = io.BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and same_array(self, other)

    __hash__ = None  # type: ignore[assignment]  # as of Flower's

    def __repr__(self) -> str:
        return f"LazyArray(dtype={self.dtype!r}, shape={self.shape!r})"


# Flower names an object's class in what it sends; the other side knows only this one.
LazyArray.__qualname__ = "Array"


def content_of(record: RecordDict) -> Content:
    """What a Flower message says, as the content of a body. Arrays are not copied here.

    Raises:
        LinkError: it says something that does not travel.
    """
    allowed = {records.ARRAYS, records.CONFIG, records.METRICS}
    if not set(record) <= allowed:
        raise LinkError("a message has a record that does not travel", hint=_HINT)
    arrays = record.array_records.get(records.ARRAYS)
    config = record.config_records.get(records.CONFIG)
    metrics = record.metric_records.get(records.METRICS)
    if len(record) != sum(found is not None for found in (arrays, config, metrics)):
        raise LinkError("a message has a record under the name of another", hint=_HINT)
    return Content(
        config={key: _scalar(key, value) for key, value in (config or {}).items()},
        metrics={key: _number(key, value) for key, value in (metrics or {}).items()},
        arrays={key: array.numpy() for key, array in (arrays or {}).items()},
    )


def record_of(path: Path) -> RecordDict:
    """What a body says, as the content of a Flower message; its arrays are lazy.

    Raises:
        LinkError: it is no body.
    """
    source = _Shared(Body.open(path))
    arrays = ArrayRecord()  # built item by item: its constructor would serialise every array
    for name in source.body.specs:
        arrays[name] = LazyArray(source, name)
    return RecordDict(
        {
            records.ARRAYS: arrays,
            records.CONFIG: ConfigRecord(dict(source.body.config)),
            records.METRICS: MetricRecord(dict(source.body.metrics)),
        }
    )


def refusal_in(record: RecordDict) -> tuple[int, str] | None:
    """Exit code and reason, if a reply says that the site refuses."""
    config = record.config_records[records.CONFIG]
    code = config.get(records.ERROR_CODE)
    if code is None:
        return None
    reason = config.get(records.ERROR_REASON)
    known = code if isinstance(code, int) and not isinstance(code, bool) else LinkError.exit_code
    return known, reason if isinstance(reason, str) and reason else "gave no reason"


def _scalar(key: str, value: object) -> Scalar:
    if not isinstance(value, str | int | float | bool):
        raise LinkError(f"the setting {key} does not travel", hint=_HINT)
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LinkError(f"the number {key} does not travel", hint=_HINT)
    return float(value)
