"""From `[source]` of a `site.toml` to an opened source."""

from __future__ import annotations

from pathlib import Path

from fedward.client.site_config import SiteConfig
from fedward.client.sources.source import Source
from fedward.client.sources.tables import (
    existing,
    filtered,
    load_sklearn,
    scan_csv,
    scan_parquet,
)
from fedward.common.study import Study


def open_source(study: Study, config: SiteConfig, *, cache: Path | None = None) -> Source:
    """Open what a `site.toml` points to; nothing but headers is read.

    Args:
        study: says what pictures must become.
        config: the site's file.
        cache: folder for prepared pictures; None prepares them in a temporary place.

    Raises:
        DataError: a file is missing or cannot be read.
        SiteConfigError: the filter does not fit the source.
    """
    source = config.source
    if source.kind == "sklearn":
        label, frame = f"data set {source.name}", load_sklearn(str(source.name))
    else:
        path = existing(config, str(source.path))
        label = path.name
        frame = scan_csv(path, source) if source.kind == "csv" else scan_parquet(path)
    target = "target" if source.kind == "sklearn" else None
    return Source(label, filtered(frame, source, label), target=target)
