"""Sums over patients that leave a site for preprocessing, how they merge, and how they arrive.

The sum of two sites' statistics is the statistics of their patients together: the server adds them
and never sees a row. Columns are in the public units of `layout`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedward.common.errors import RoundError
from fedward.common.preprocess.layout import Layout, layout
from fedward.common.study.schema import Study

Vector = NDArray[np.float64]
_COLUMNS = ("count", "total", "square")
_MAX_JSON = 1_000_000
"""Characters of level names that a site may send."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Additive sums, in the public units `z` of `layout`.

    Attributes:
        patients: how many patients; noised under differential privacy, and then possibly negative.
            Use `weight`.
        count: float64 `[columns]`, rows with a value (under differential privacy: the sum of
            each patient's share of such rows). A column is a numeric feature or an image channel.
        total: float64 `[columns]`, sum of z: mean of z times `count`.
        square: float64 `[columns]`, sum of z²: mean of z² times `count`.
        levels: for each categorical feature, names of its levels.
        level_counts: for each categorical feature, float64 `[levels]`, rows with that level.
        noise_variance: variance of the Gaussian noise in each sum (public); 0 if there is none:
            then `patients`, `count` and `level_counts` that leave a site are multiples of the
            study's minimum cell.
    """

    patients: float
    count: Vector
    total: Vector
    square: Vector
    levels: tuple[tuple[str, ...], ...]
    level_counts: tuple[Vector, ...]
    noise_variance: float = 0.0

    def __add__(self, other: Statistics) -> Statistics:
        merged = [
            _add_levels(*pair)
            for pair in zip(
                self.levels, self.level_counts, other.levels, other.level_counts, strict=True
            )
        ]
        return Statistics(
            patients=self.patients + other.patients,
            count=self.count + other.count,
            total=self.total + other.total,
            square=self.square + other.square,
            levels=tuple(names for names, _ in merged),
            level_counts=tuple(counts for _, counts in merged),
            noise_variance=self.noise_variance + other.noise_variance,
        )

    @property
    def weight(self) -> float:
        """Number of patients as a weight: at least 1, whatever the noise did."""
        return max(1.0, self.patients)

    @property
    def levels_json(self) -> str:
        """Names of the levels as they cross the wire."""
        return json.dumps(self.levels, ensure_ascii=False)

    def to_arrays(self) -> dict[str, Vector]:
        """Arrays as they cross the wire; `levels_json` goes with them."""
        counts = (np.zeros(0), *self.level_counts)
        return {
            "patients": np.array([self.patients]),
            "noise_variance": np.array([self.noise_variance]),
            "count": self.count,
            "total": self.total,
            "square": self.square,
            "level_counts": np.concatenate(counts),
        }

    @staticmethod
    def from_arrays(study: Study, arrays: Mapping[str, Vector], levels_json: str) -> Statistics:
        """Check what a site sent.

        Args:
            study: says which sums there must be.
            arrays: see `to_arrays`.
            levels_json: see `levels_json`.

        Raises:
            RoundError: an array is missing, has the wrong shape or is not finite; a count is
                negative or not a multiple of the minimum cell (no noise) or the noise is missing
                (private study); levels are not the study's.
        """
        sums = layout(study)
        levels = _check_levels(sums, levels_json)
        cells = [len(names) for names in levels]
        shapes = {name: (len(sums.names),) for name in _COLUMNS}
        shapes |= {"patients": (1,), "noise_variance": (1,), "level_counts": (sum(cells),)}
        checked = {name: _check_array(arrays, name, shape) for name, shape in shapes.items()}
        _check_names(arrays, shapes)
        _check_release(study, checked)
        ends = np.cumsum(cells, dtype=np.int64)
        counts = np.split(checked["level_counts"], ends)[: len(cells)]
        return Statistics(
            patients=float(checked["patients"][0]),
            count=checked["count"],
            total=checked["total"],
            square=checked["square"],
            levels=levels,
            level_counts=tuple(counts),
            noise_variance=float(checked["noise_variance"][0]),
        )


def merge(statistics: Iterable[Statistics]) -> Statistics:
    """Sum over sites.

    Raises:
        RoundError: there is none.
    """
    parts = list(statistics)
    if not parts:
        raise RoundError("no site sent its sums for preprocessing", hint="wait for sites to join")
    return functools.reduce(lambda left, right: left + right, parts)


def _add_levels(
    left: tuple[str, ...], left_counts: Vector, right: tuple[str, ...], right_counts: Vector
) -> tuple[tuple[str, ...], Vector]:
    if left == right:
        return left, left_counts + right_counts
    # Sorted, so that the order in which sites reply does not decide the order of the inputs.
    names = tuple(sorted({*left, *right}))
    counts = dict.fromkeys(names, 0.0)
    for name, count in (
        *zip(left, left_counts, strict=True),
        *zip(right, right_counts, strict=True),
    ):
        counts[name] += float(count)
    return names, np.array([counts[name] for name in names], dtype=np.float64)


def _refuse(problem: str) -> RoundError:
    return RoundError(
        f"sums for preprocessing were refused, {problem}",
        hint="check that the site runs this study with the same version of fedward",
    )


def _check_names(arrays: Mapping[str, Vector], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if arrays.keys() - shapes.keys():
        raise _refuse("they hold an array that the study does not have")


def _check_array(arrays: Mapping[str, Vector], name: str, shape: tuple[int, ...]) -> Vector:
    if name not in arrays:
        raise _refuse(f"{name} is missing")
    array = arrays[name]
    if array.shape != shape or array.dtype != np.float64:
        raise _refuse(f"{name} must be float64 of shape {list(shape)}")
    if not np.isfinite(array).all():
        raise _refuse(f"{name} is not finite")
    return array


def _check_release(study: Study, arrays: Mapping[str, Vector]) -> None:
    noise = float(arrays["noise_variance"][0])
    if study.private:
        if noise <= 0:
            raise _refuse("noise_variance must be positive in a private study")
        return
    if noise != 0:
        raise _refuse("noise_variance must be 0 in a study without differential privacy")
    if (arrays["square"] < 0).any():
        raise _refuse("square is negative")
    smallest = study.evaluation.min_cell
    for name in ("patients", "count", "level_counts"):
        counts = arrays[name]
        if (counts < 0).any():
            raise _refuse(f"{name} is negative")
        if ((counts > 0) & (counts < smallest)).any():
            raise _refuse(f"{name} has a cell below the minimum")
        if (counts % smallest != 0).any():
            raise _refuse(f"{name} is not rounded to whole cells")


def _check_levels(sums: Layout, text: str) -> tuple[tuple[str, ...], ...]:
    if len(text) > _MAX_JSON:
        raise _refuse("levels are too long")
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse("levels are not JSON") from error
    if not isinstance(decoded, list) or len(decoded) != len(sums.categories):
        raise _refuse("levels do not fit the categorical features")
    return tuple(
        _check_names_of(names, listed)
        for names, listed in zip(decoded, sums.categories, strict=True)
    )


def _check_names_of(names: object, listed: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _refuse("levels must be names")
    if len(set(names)) != len(names):
        raise _refuse("levels must differ from each other")
    if listed and tuple(names) != listed:
        raise _refuse("levels must be the study's categories")
    return tuple(names)


def standard_error(statistics: Statistics) -> float:
    """Standard deviation of the noise in each sum; 0 if they are exact."""
    return math.sqrt(statistics.noise_variance)
