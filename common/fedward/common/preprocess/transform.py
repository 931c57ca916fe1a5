"""The frozen transform: from a site's cleaned features to what a model takes.

It is a value: JSON in and out without losing a bit, and part of the released model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedward.common.errors import DataError, ModelError
from fedward.common.table import MISSING, FeatureTable

Missing = Literal["impute", "indicator", "refuse"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_UNSEEN = -2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NumericInput(_Frozen):
    """One numeric or boolean feature: `(x - mean) / deviation`, `fill` where x is missing."""

    name: str
    mean: Finite
    deviation: Deviation
    fill: Finite
    missing: Missing


class CategoricalInput(_Frozen):
    """One categorical feature: a 0/1 input for each level.

    `fill` is the position of the level that stands for a missing value, None for all zeros.
    `listed` says whether the study listed the levels; if not, rare levels are unknown here.
    """

    name: str
    levels: Annotated[tuple[str, ...], Field(min_length=1)]
    fill: int | None
    missing: Missing
    listed: bool


class Channel(_Frozen):
    """One channel of an image, for pixels scaled to [0, 1]."""

    mean: Finite
    deviation: Deviation


class Transform(_Frozen):
    """How cleaned features become inputs: numeric, then one-hot levels, then missing indicators.

    Attributes:
        scope: where its values come from: `federated` from sums over sites, `public` from the study
            alone, `site` at least in part from each site's own rows, so that sites differ.
        complete: False while `fit` must still add what comes from the site's own rows.
        numeric: in the order of `DataSection.numeric`.
        categorical: in the order of `DataSection.categorical`.
        channels: of images; empty for tabular data.
    """

    scope: Literal["federated", "public", "site"]
    complete: bool
    numeric: tuple[NumericInput, ...] = ()
    categorical: tuple[CategoricalInput, ...] = ()
    channels: tuple[Channel, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, one for each column of `apply`; of the channels for images."""
        if self.channels:
            return tuple(f"channel {index}" for index in range(len(self.channels)))
        features: tuple[NumericInput | CategoricalInput, ...] = (*self.numeric, *self.categorical)
        return (
            *(feature.name for feature in self.numeric),
            *(f"{f.name}={level}" for f in self.categorical for level in f.levels),
            *(f"{f.name} missing" for f in features if f.missing == "indicator"),
        )

    @property
    def width(self) -> int:
        """Number of inputs; of channels for images."""
        return len(self.names)

    @property
    def image_mean(self) -> NDArray[np.float32]:
        """float32 `[channels]`, for pixels scaled to [0, 1]."""
        self._check_complete()
        return np.array([channel.mean for channel in self.channels], dtype=np.float32)

    @property
    def image_deviation(self) -> NDArray[np.float32]:
        """float32 `[channels]`, for pixels scaled to [0, 1]."""
        self._check_complete()
        return np.array([channel.deviation for channel in self.channels], dtype=np.float32)

    def to_json(self) -> str:
        """The transform as JSON; `from_json` gives an equal one, every float to the last bit."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Transform:
        """Read what `to_json` wrote.

        Raises:
            ModelError: the text is not a transform.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(
                "the preprocessing of the model is damaged",
                hint="get the model again, or write it with this version of fedward",
            ) from error

    def apply(self, table: FeatureTable) -> NDArray[np.float32]:
        """Model inputs, float32 `[rows, width]`, all finite.

        Raises:
            DataError: the table has other columns; a value is missing in a feature that refuses
                missing values, is infinite, or becomes so.
            ModelError: the transform is not complete.
        """
        self._check_complete()
        if (table.numeric.shape[1], table.codes.shape[1]) != (
            len(self.numeric),
            len(self.categorical),
        ):
            raise DataError(
                "the columns are not those of the model's preprocessing",
                hint="give exactly the features of the study",
            )
        inputs = np.zeros((len(table), self.width), dtype=np.float32)
        indicators = iter(range(self._indicator_start, self.width))
        start = len(self.numeric)
        absences = _standardise(self.numeric, table.numeric, inputs[:, :start])
        for index, number in enumerate(self.numeric):
            if number.missing == "indicator":
                inputs[:, next(indicators)] = absences[:, index]
        for index, category in enumerate(self.categorical):
            end = start + len(category.levels)
            codes = table.codes[:, index]
            absent = _one_hot(category, codes, table.levels[index], inputs[:, start:end])
            if category.missing == "indicator":
                inputs[:, next(indicators)] = absent
            start = end
        return inputs

    @property
    def _indicator_start(self) -> int:
        return len(self.numeric) + sum(len(feature.levels) for feature in self.categorical)

    def _check_complete(self) -> None:
        if not self.complete:
            raise ModelError(
                "the preprocessing takes values from each site's own rows and has not got them yet",
                hint="complete it with `fit` and the statistics of the site",
            )


def _standardise(
    features: Sequence[NumericInput], table: NDArray[np.float32], out: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Fill in and standardise all columns at once; says which values were absent."""
    absent = np.isnan(table)
    for index in np.flatnonzero(absent.any(axis=0)).tolist():
        if features[index].missing == "refuse":
            raise _missing(features[index].name)
    fill, mean, deviation = (
        np.array([getattr(feature, name) for feature in features], np.float64)
        for name in ("fill", "mean", "deviation")
    )
    # In float64: a mean of 1e6 leaves float32 with one digit after the point.
    values = np.where(absent, fill, table.astype(np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        out[:] = (values - mean) / deviation
    finite = np.isfinite(out).all(axis=0)
    if not finite.all():
        raise DataError(
            f"feature {features[int(np.argmin(finite))].name} has a value that is not finite "
            "after preprocessing",
            hint="remove infinite values, or give the feature min and max in the study",
        )
    return absent


def _one_hot(
    feature: CategoricalInput,
    codes: NDArray[np.int32],
    levels: tuple[str, ...],
    out: NDArray[np.float32],
) -> NDArray[np.bool_]:
    position = {name: index for index, name in enumerate(feature.levels)}
    # Code MISSING = -1 reads the last entry.
    lookup = np.array([*(position.get(name, _UNSEEN) for name in levels), MISSING], dtype=np.int64)
    found = lookup[codes]
    absent: NDArray[np.bool_] = found < 0
    if feature.missing == "refuse":
        if (found == MISSING).any() or (feature.listed and absent.any()):
            raise _missing(feature.name)
        # What remains are levels too rare for any site to name: none of the known ones.
    elif feature.fill is not None:
        found[absent] = feature.fill
    rows = np.flatnonzero(found >= 0)
    out[rows, found[rows]] = 1.0
    return absent


def _missing(name: str) -> DataError:
    return DataError(
        f"feature {name} lacks a value that the study demands",
        hint='fill it at the source, or set missing = "impute" or "indicator" in the study',
    )
