"""Which sums a study's preprocessing needs, in which public units, how far a patient moves them.

Everything here follows from the study file alone, so it is public and the same at every site. Only
what the transform needs is summed: a study whose values come from public bounds sends nothing.

Values are summed in public units `z = (x - centre) / half`, which map the bounds of a feature to
-1 … 1. That keeps sums accurate when a feature sits far from zero, and makes one noise scale fit
all coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedward.common.study.schema import Feature, Study

DATA = frozenset({"federated", "site"})
"""Sources of preprocessing values that look at patients."""


@dataclass(frozen=True)
class Layout:
    """The sums of one study; a column is a numeric feature, or a channel of an image.

    Attributes:
        names: of the columns.
        centre: float64 `[columns]`, middle of the public bounds; 0 where there are none.
        half: float64 `[columns]`, half the public range; 1 where there are no bounds.
        bounded: bool `[columns]`, whether public bounds are known.
        wanted: bool `[columns]`, whether the column is summed at all.
        may_miss: bool `[columns]`, whether rows may lack a value, so that it has its own count.
        squared: bool `[columns]`, whether squares are summed: where deviations are wanted, but not
            for booleans (`z² = 1` always, so the count says it).
        categories: for each categorical feature, the study's list; empty where sites find them.
        wanted_levels: for each categorical feature, whether its levels are counted.
    """

    names: tuple[str, ...]
    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    bounded: NDArray[np.bool_]
    wanted: NDArray[np.bool_]
    may_miss: NDArray[np.bool_]
    squared: NDArray[np.bool_]
    categories: tuple[tuple[str, ...], ...]
    wanted_levels: tuple[bool, ...]

    @property
    def patient_norm(self) -> float:
        """Largest L2 norm of what one patient can add to the sums.

        One for the patient itself, at most one for each sum of presence, value and square of a
        column (`|z| ≤ 1`), at most one for all levels of a categorical feature together (the mean
        of one-hot rows has an L1, hence an L2 norm of at most 1).
        """
        own = self.wanted & self.may_miss
        coordinates = 1 + self.wanted.sum() + own.sum() + self.squared.sum()
        return math.sqrt(int(coordinates) + sum(self.wanted_levels))


def layout(study: Study, sources: AbstractSet[str] = DATA) -> Layout:
    """The sums that `study` needs for what it takes from `sources` ("federated", "site")."""
    deviations, imputes = _taken(study, sources)
    if study.preprocess.image is not None:
        return _image_layout(study.preprocess.image.channels, wanted=deviations)
    numeric = study.data.numeric
    wanted = [_wants_number(f, deviations, imputes) for f in numeric]
    squared = [deviations and f.type != "boolean" for f in numeric]
    scale = [_scale(feature) for feature in numeric]
    return Layout(
        names=tuple(f.name for f in numeric),
        centre=np.array([centre for centre, _ in scale], dtype=np.float64),
        half=np.array([half for _, half in scale], dtype=np.float64),
        bounded=np.array([f.bounded for f in numeric], dtype=np.bool_),
        wanted=np.array(wanted, dtype=np.bool_),
        may_miss=np.array([f.missing != "refuse" for f in numeric], dtype=np.bool_),
        squared=np.array(squared, dtype=np.bool_),
        categories=tuple(f.categories for f in study.data.categorical),
        wanted_levels=tuple(_wants_levels(f, imputes, sources) for f in study.data.categorical),
    )


def needs_federated(study: Study) -> bool:
    """Whether sites must send sums before training, because the transform is made from them."""
    return _needs(study, "federated")


def needs_site(study: Study) -> bool:
    """Whether each site completes the transform with sums of its own rows."""
    return _needs(study, "site")


def _needs(study: Study, source: str) -> bool:
    """Whether `layout` would want any sum, without making one: every virtual site asks."""
    sources = {source}
    deviations, imputes = _taken(study, sources)
    if study.preprocess.image is not None:
        return deviations
    return any(_wants_number(f, deviations, imputes) for f in study.data.numeric) or any(
        _wants_levels(f, imputes, sources) for f in study.data.categorical
    )


def _taken(study: Study, sources: AbstractSet[str]) -> tuple[bool, bool]:
    """Whether deviations, and what is filled in, come from these sources."""
    return study.preprocess.standardise in sources, study.preprocess.impute in sources


def _wants_number(feature: Feature, deviations: bool, imputes: bool) -> bool:
    return deviations or (imputes and feature.missing != "refuse")


def _wants_levels(feature: Feature, imputes: bool, sources: AbstractSet[str]) -> bool:
    # Every site must build the same inputs, so levels that the study does not list are always found
    # together, even where means come from each site's own rows.
    unlisted = not feature.categories and "federated" in sources
    return unlisted or (imputes and feature.missing != "refuse")


def _scale(feature: Feature) -> tuple[float, float]:
    if feature.type == "boolean":
        return 0.5, 0.5
    if feature.min is None or feature.max is None:
        return 0.0, 1.0
    return (feature.min + feature.max) / 2, (feature.max - feature.min) / 2


def _image_layout(channels: int, *, wanted: bool) -> Layout:
    # Pixels are scaled to [0, 1] before anything else, and no image lacks a pixel.
    every = np.full(channels, wanted, dtype=np.bool_)
    return Layout(
        names=tuple(f"channel {index}" for index in range(channels)),
        centre=np.full(channels, 0.5),
        half=np.full(channels, 0.5),
        bounded=np.ones(channels, dtype=np.bool_),
        wanted=every,
        may_miss=np.zeros(channels, dtype=np.bool_),
        squared=every,
        categories=(),
        wanted_levels=(),
    )
