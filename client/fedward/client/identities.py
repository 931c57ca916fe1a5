"""Who a patient is, in a form that tells nobody who they are: hashes keyed with the site's secret.

The same identifier has the same hash in every study of the site, so that what different studies
cost one patient adds up. Without the key (`identity/patients.key`) a hash cannot be tried out, not
even by who knows all identifiers. Hashes stay at the site all the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedward.common.table import MISSING, Features, FeatureTable

_PATIENT, _COLUMN, _ROWS, _ALIKE = (
    f"fedward {what} v1\0".encode() for what in ("patient", "identifier", "rows", "row")
)
_LEVEL_BYTES = 16


def hash_patients(identifiers: Iterable[str], key: bytes) -> NDArray[np.uint8]:
    """Keyed hashes of identifiers, uint8 `[patients, 32]`."""
    return _matrix(_keyed(key, _PATIENT, identifier.encode()) for identifier in identifiers)


def hash_column(column: str, key: bytes) -> str:
    """Keyed hash of the name of the column that tells patients apart, hexadecimal.

    Identifiers are compared only if they are of the same kind: cohorts identified by different
    columns, or under another key, may have the same patients under other hashes.
    """
    return _keyed(key, _COLUMN, column.encode()).hex()


def hash_rows(
    features: Features, target: NDArray[np.float32], patient: NDArray[np.int64], key: bytes
) -> NDArray[np.uint8]:
    """Keyed hash of all rows of each patient, in whatever order they are; uint8 `[patients, 32]`.

    A row counts as the study reads it: cleaned features, words as words, and the outcome.
    """
    rows: list[list[bytes]] = [[] for _ in range(int(patient.max(initial=-1)) + 1)]
    for whose, digest in zip(patient.tolist(), _row_digests(features, target), strict=True):
        rows[whose].append(digest)
    return _matrix(_keyed(key, _ROWS, b"".join(sorted(own))) for own in rows)


def hash_contents(
    features: Features, target: NDArray[np.float32], patient: NDArray[np.int64], key: bytes
) -> NDArray[np.uint8]:
    """Hashes that stand for patients of one row each who have no identifier: of their rows.

    Equal rows are numbered as they occur.
    """
    digests = _row_digests(features, target)
    seen: dict[bytes, int] = {}
    hashes = []
    for digest in (digests[row] for row in np.argsort(patient, kind="stable").tolist()):
        seen[digest] = seen.get(digest, -1) + 1
        hashes.append(_keyed(key, _ALIKE, digest + seen[digest].to_bytes(8, "big")))
    return _matrix(hashes)


def _keyed(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, purpose + data, hashlib.sha256)


def _matrix(hashes: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 32)


def _row_digests(features: Features, target: NDArray[np.float32]) -> list[bytes]:
    """SHA-256 of each row."""
    last = _canonical(target)[:, None].view(np.uint8)
    if isinstance(features, FeatureTable):
        numeric = features.numeric
        parts = [_canonical(numeric).view(np.uint8)] if numeric.size else []
        rows = np.ascontiguousarray(np.concatenate([*parts, *_levels(features), last], axis=1))
        return [hashlib.sha256(row.tobytes()).digest() for row in rows]
    return [
        hashlib.sha256(features.pixels[place].tobytes() + outcome.tobytes()).digest()
        for place, outcome in zip(features.rows.tolist(), last, strict=True)
    ]


def _canonical(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Little-endian, in which equal values have equal bytes: one NaN for all, and no -0."""
    kept: NDArray[np.float32] = np.ascontiguousarray(
        np.where(np.isnan(values), np.float32(np.nan), values) + np.float32(0), dtype="<f4"
    )
    return kept


def _levels(table: FeatureTable) -> list[NDArray[np.uint8]]:
    """For each categorical feature, what stands for the word of each row, `[rows, bytes]`.

    Codes would not do: which code a word has may depend on the rows of others.
    """
    found = []
    for index, levels in enumerate(table.levels):
        words = [hashlib.sha256(level.encode()).digest()[:_LEVEL_BYTES] for level in levels]
        words.append(bytes(_LEVEL_BYTES))  # of what is missing
        known = np.frombuffer(b"".join(words), dtype=np.uint8).reshape(-1, _LEVEL_BYTES)
        codes = table.codes[:, index]
        found.append(known[np.where(codes == MISSING, len(levels), codes)])
    return found
