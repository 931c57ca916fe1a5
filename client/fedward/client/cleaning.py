"""From local columns to the study's schema, as polars expressions: nothing here loads a row.

Every feature becomes one `Column`: a cleaned value per row and a few yes/no findings per row. The
loader collects the values, the quality report adds up the findings, so that what is refused and
what is reported cannot differ. No expression fails on bad cells: they are found and judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from fedward.client.site_config import SiteConfig
from fedward.client.sources.tables import canonical, is_empty, number, text
from fedward.common.study import Study
from fedward.common.study.schema import Feature
from fedward.common.table import MISSING

_TRUE = ("true", "1", "yes", "t", "y")
_FALSE = ("false", "0", "no", "f", "n")
_NEVER = pl.lit(False)


@dataclass(frozen=True)
class Column:
    """One feature or the target, in two steps: what is read of each cell, and what follows from it.

    Attributes:
        name: name in the study.
        reads: named expressions over the source's table; converting text is what costs time, so it
            is done once. All others are expressions over these names.
        value: cleaned value: float64, or text for a categorical feature without listed categories.
        mapped: value in the study's unit or words before cleaning; what summaries are about.
        missing: the cell is empty.
        malformed: the cell cannot be read as the type demands (text in a numeric column).
        infinite: the number is not finite.
        out_of_range: the number is outside the study's bounds.
        unknown: the value is none of the study's categories or labels.
    """

    name: str
    reads: tuple[pl.Expr, ...]
    value: pl.Expr
    mapped: pl.Expr
    missing: pl.Expr
    malformed: pl.Expr = _NEVER
    infinite: pl.Expr = _NEVER
    out_of_range: pl.Expr = _NEVER
    unknown: pl.Expr = _NEVER


def feature_column(
    feature: Feature,
    study: Study,
    config: SiteConfig,
    types: Mapping[str, pl.DataType],
    key: str,
) -> Column:
    """A feature of the study; see `Column`.

    Args:
        feature: which one.
        study: the protocol it belongs to.
        config: the site's file.
        types: the source's columns, among them the feature's.
        key: prefix of the names that are read, different for every column.
    """
    mapping = config.feature(feature.name)
    column = str(mapping.column)
    values = {old: str(new) for old, new in (mapping.values or {}).items()}
    if feature.type == "boolean":
        values = {old: new.lower() for old, new in values.items()}
        return _boolean(feature.name, *_words(column, types[column], config, values, key))
    if feature.type == "categorical":
        reads, word = _words(column, types[column], config, values, key)
        if not feature.categories:
            return Column(feature.name, reads, word, word, word.is_null())
        return _listed(feature.name, reads, word, feature.categories)
    reads, value, empty = _numbers(column, types[column], config, key)
    if (mapping.scale, mapping.offset) != (1.0, 0.0):
        value = value * mapping.scale + mapping.offset
    limits = (feature.min, feature.max)
    return _numeric(feature.name, reads, value, empty, limits, study.data.out_of_range)


def target_column(
    study: Study, config: SiteConfig, column: str, types: Mapping[str, pl.DataType]
) -> Column:
    """The outcome: class index or regression value; see `Column`."""
    task, kind = study.task, types[column]
    if task.kind != "regression" and config.target.threshold is None:
        reads, word = _words(column, kind, config, config.target.values or {}, "target")
        return _listed(task.target, reads, word, task.labels)
    reads, value, empty = _numbers(column, kind, config, "target")
    if config.target.threshold is None:
        limits = task.bounds or (None, None)
        return _numeric(task.target, reads, value, empty, limits, study.data.out_of_range)
    found = _numeric(task.target, reads, value, empty, (None, None), "refuse")
    cut = (found.value > config.target.threshold).cast(pl.Float64)
    return replace(found, value=cut, mapped=cut)


def _words(
    column: str, kind: pl.DataType, config: SiteConfig, values: Mapping[str, str], key: str
) -> tuple[tuple[pl.Expr, ...], pl.Expr]:
    """What is read of a column of words, and its name; what the map does not name stays."""
    cell = text(column, kind, config.source.null_values)
    if values:
        cell = cell.replace([canonical(v) for v in values], [canonical(v) for v in values.values()])
    return (cell.alias(f"{key} word"),), pl.col(f"{key} word")


def _numbers(
    column: str, kind: pl.DataType, config: SiteConfig, key: str
) -> tuple[tuple[pl.Expr, ...], pl.Expr, pl.Expr]:
    """What is read of a column of numbers: each number, and whether its cell is empty."""
    reads = (
        number(column, kind, config.source).alias(f"{key} number"),
        is_empty(column, kind, config.source).alias(f"{key} empty"),
    )
    return reads, pl.col(f"{key} number"), pl.col(f"{key} empty")


def _boolean(name: str, reads: tuple[pl.Expr, ...], word: pl.Expr) -> Column:
    value = word.str.to_lowercase().replace_strict(
        [*_TRUE, *_FALSE],
        [1.0] * len(_TRUE) + [0.0] * len(_FALSE),
        default=None,
        return_dtype=pl.Float64,
    )
    malformed = word.is_not_null() & value.is_null()
    return Column(name, reads, value, value, word.is_null(), malformed=malformed)


def _listed(name: str, reads: tuple[pl.Expr, ...], word: pl.Expr, words: tuple[str, ...]) -> Column:
    index = _position(word, words)
    unknown = word.is_not_null() & index.is_null()
    return Column(name, reads, index, word, word.is_null(), unknown=unknown)


def _numeric(
    name: str,
    reads: tuple[pl.Expr, ...],
    number: pl.Expr,
    empty: pl.Expr,
    limits: tuple[float | None, float | None],
    out_of_range: str,
) -> Column:
    value = number.fill_nan(None)
    outside = _outside(value, *limits)
    cleaned = value
    if out_of_range == "clip":
        cleaned = value.clip(*limits)
    elif out_of_range == "missing":
        cleaned = pl.when(outside).then(None).otherwise(value)
    return Column(
        name,
        reads,
        cleaned,
        value,
        missing=empty | number.is_nan().fill_null(value=False),
        malformed=~empty & number.is_null(),
        infinite=value.is_infinite().fill_null(value=False),
        out_of_range=outside,
    )


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


def _outside(value: pl.Expr, low: float | None, high: float | None) -> pl.Expr:
    outside = _NEVER
    if low is not None:
        outside = outside | (value < low)
    if high is not None:
        outside = outside | (value > high)
    return outside.fill_null(value=False)
