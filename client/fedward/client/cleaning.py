"""From local columns to the study's schema, as polars expressions: nothing here loads a row.

Every feature becomes one `Column`: a cleaned value per row and a few yes/no findings per row. The
loader collects the values, the quality report adds up the findings, so that what is refused and
what is reported cannot differ. No expression fails on bad cells: they are found and judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from fedward.client.site_config import SiteConfig
from fedward.client.sources.tables import canonical, number, text
from fedward.common.study import Study
from fedward.common.study.schema import DataSection, Feature
from fedward.common.table import MISSING

_TRUE = ("true", "1", "yes", "t", "y")
_FALSE = ("false", "0", "no", "f", "n")


@dataclass(frozen=True)
class Column:
    """One feature or the target, as expressions over the source's table.

    Attributes:
        name: name in the study.
        value: cleaned value: float64, or text for a categorical feature without listed categories.
        mapped: value in the study's unit or words before cleaning; what summaries are about.
        missing: the cell is empty.
        malformed: the cell cannot be read as the type demands (text in a numeric column).
        infinite: the number is not finite.
        out_of_range: the number is outside the study's bounds.
        unknown: the value is none of the study's categories or labels.
    """

    name: str
    value: pl.Expr
    mapped: pl.Expr
    missing: pl.Expr
    malformed: pl.Expr
    infinite: pl.Expr
    out_of_range: pl.Expr
    unknown: pl.Expr


_NEVER = pl.lit(False)


def feature_column(
    feature: Feature, data: DataSection, config: SiteConfig, types: Mapping[str, pl.DataType]
) -> Column:
    """A feature of the study; see `Column`. Its local column must exist in `types`."""
    if feature.type == "numeric":
        return _numeric(feature, data, config, types)
    if feature.type == "boolean":
        return _boolean(feature, config, types)
    return _categorical(feature, config, types)


def target_column(
    study: Study, config: SiteConfig, column: str, types: Mapping[str, pl.DataType]
) -> Column:
    """The outcome: class index or regression value; see `Column`."""
    task, kind = study.task, types[column]
    if task.kind == "regression" or config.target.threshold is not None:
        return _numeric_target(study, config, column, kind)
    cell = text(column, kind, config.source.null_values)
    mapped = _replaced(cell, config.target.values)
    index = _position(mapped, task.labels)
    unknown = mapped.is_not_null() & index.is_null()
    return Column(task.target, index, mapped, cell.is_null(), _NEVER, _NEVER, _NEVER, unknown)


def _numeric_target(study: Study, config: SiteConfig, column: str, kind: pl.DataType) -> Column:
    raw = number(column, kind, config.source)
    absent, malformed = _absent(raw, column, kind, config)
    value = raw.fill_nan(None)
    infinite = value.is_infinite().fill_null(value=False)
    threshold = config.target.threshold
    if threshold is not None:
        cut = (value > threshold).cast(pl.Float64)
        return Column(study.task.target, cut, cut, absent, malformed, infinite, _NEVER, _NEVER)
    low, high = study.task.bounds or (None, None)
    outside = _outside(value, low, high)
    clip = study.data.out_of_range == "clip"
    cleaned = value.clip(low, high) if clip and study.task.bounds else value
    return Column(study.task.target, cleaned, value, absent, malformed, infinite, outside, _NEVER)


def _numeric(
    feature: Feature, data: DataSection, config: SiteConfig, types: Mapping[str, pl.DataType]
) -> Column:
    mapping = config.feature(feature.name)
    column = str(mapping.column)
    raw = number(column, types[column], config.source)
    absent, malformed = _absent(raw, column, types[column], config)
    value = raw.fill_nan(None)
    if (mapping.scale, mapping.offset) != (1.0, 0.0):
        value = value * mapping.scale + mapping.offset
    infinite = value.is_infinite().fill_null(value=False)
    outside = _outside(value, feature.min, feature.max)
    cleaned = value
    if data.out_of_range == "clip":
        cleaned = value.clip(feature.min, feature.max)
    elif data.out_of_range == "missing":
        cleaned = pl.when(outside).then(None).otherwise(value)
    return Column(feature.name, cleaned, value, absent, malformed, infinite, outside, _NEVER)


def _boolean(feature: Feature, config: SiteConfig, types: Mapping[str, pl.DataType]) -> Column:
    mapping = config.feature(feature.name)
    column = str(mapping.column)
    cell = text(column, types[column], config.source.null_values)
    words = {key: str(value).lower() for key, value in (mapping.values or {}).items()}
    word = _replaced(cell, words).str.to_lowercase()
    value = word.replace_strict(
        [*_TRUE, *_FALSE],
        [1.0] * len(_TRUE) + [0.0] * len(_FALSE),
        default=None,
        return_dtype=pl.Float64,
    )
    malformed = word.is_not_null() & value.is_null()
    return Column(feature.name, value, value, cell.is_null(), malformed, _NEVER, _NEVER, _NEVER)


def _categorical(feature: Feature, config: SiteConfig, types: Mapping[str, pl.DataType]) -> Column:
    mapping = config.feature(feature.name)
    column = str(mapping.column)
    cell = text(column, types[column], config.source.null_values)
    mapped = _replaced(cell, {key: str(value) for key, value in (mapping.values or {}).items()})
    if not feature.categories:
        return Column(feature.name, mapped, mapped, cell.is_null(), _NEVER, _NEVER, _NEVER, _NEVER)
    index = _position(mapped, feature.categories)
    unknown = mapped.is_not_null() & index.is_null()
    return Column(feature.name, index, mapped, cell.is_null(), _NEVER, _NEVER, _NEVER, unknown)


def level_codes(column: str, levels: tuple[str, ...]) -> pl.Expr:
    """Codes int32 of a collected categorical column: position among `levels`, or `MISSING`."""
    return _position(pl.col(column), levels).fill_null(MISSING).cast(pl.Int32)


def _position(cell: pl.Expr, words: tuple[str, ...]) -> pl.Expr:
    """Position of each cell among `words` as float64, null where it is none of them."""
    keys = [canonical(word) for word in words]
    places = [float(place) for place in range(len(words))]
    if not keys:
        return pl.lit(None, dtype=pl.Float64)
    return cell.replace_strict(keys, places, default=None, return_dtype=pl.Float64)


def _replaced(cell: pl.Expr, values: Mapping[str, str] | None) -> pl.Expr:
    """Cells with a value map applied; what it does not name stays as it is."""
    if not values:
        return cell
    keys = [canonical(key) for key in values]
    return cell.replace(keys, [canonical(value) for value in values.values()])


def _absent(
    raw: pl.Expr, column: str, kind: pl.DataType, config: SiteConfig
) -> tuple[pl.Expr, pl.Expr]:
    """Which cells are empty, and which are there but are no number."""
    if kind.is_numeric() or kind == pl.Boolean:
        return raw.is_null() | raw.is_nan().fill_null(value=False), _NEVER
    cell = text(column, kind, config.source.null_values)
    absent = cell.is_null() | raw.is_nan().fill_null(value=False)
    return absent, cell.is_not_null() & raw.is_null()


def _outside(value: pl.Expr, low: float | None, high: float | None) -> pl.Expr:
    outside = _NEVER
    if low is not None:
        outside = outside | (value < low)
    if high is not None:
        outside = outside | (value > high)
    return outside.fill_null(value=False)
