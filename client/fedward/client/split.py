"""Who is kept for testing: patients, never rows, chosen by a keyed hash.

The same patient falls on the same side at any time, in any order of rows and whoever else is there,
and nobody without the key can tell which side that is. A patient with an identifier does so in
every study that uses the same key. Where each row is a patient of their own, the identifier is the
row's content (see `content`), so the side is the same in studies that read the same of the row.

    >>> assign_test(["a", "b", "c", "d"], holdout=0.5, key=b"key").tolist()
    [True, False, True, False]
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def assign_test(ids: Iterable[str], holdout: float, key: bytes) -> NDArray[np.bool_]:
    """Choose the patients that are kept for testing.

    A patient is chosen if HMAC-SHA256(key, id), read as a number in [0, 1), is below `holdout`. So
    the share of chosen patients is `holdout` on average, not exactly.

    Args:
        ids: one identifier per patient.
        holdout: share of patients to keep, 0 < holdout < 1.
        key: the site's secret.

    Returns:
        bool `[patients]`, in the order of `ids`.
    """
    limit = int(math.ldexp(holdout, 256))  # exact: scaling by a power of two loses nothing
    chosen = (
        int.from_bytes(hmac.digest(key, patient.encode(), hashlib.sha256)) < limit
        for patient in ids
    )
    return np.fromiter(chosen, dtype=np.bool_)
