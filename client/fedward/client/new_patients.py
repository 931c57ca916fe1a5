"""New patients, without outcomes: read and cleaned by the rules of the study, or refused.

The expressions that clean are those of training (`cleaning.py`), so a row means the same to the
model as it did then. Unlike training, every row counts: duplicates stay, and a refusal says in
which row the trouble is. It never says what stands there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from fedward.client.cleaning import Column, feature_column, level_codes
from fedward.client.site_config import SiteConfig, SiteSection, SourceSection, load_site_config
from fedward.client.sources import ROW
from fedward.client.sources.tables import scan_csv, scan_parquet, text
from fedward.common.errors import DataError
from fedward.common.study.schema import Feature, Study
from fedward.common.table import MISSING, Features, FeatureTable

PATIENT = "patient_id"
"""Column that is carried through to the scores, if the table has it."""
_CSV, _PARQUET = (".csv", ".csv.gz"), (".parquet", ".pq")


@dataclass(frozen=True)
class NewPatients:
    """Rows to score, in the order in which they were read.

    Attributes:
        features: cleaned features, before preprocessing.
        known: what each row can be recognised by, carried through to the scores: by name, such as
            "patient_id" or "file", one text per row.
    """

    features: Features
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)


def read_table(study: Study, path: Path, *, site: Path | None = None) -> NewPatients:
    """Read a CSV (also gzipped) or Parquet table of new patients.

    Args:
        study: the schema. Columns that it does not name are ignored, the outcome too.
        path: the table. It has a column for every feature, and may have `patient_id`.
        site: the hospital's site.toml, if its columns and codes are not those of the study; its
            paths and its row filter are not used.

    Raises:
        DataError: the table cannot be read, has no rows, lacks a column, or a value in it is not
            what the study allows.
        SiteConfigError: `site` is not a site.toml, or does not fit the study.
    """
    config = _config(study, path, site)
    with _readable(path):
        frame = _scan(path, config.source)
        types = dict(frame.collect_schema())
    patient = _patient_column(config, types)
    wanted = [_local(feature, config, types, path.name) for feature in study.data.features]
    columns = [
        feature_column(feature, study, config, types, f"cell {index}")
        for index, feature in enumerate(study.data.features)
    ]
    if patient is not None:
        wanted.append(patient)
    with _readable(path):
        rows = frame.select(list(dict.fromkeys(wanted))).collect()
        rows = rows.with_columns(read for column in columns for read in column.reads)
        _check_rows(study, columns, rows, path.name)
        # with_columns, not select: a column of lists is one null, to be repeated for every row.
        cleaned = [c.value.alias(f"{ROW} {i}") for i, c in enumerate(columns)]
        values = rows.with_columns(cleaned).select(f"{ROW} {i}" for i in range(len(columns)))
        known = {PATIENT: _names(rows, patient, types, config)} if patient is not None else {}
    return NewPatients(_feature_table(study, values), known)


def _config(study: Study, path: Path, site: Path | None) -> SiteConfig:
    if site is None:
        kind: Literal["csv", "parquet"] = "csv"
        if path.name.lower().endswith(_PARQUET):
            kind = "parquet"
        return SiteConfig(
            site=SiteSection(name="new-patients"),
            source=SourceSection(kind=kind, path="given on the command line"),
        )
    config = load_site_config(site)
    config.check_fit(study)
    return config


def _scan(path: Path, source: SourceSection) -> pl.LazyFrame:
    name = path.name.lower()
    if not path.is_file():
        raise DataError(f"there is no file {path.name}", hint="check the path")
    if name.endswith(_PARQUET):
        return scan_parquet(path)
    if name.endswith(_CSV):
        return scan_csv(path, source)
    raise DataError(
        f"{path.name} is not a table that can be read", hint="give a .csv, .csv.gz or .parquet file"
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what polars raises into a refusal, without its text: that may quote data."""
    try:
        yield
    except (PolarsError, OSError):
        raise DataError(
            f"{path.name} cannot be read",
            hint="check that it is not empty, is UTF-8, and has as many cells in every row as in "
            "the first",
        ) from None


def _local(
    feature: Feature, config: SiteConfig, types: Mapping[str, pl.DataType], label: str
) -> str:
    """The table's column of a feature.

    Other columns are quoted only if their name is close: a file without a header line has a
    patient's values there.
    """
    column = str(config.feature(feature.name).column)
    if column in types:
        return column
    close = difflib.get_close_matches(column, types, n=1, cutoff=0.6)
    same = [name for name in types if name.strip().casefold() == column.strip().casefold()]
    found = (same or close)[:1]
    hint = f"did you mean {found[0]}? The names must be the same" if found else "add it"
    raise DataError(f"{label} has no column {column}", hint=hint)


def _patient_column(config: SiteConfig, types: Mapping[str, pl.DataType]) -> str | None:
    if config.patients is not None and config.patients.column in types:
        return config.patients.column
    return PATIENT if PATIENT in types else None


def _names(
    rows: pl.DataFrame, column: str, types: Mapping[str, pl.DataType], config: SiteConfig
) -> tuple[str, ...]:
    cells = rows.select(text(column, types[column], config.source.null_values).alias(PATIENT))
    return tuple(cells[PATIENT].fill_null("").to_list())


def _check_rows(study: Study, columns: list[Column], rows: pl.DataFrame, label: str) -> None:
    if rows.is_empty():
        raise DataError(f"{label} has no rows", hint="give at least one patient")
    for feature, column in zip(study.data.features, columns, strict=True):
        for bad, what, hint in _rules(study, feature, column):
            row = rows.select(_first(bad)).item()
            if row is not None:
                raise DataError(f"{feature.name} {what} in row {row + 1} of {label}", hint=hint)


def _first(bad: pl.Expr) -> pl.Expr:
    """Position of the first true row, null if there is none."""
    flags = bad.fill_null(value=False)
    return pl.when(flags.any()).then(flags.arg_max()).otherwise(None)


def _rules(study: Study, feature: Feature, column: Column) -> Iterator[tuple[pl.Expr, str, str]]:
    """What is not allowed: where, in words, and what to do."""
    counted = "correct it; rows are counted from 1, without the header line"
    kind = "yes or no" if feature.type == "boolean" else "a number"
    yield column.malformed, f"is not {kind}", counted
    yield column.infinite, "is infinite", counted
    if study.data.out_of_range == "refuse":
        low = "any" if feature.min is None else f"{feature.min:g}"
        high = "any" if feature.max is None else f"{feature.max:g}"
        hint = f"the study allows {low} to {high} {feature.unit}".rstrip() + "; check the unit"
        yield column.out_of_range, "is outside the study's bounds", hint
    if study.data.unknown_category == "refuse":
        hint = f"the study knows {', '.join(feature.categories)}"
        yield column.unknown, "is none of the study's categories", hint
    if feature.missing == "refuse":
        yield column.value.is_null(), "has no value that the study accepts", "fill it in"


def _feature_table(study: Study, values: pl.DataFrame) -> FeatureTable:
    place = {feature.name: f"{ROW} {index}" for index, feature in enumerate(study.data.features)}
    numeric = np.empty((values.height, len(study.data.numeric)), np.float32)
    for index, feature in enumerate(study.data.numeric):
        cells = values[place[feature.name]].cast(pl.Float32).fill_null(float("nan"))
        numeric[:, index] = cells.to_numpy()
    codes = np.empty((values.height, len(study.data.categorical)), np.int32)
    levels = []
    for index, feature in enumerate(study.data.categorical):
        column = values[place[feature.name]]
        if feature.categories:
            known, found = feature.categories, column.fill_null(MISSING).cast(pl.Int32)
        else:
            known = tuple(column.drop_nulls().unique().sort().to_list())
            found = column.to_frame("cell").select(level_codes("cell", known))["cell"]
        codes[:, index] = found.to_numpy()
        levels.append(known)
    return FeatureTable(numeric, codes, tuple(levels))
