"""From `[source]` of a `site.toml` to an opened source."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fedward.client.site_config import SiteConfig, SplitSection
from fedward.client.sources.image_folder import FolderPictures
from fedward.client.sources.medmnist import open_archive
from fedward.client.sources.source import Source
from fedward.client.sources.tables import (
    existing,
    filtered,
    load_sklearn,
    refusals,
    scan_csv,
    scan_parquet,
)
from fedward.common.errors import DataError
from fedward.common.study import Study

LARGE_BYTES = 32_000_000
"""Files above this are streamed; see `Source.large`."""
_PUBLISHED = SplitSection(column="split", train=("train", "val"), test=("test",))


def open_source(study: Study, config: SiteConfig, *, cache: Path | None = None) -> Source:
    """Open what a `site.toml` points to; of tables, nothing but headers is read.

    Args:
        study: says what the integer labels of an archive mean.
        config: the site's file.
        cache: folder for prepared pictures; None prepares them in a temporary place.

    Raises:
        DataError: a file is missing or cannot be read.
        SiteConfigError: the filter does not fit the source.
        MissingExtraError: the source needs a package that is not installed.
    """
    source = config.source
    if source.kind == "images":
        return _image_folder(config, cache)
    if source.kind == "medmnist":
        return _archive(study, config, cache)
    if source.kind == "sklearn":
        label = f"data set {source.name}"
        return Source(label, filtered(load_sklearn(str(source.name)), source, label), "target")
    path = existing(config, str(source.path))
    frame = scan_csv(path, source) if source.kind == "csv" else scan_parquet(path)
    table = filtered(frame, source, path.name)
    return Source(path.name, table, large=path.stat().st_size > LARGE_BYTES)


def _image_folder(config: SiteConfig, cache: Path | None) -> Source:
    source = config.source
    folder = existing(config, str(source.path), folder=True)
    path = existing(config, str(source.labels))
    column = source.file or "file"
    table = _labels_table(path, config)
    with refusals(path.name):
        columns = table.collect_schema().names()
    if column not in columns:
        raise DataError(
            f"{path.name} has no column {column}",
            hint="say in [source] file which column has the name of each picture",
        )
    table = filtered(table, source, path.name)
    pictures = FolderPictures(folder, table, column, path.name, cache)
    return Source(path.name, table, pictures=pictures)


def _labels_table(path: Path, config: SiteConfig) -> pl.LazyFrame:
    if path.suffix == ".parquet":
        return scan_parquet(path)
    return scan_csv(path, config.source)


def _archive(study: Study, config: SiteConfig, cache: Path | None) -> Source:
    source = config.source
    path = existing(config, str(source.path))
    subset = source.subset or "all"
    # A value map speaks about the integers themselves, so they must stay as they are.
    mapped = config.target.values is not None or config.target.threshold is not None
    table, pictures = open_archive(path, subset, () if mapped else study.task.labels, cache)
    return Source(
        path.name,
        filtered(table, source, path.name),
        target="label",
        split=_PUBLISHED if subset == "all" else None,
        pictures=pictures,
    )
