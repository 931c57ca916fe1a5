"""A site's features column by column, in the public units of `layout`; images a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import DataError
from fedward.common.preprocess.layout import Layout
from fedward.common.table import MISSING, Features, FeatureTable, ImageStack

Vector = NDArray[np.float64]
_PIXELS_AT_ONCE = 4_000_000
"""Pixel values read from a stack at a time: 12 MB with their squares."""


@dataclass(frozen=True)
class Column:
    """One column in public units, `[rows]` each; all 0 where the value is absent."""

    present: Vector
    value: Vector
    square: Vector


def columns(sums: Layout, features: Features, *, clip: bool = False) -> Iterator[Column | None]:
    """The columns one after another, None where the study does not need it.

    Args:
        sums: says which columns, and their public units.
        features: the site's rows.
        clip: bring values into the public bounds, infinite ones too.

    Raises:
        DataError: a value is missing in a feature that refuses that, or infinite.
    """
    if isinstance(features, ImageStack):
        yield from _channels(sums, features)
        return
    for index in range(len(sums.names)):
        yield _column(sums, index, features.numeric[:, index], clip) if sums.wanted[index] else None


def _column(sums: Layout, index: int, values: NDArray[np.float32], clip: bool) -> Column:
    absent = np.isnan(values)
    if not sums.may_miss[index] and absent.any():
        raise DataError(
            f"feature {sums.names[index]} lacks a value that the study demands",
            hint='fill it at the source, or set missing = "impute" or "indicator" in the study',
        )
    z = (values.astype(np.float64) - sums.centre[index]) / sums.half[index]
    if clip:
        z = np.clip(z, -1.0, 1.0)
    elif np.isinf(z).any():
        raise DataError(
            f"feature {sums.names[index]} has an infinite value",
            hint="remove it at the source, or give the feature min and max in the study",
        )
    z[absent] = 0.0
    return Column((~absent).astype(np.float64), z, z**2)


def _channels(sums: Layout, stack: ImageStack) -> Iterator[Column | None]:
    """Per image the mean over its pixels of z and z², where z = 2·pixel/255 - 1."""
    if not sums.wanted.any():
        yield from (None for _ in sums.names)
        return
    height, width, channels = stack.pixels.shape[1:]
    mean, square = np.zeros((2, len(stack), channels))
    step = max(1, _PIXELS_AT_ONCE // (height * width * channels))
    for start in range(0, len(stack), step):
        pixels = stack.pixels[stack.rows[start : start + step]]
        # Exact in integers: 255² fits 16 bits.
        mean[start : start + step] = pixels.sum(axis=(1, 2), dtype=np.uint64)
        squares = np.square(pixels, dtype=np.uint16)
        square[start : start + step] = squares.sum(axis=(1, 2), dtype=np.uint64)
    mean /= height * width * 255.0
    square /= height * width * 255.0**2
    for index in range(channels):
        x, x2 = mean[:, index], square[:, index]
        yield Column(np.ones(len(stack)), 2 * x - 1, 4 * x2 - 4 * x + 1)


def one_hots(sums: Layout, features: Features) -> Iterator[Vector]:
    """For each wanted level, 1 in the rows that have it."""
    if not isinstance(features, FeatureTable):
        return
    for index, (listed, wanted) in enumerate(zip(sums.categories, sums.wanted_levels, strict=True)):
        names = features.levels[index]
        lookup = np.array([*(_place(listed, name) for name in names), MISSING], dtype=np.int64)
        found = lookup[features.codes[:, index]]
        if wanted:
            yield from ((found == level).astype(np.float64) for level in range(len(listed)))


def _place(listed: tuple[str, ...], name: str) -> int:
    return listed.index(name) if name in listed else MISSING


def check_features(sums: Layout, features: Features) -> None:
    """Raise DataError unless the features have the columns of the study."""
    if isinstance(features, ImageStack):
        fits = features.pixels.shape[3] == len(sums.names)
    else:
        numeric, codes = features.numeric.shape[1], features.codes.shape[1]
        fits = (numeric, codes) == (len(sums.names), len(sums.categories))
    if not fits:
        raise DataError("the data are not those of the study", hint="load them with the study")
