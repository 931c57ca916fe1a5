"""A digest of a site's data: does a continued run still have the data it began with?

It is made from what was loaded, not from files: where they lie and how they are named is no matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.common.table import Features, FeatureTable

_CHUNK_BYTES = 1 << 24
"""Pictures may lie on the disk and exceed the memory: so much is read at a time."""


def fingerprint(cohort: Cohort) -> str:
    """SHA-256, in hex, of a cohort: name, features, targets, patients, who is kept for testing.

    The order of rows counts, because batches are drawn by row.
    """
    found = hashlib.sha256(json.dumps(cohort.site).encode())
    for array in (cohort.target, cohort.patient, cohort.test):
        _add(found, array)
    for part in _parts(cohort.features):
        _add(found, part)
    if isinstance(cohort.features, FeatureTable):
        found.update(json.dumps(cohort.features.levels).encode())
    return found.hexdigest()


def _parts(features: Features) -> Iterator[NDArray[Any]]:
    if isinstance(features, FeatureTable):
        yield features.numeric
        yield features.codes
        return
    step = max(1, _CHUNK_BYTES // max(1, int(np.prod(features.pixels.shape[1:]))))
    for start in range(0, len(features), step):
        yield features.pixels[features.rows[start : start + step]]


def _add(found: hashlib._Hash, array: NDArray[Any]) -> None:
    """Add an array so that no other array, or pair of arrays, gives the same bytes."""
    found.update(f"{array.dtype.str} {array.shape};".encode())
    found.update(np.ascontiguousarray(array).data)
