"""What a site's rows are like under a study: the cleaned table, and everything found on the way.

One streaming pass adds up the findings, a second one collects the cleaned values; neither holds the
raw table in memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from fedward.client.cleaning import Column, feature_column, level_codes, target_column
from fedward.client.content import with_identities
from fedward.client.site_config import SiteConfig
from fedward.client.sources import ROW, Pictures, Source
from fedward.client.sources.tables import identifier, refusals, text
from fedward.common.errors import DataError
from fedward.common.study import Study
from fedward.common.table import MISSING

SHOWN = 10
"""How many unknown values a site is shown, so that it can map them."""

PATIENT, SPLIT, TARGET = "patient", "split", "target"
"""Columns of the cleaned table, besides `ROW` and those named by `feature_name`, `extra_name`."""


@dataclass(frozen=True)
class ColumnFindings:
    """What was found in one column, in rows.

    Attributes:
        name: name in the study.
        kind: type in the study.
        missing: empty cells.
        malformed: cells that cannot be read as the type demands.
        infinite: numbers that are not finite.
        out_of_range: numbers outside the study's bounds.
        unknown: values that are none of the study's categories or labels.
        minimum: smallest finite number before cleaning, in the study's unit.
        mean: mean of the finite numbers.
        maximum: largest finite number.
        unknown_values: the first of the unknown values; they never leave the site.
    """

    name: str
    kind: str
    missing: int
    malformed: int
    infinite: int
    out_of_range: int
    unknown: int
    minimum: float | None
    mean: float | None
    maximum: float | None
    unknown_values: tuple[str, ...]


@dataclass(frozen=True)
class Examination:
    """A site's rows under a study.

    Attributes:
        rows: rows that meet the site's filter.
        features: findings per feature, in study order.
        target: findings about the outcome.
        duplicates: rows that repeat an earlier row of the same patient in all features and outcome.
        without_patient: rows whose patient identifier is empty.
        levels: what the codes of each categorical feature stand for.
        frame: cleaned values of all rows, with float32 numbers and int32 codes; rows are in the
            order of the source.
    """

    rows: int
    features: tuple[ColumnFindings, ...]
    target: ColumnFindings
    duplicates: int
    without_patient: int
    levels: tuple[tuple[str, ...], ...]
    frame: pl.DataFrame


def feature_name(index: int) -> str:
    """Column of the cleaned table that holds the study's feature `index`."""
    return f"feature {index}"


def extra_name(index: int) -> str:
    """Column of the cleaned table that holds the `index`-th column to keep."""
    return f"extra {index}"


def target_name(study: Study, config: SiteConfig, source: Source) -> str:
    """Local column of the outcome."""
    return config.target.column or source.target or study.task.target


def missing_columns(
    study: Study, config: SiteConfig, source: Source, keep: Sequence[str] = ()
) -> list[DataError]:
    """One refusal for each local column that the site.toml or the study names but is not there.

    Only names of columns are quoted, and only those close to the one that is missing: a file
    without a header line has a patient's values where names should be.
    """
    with refusals(source.label):
        known = source.columns()
    wanted = [
        (str(config.feature(f.name).column), f"[features.{f.name}]") for f in study.data.features
    ]
    wanted.append((target_name(study, config, source), "[target]"))
    if config.patients is not None and config.patients.column is not None:
        wanted.append((config.patients.column, "[patients]"))
    if config.split is not None:
        wanted.append((config.split.column, "[split]"))
    wanted.extend((name, "column") for name in keep)
    return [
        _missing_column(name, place, source.label, list(known))
        for name, place in wanted
        if name not in known
    ]


def _missing_column(name: str, place: str, label: str, known: list[str]) -> DataError:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    where = "check its name" if place == "column" else f"set {place} column in site.toml"
    hint = f"did you mean {' or '.join(close)}? If so, {where}" if close else where
    return DataError(
        f"{label} has no column {name}",
        hint=f"{hint}; a file without a header line needs [source] columns",
    )


def examine(
    study: Study, config: SiteConfig, source: Source, keep: Sequence[str] = ()
) -> Examination:
    """Find out everything about a site's rows; refuse nothing.

    All columns must be there: see `missing_columns`.

    Raises:
        DataError: the source cannot be read.
    """
    types = source.columns()
    features = [
        feature_column(feature, study, config, types, feature_name(index))
        for index, feature in enumerate(study.data.features)
    ]
    target = target_column(study, config, target_name(study, config, source), types)
    columns = [*features, target]
    kinds = [*(f.type for f in study.data.features), study.task.kind]
    carried = _carried(config, source, keep)
    reads = [expression for column in columns for expression in column.reads]
    table = source.table.select([*carried, *reads])
    names = [expression.meta.output_name() for expression in carried]
    with refusals(source.label):
        rows, found = _findings(source, table, columns, kinds)
        values = _values(study, features, target)
        frame = source.collect(table.select([*names, *values]))
    if not _several_rows(config) and SPLIT not in frame.columns:
        # Before words become codes: which code a word has depends on other rows.
        columns_read = [name for name in compared_columns(frame) if name != PATIENT]
        frame = with_identities(frame, columns_read, source.pictures)
    frame, levels = _coded(study, frame)
    if _several_rows(config) and source.pictures is not None:
        frame = _with_digests(frame, source.pictures)
    return Examination(
        rows=rows,
        features=tuple(found[:-1]),
        target=found[-1],
        duplicates=_count_duplicates(frame, config),
        without_patient=frame[PATIENT].null_count(),
        levels=levels,
        frame=frame,
    )


def _findings(
    source: Source, table: pl.LazyFrame, columns: list[Column], kinds: Sequence[str]
) -> tuple[int, list[ColumnFindings]]:
    """Number of rows, and the findings per column."""
    parts: list[pl.Expr] = [pl.len().alias("rows")]
    for index, column in enumerate(columns):
        parts += [
            getattr(column, name).sum().cast(pl.Int64).alias(f"{index} {name}")
            for name in ("missing", "malformed", "infinite", "out_of_range", "unknown")
        ]
        if kinds[index] in ("numeric", "boolean", "regression"):
            finite = pl.when(column.infinite).then(None).otherwise(column.mapped)
            parts += [
                finite.min().alias(f"{index} minimum"),
                finite.mean().alias(f"{index} mean"),
                finite.max().alias(f"{index} maximum"),
            ]
        else:
            unknown = column.mapped.filter(column.unknown).unique().sort().head(SHOWN)
            parts.append(unknown.implode().alias(f"{index} unknown_values"))
    row = source.collect(table.select(parts)).row(0, named=True)
    found = [_of_row(row, i, column, kinds[i]) for i, column in enumerate(columns)]
    return int(row["rows"]), found


def _of_row(row: dict[str, Any], index: int, column: Column, kind: str) -> ColumnFindings:
    def count(name: str) -> int:
        return int(row[f"{index} {name}"] or 0)

    return ColumnFindings(
        name=column.name,
        kind=kind,
        missing=count("missing"),
        malformed=count("malformed"),
        infinite=count("infinite"),
        out_of_range=count("out_of_range"),
        unknown=count("unknown"),
        minimum=row.get(f"{index} minimum"),
        mean=row.get(f"{index} mean"),
        maximum=row.get(f"{index} maximum"),
        unknown_values=tuple(row.get(f"{index} unknown_values") or ()),
    )


def _carried(config: SiteConfig, source: Source, keep: Sequence[str]) -> list[pl.Expr]:
    """What is taken along unjudged: row, patient, published side, columns to keep."""
    types, nulls = source.columns(), config.source.null_values
    patient = pl.col(ROW).cast(pl.String)
    if config.patients is not None and config.patients.column is not None:
        column = config.patients.column
        patient = identifier(column, types[column], nulls)
    parts = [pl.col(ROW), patient.alias(PATIENT)]
    split = config.split or source.split
    if split is not None:
        parts.append(text(split.column, types[split.column], nulls).alias(SPLIT))
    for index, name in enumerate(keep):
        kept = text(name, types[name], nulls) if types[name] == pl.String else pl.col(name)
        parts.append(kept.alias(extra_name(index)))
    return parts


def _values(study: Study, features: list[Column], target: Column) -> list[pl.Expr]:
    """The cleaned values: float32 numbers, int32 codes, text where codes are not known yet."""
    parts = [target.value.cast(pl.Float32).alias(TARGET)]
    for index, (feature, column) in enumerate(zip(study.data.features, features, strict=True)):
        value = column.value
        if feature.type != "categorical":
            value = value.cast(pl.Float32)
        elif feature.categories:
            value = value.fill_null(MISSING).cast(pl.Int32)
        parts.append(value.alias(feature_name(index)))
    return parts


def _coded(study: Study, frame: pl.DataFrame) -> tuple[pl.DataFrame, tuple[tuple[str, ...], ...]]:
    """Code the categorical features whose categories come from the data: sorted, as they occur."""
    levels: list[tuple[str, ...]] = []
    for index, feature in enumerate(study.data.features):
        if feature.type != "categorical":
            continue
        name = feature_name(index)
        if feature.categories:
            levels.append(feature.categories)
            continue
        levels.append(tuple(frame[name].drop_nulls().unique().sort().to_list()))
        frame = frame.with_columns(level_codes(name, levels[-1]).alias(name))
    return frame, tuple(levels)


def _several_rows(config: SiteConfig) -> bool:
    """Whether a patient can have more than one row."""
    return config.patients is not None and config.patients.column is not None


def _with_digests(frame: pl.DataFrame, pictures: Pictures) -> pl.DataFrame:
    """Add what pictures are compared by, where patient and outcome alone do not tell them apart."""
    alike = frame.select([PATIENT, TARGET]).is_duplicated()
    digests = frame[ROW].cast(pl.String).to_list()
    places = np.flatnonzero(alike.to_numpy())
    rows = frame[ROW].to_numpy()[places].astype(np.int64)
    for place, digest in zip(places.tolist(), pictures.digests(rows), strict=True):
        digests[place] = digest
    return frame.with_columns(pl.Series(feature_name(0), digests))


def compared_columns(frame: pl.DataFrame) -> list[str]:
    """Columns in which duplicates agree: patient, outcome and features."""
    return [n for n in frame.columns if n in (PATIENT, TARGET) or n.startswith("feature ")]


def _count_duplicates(frame: pl.DataFrame, config: SiteConfig) -> int:
    if not _several_rows(config) or frame.is_empty():
        return 0
    return frame.height - frame.select(compared_columns(frame)).n_unique()
