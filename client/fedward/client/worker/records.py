"""Between a body of the link and a message of Flower: the same three records, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.errors import RoundError
from fedward.common.wire.body import Content


def to_records(content: Content) -> RecordDict:
    """A task's body as Flower hands it to an app; empty records are left out."""
    found = RecordDict()
    if content.config:
        found[records.CONFIG] = ConfigRecord(dict(content.config))
    if content.metrics:
        found[records.METRICS] = MetricRecord(dict(content.metrics))
    if content.arrays:
        found[records.ARRAYS] = ArrayRecord({k: Array(v) for k, v in content.arrays.items()})
    return found


def from_records(found: RecordDict) -> Content:
    """An app's answer as a body.

    Raises:
        RoundError: it has a record that no body has, or a value that does not travel.
    """
    if set(found) - {records.CONFIG, records.METRICS, records.ARRAYS}:
        raise _unfit()
    config = dict(found.config_records.get(records.CONFIG) or {})
    metrics = dict(found.metric_records.get(records.METRICS) or {})
    if not all(isinstance(value, str | int | float | bool) for value in config.values()):
        raise _unfit()
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise _unfit()
    return Content(config, metrics, _arrays(found))  # type: ignore[arg-type]


def _arrays(found: RecordDict) -> dict[str, NDArray[Any]]:
    record = found.array_records.get(records.ARRAYS) or ArrayRecord()
    return {name: np.asarray(array.numpy()) for name, array in record.items()}


def _unfit() -> RoundError:
    return RoundError("an answer holds what no answer has", hint="report this as a defect")
