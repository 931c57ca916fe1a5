"""What patients are divided by: the values of a column, or a number to sort by."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.common.errors import DataError
from fedward.common.table import FeatureTable, ImageStack

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_IMAGES_AT_ONCE = 256
BRIGHTNESS = "brightness"
"""Column name of `feature-shift` that stands for the mean of an image's pixels."""


def sort_column(cohort: Cohort, column: str, numeric: Sequence[str]) -> Floats:
    """What `feature-shift` sorts by: float64 `[rows]`, NaN where missing.

    Raises:
        DataError: there is no such numeric column.
    """
    features = cohort.features
    if isinstance(features, ImageStack) and column == BRIGHTNESS:
        return _brightness(features)
    if isinstance(features, FeatureTable) and column in numeric:
        return features.numeric[:, list(numeric).index(column)].astype(np.float64)
    if column in cohort.extra and np.issubdtype(cohort.extra[column].dtype, np.number):
        return cohort.extra[column].astype(np.float64)
    raise DataError(
        f"partition kind 'feature-shift' cannot sort by column {column}",
        hint="name a numeric feature of the study, a numeric column of the source, or for images "
        f"'{BRIGHTNESS}'",
    )


def _brightness(stack: ImageStack) -> Floats:
    mean = np.empty(len(stack))
    for start in range(0, len(stack), _IMAGES_AT_ONCE):
        rows = stack.rows[start : start + _IMAGES_AT_ONCE]
        mean[start : start + len(rows)] = stack.pixels[rows].mean(axis=(1, 2, 3))
    return mean


def mean_by_patient(values: Floats, row: Ints, patients: int) -> Floats:
    """Mean over each patient's rows that have a value, NaN where none has: `[patients]`."""
    known = ~np.isnan(values)
    count = np.bincount(row[known], minlength=patients)
    total = np.bincount(row[known], weights=values[known], minlength=patients)
    mean = np.full(patients, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def by_column(cohort: Cohort, column: str) -> tuple[list[str], Ints]:
    """Names of the sites, and the site of each row: int64 `[rows]`.

    Raises:
        DataError: the column is absent, lacks values, or puts a patient at two sites.
    """
    if column not in cohort.extra:
        raise DataError(
            f"partition by column {column}: the source has no such column",
            hint="name a column of the source in [simulation.partition]",
        )
    texts = np.array([_text(value) for value in cohort.extra[column]], dtype=np.str_)
    if (texts == "").any():
        raise DataError(
            f"column {column} lacks values, so some rows have no site",
            hint="fill them, or leave those rows out with the row filter of the source",
        )
    values, assigned = np.unique(texts, return_inverse=True)
    pairs = np.unique(np.stack((cohort.patient, assigned)), axis=1)
    if len(np.unique(pairs[0])) != pairs.shape[1]:
        raise DataError(
            f"column {column} puts a patient at two sites",
            hint="divide by a column that is the same for all rows of a patient",
        )
    return _slugs(values.tolist()), assigned


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value).strip()


def _slugs(values: list[str]) -> list[str]:
    """Short unique names that are safe in file names and logs."""
    names: dict[str, None] = {}
    for value in values:
        plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:56].rstrip("-_") or "site"
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names[name] = None
    return list(names)
