"""Who a row is where no column says so: its content.

Where each row is a patient of their own, the row's place in the file says nothing about the
patient: one patient more or less would move all that follow. So a row is known by what the study
reads of it. Rows that are alike in all of that are numbered as they occur: one of them more or less
moves no other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.sources import ROW, Pictures

IDENTITY = "identity"
"""Column of the cleaned table by which patients without an identifier are divided."""

_ROWS_AT_ONCE = 65_536
"""Rows that are looked at together, so that a wide table is not copied whole."""


def with_identities(
    frame: pl.DataFrame, columns: list[str], pictures: Pictures | None = None
) -> pl.DataFrame:
    """Add `IDENTITY`: for each row a text of its own that follows from the row's content alone.

    It is a hash over the values of a row, not over codes that follow from other rows, and the
    number of equal rows before it. It does not depend on the version of any library: numbers count
    as float64 of IEEE 754, words as UTF-8.

    Args:
        frame: cleaned rows, numbers as numbers and words that are not coded yet as text.
        columns: those that count.
        pictures: of the rows, if there are any; their digests count too.
    """
    seen: Counter[bytes] = Counter()
    identities = []
    for start in range(0, frame.height, _ROWS_AT_ONCE):
        for content in _contents(frame.slice(start, _ROWS_AT_ONCE), columns, pictures):
            digest = hashlib.sha256(content).digest()
            identities.append(f"{digest.hex()} {seen[digest]}")
            seen[digest] += 1
    return frame.with_columns(pl.Series(IDENTITY, identities, dtype=pl.String))


def _contents(
    frame: pl.DataFrame, columns: list[str], pictures: Pictures | None
) -> Iterator[bytes]:
    """The content of each row as bytes: equal if and only if the rows are alike."""
    words = [frame[name].to_list() for name in columns if frame[name].dtype == pl.String]
    if pictures is not None:
        words.append(pictures.digests(frame[ROW].to_numpy().astype(np.int64)))
    numbers = _numbers(frame, [name for name in columns if frame[name].dtype != pl.String])
    texts = zip(*words, strict=True) if words else (() for _ in range(frame.height))
    for number, text in zip(numbers, texts, strict=True):
        # Numbers take the same space in every row, so that no two contents run into each other.
        yield number.tobytes() + json.dumps(text).encode()


def _numbers(frame: pl.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """Float64 `[rows, columns]`, little-endian, in which equal values have equal bytes."""
    matrix = np.empty((frame.height, len(names)), dtype="<f8")
    for index, name in enumerate(names):
        matrix[:, index] = frame[name].cast(pl.Float64).to_numpy()
    matrix[np.isnan(matrix)] = np.nan  # one of the many, for all
    return matrix + 0.0  # no -0
