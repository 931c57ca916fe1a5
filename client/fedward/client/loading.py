"""From a study and a `site.toml` to the cohort: opened, cleaned, checked, divided.

Nothing of a patient is in any message: no value, no identifier, no count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.client.division import Division, divide
from fedward.client.examination import (
    PATIENT,
    TARGET,
    Examination,
    compared_columns,
    examine,
    extra_name,
    feature_name,
    missing_columns,
)
from fedward.client.identities import hash_column, hash_patients
from fedward.client.refusals import row_problems, split_problems
from fedward.client.site_config import SiteConfig
from fedward.client.sources import ROW, Source, open_source
from fedward.common.errors import DataError
from fedward.common.study import Study
from fedward.common.table import Features, FeatureTable


def load_cohort(
    study: Study,
    config: SiteConfig,
    *,
    key: bytes,
    keep: Sequence[str] = (),
    cache: Path | None = None,
    identify: bool = False,
) -> Cohort:
    """Load the patients of a site who match a study.

    Args:
        study: the protocol: schema, cleaning, share of patients kept for testing.
        config: the site's file.
        key: secret of the site; decides by hash which patients are kept for testing, unless the
            data say it themselves.
        keep: local columns to carry along in `Cohort.extra`, for a simulation to divide sites by.
        cache: folder in which prepared pictures are kept for the next time; None keeps nothing.
        identify: say in `Cohort.identity` who the patients are, by keyed hash; a simulation does
            not need it.

    Raises:
        SiteConfigError: the site's file does not fit the study.
        DataError: the data cannot be used as the study demands; the message is the first thing
            wrong, `fedward client check-data` lists all.
    """
    config.check_fit(study)
    source = open_source(study, config, cache=cache)
    _raise_first(missing_columns(study, config, source, keep))
    found = examine(study, config, source, keep)
    _raise_first(row_problems(study, config, source, found))
    frame = without_duplicates(study, found)
    division = divide(study, config, source, frame, key)
    _raise_first(split_problems(study, frame, division))
    cohort = _cohort(study, config, source, found, frame, division, keep)
    return _identified(cohort, config, frame, key) if identify else cohort


def _raise_first(problems: list[DataError]) -> None:
    if problems:
        raise problems[0]


def without_duplicates(study: Study, found: Examination) -> pl.DataFrame:
    """The cleaned rows, without exact duplicates of the same patient if the study drops them."""
    if study.data.duplicates != "drop" or not found.duplicates:
        return found.frame
    columns = compared_columns(found.frame)
    return found.frame.unique(subset=columns, keep="first", maintain_order=True)


def _cohort(
    study: Study,
    config: SiteConfig,
    source: Source,
    found: Examination,
    frame: pl.DataFrame,
    division: Division,
    keep: Sequence[str],
) -> Cohort:
    return Cohort(
        site=config.name,
        features=_features(study, source, found, frame),
        target=frame[TARGET].to_numpy().astype(np.float32),
        patient=division.patient,
        test=division.test,
        extra={name: _extra(frame[extra_name(i)]) for i, name in enumerate(keep)},
    )


def _identified(cohort: Cohort, config: SiteConfig, frame: pl.DataFrame, key: bytes) -> Cohort:
    """The cohort with its patients' keyed hashes, if the site's file names an identifier."""
    if config.patients is None or config.patients.column is None:
        return cohort
    names = frame[PATIENT].unique().sort()  # as `divide` numbers them
    identity = hash_patients(names, key)
    return replace(
        cohort, identity=identity, identified_by=hash_column(config.patients.column, key)
    )


def _features(study: Study, source: Source, found: Examination, frame: pl.DataFrame) -> Features:
    image = study.preprocess.image
    if source.pictures is not None and image is not None:
        return source.pictures.stack(frame[ROW].to_numpy().astype(np.int64), image)
    names = {f.name: feature_name(index) for index, f in enumerate(study.data.features)}
    return FeatureTable(
        numeric=_matrix(frame, [names[f.name] for f in study.data.numeric], np.float32),
        codes=_matrix(frame, [names[f.name] for f in study.data.categorical], np.int32),
        levels=found.levels,
    )


def _matrix(frame: pl.DataFrame, names: list[str], kind: type[Any]) -> NDArray[Any]:
    """Columns as one matrix, filled column by column; null becomes NaN."""
    matrix = np.empty((frame.height, len(names)), dtype=kind)
    for index, name in enumerate(names):
        matrix[:, index] = frame[name].to_numpy()
    return matrix


def _extra(column: pl.Series) -> NDArray[Any]:
    """A local column as it is: numbers as float64 (empty: NaN), anything else as text."""
    if column.dtype == pl.String:
        numbers = column.cast(pl.Float64, strict=False)
        if numbers.null_count() > column.null_count():
            return column.fill_null("").to_numpy().astype(np.str_)
        column = numbers
    if not column.dtype.is_numeric():
        return column.cast(pl.String).fill_null("").to_numpy().astype(np.str_)
    return column.cast(pl.Float64).to_numpy()
