"""Tables on disk as lazy frames: CSV (also gzipped), Parquet, and scikit-learn's example data.

Cells of a CSV file are read as text and converted later, under the study's types: so `007` stays a
patient identifier, and text in a numeric column is found instead of changing the column's type.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from fedward.client.site_config import SiteConfig, SourceSection
from fedward.client.sources.source import ROW
from fedward.common.errors import DataError, MissingExtraError, SiteConfigError

_INTEGER_VALUED = r"^([+-]?\d+)\.0+$"


@contextmanager
def refusals(label: str) -> Iterator[None]:
    """Turn what polars raises into a `DataError`, without its text: that may quote data."""
    try:
        yield
    except (PolarsError, OSError, UnicodeDecodeError):
        raise DataError(
            f"{label} cannot be read",
            hint="check that it is not empty, is UTF-8, has as many cells in every row as in the "
            "first, and fits [source] kind and separator",
        ) from None


def existing(config: SiteConfig, path: str, *, folder: bool = False) -> Path:
    """The path of a file or folder that is there.

    Raises:
        DataError: it is not.
    """
    found = config.locate(path)
    if not (found.is_dir() if folder else found.is_file()):
        word = "folder" if folder else "file"
        raise DataError(
            f"the data {word} {found.name} does not exist",
            hint="check [source] in site.toml; paths there are relative to that file",
        )
    return found


def scan_csv(path: Path, source: SourceSection) -> pl.LazyFrame:
    """A CSV file, every cell as text."""
    header = not source.columns if source.has_header is None else source.has_header
    with refusals(path.name):
        frame = pl.scan_csv(
            path,
            infer_schema=False,
            has_header=header,
            separator=source.separator or ",",
            row_index_name=ROW,
        )
        names = [name for name in frame.collect_schema() if name != ROW]
    if not source.columns:
        return frame
    if len(source.columns) != len(names):
        raise SiteConfigError(
            f"[source] columns has {len(source.columns)} names, {path.name} has {len(names)} "
            "columns",
            hint="name every column, from left to right",
        )
    return frame.rename(dict(zip(names, source.columns, strict=True)))


def scan_parquet(path: Path) -> pl.LazyFrame:
    """A Parquet file, with the types it has."""
    with refusals(path.name):
        frame = pl.scan_parquet(path, row_index_name=ROW)
        frame.collect_schema()
    return frame


def load_sklearn(name: str) -> pl.LazyFrame:
    """A data set of scikit-learn; its outcome is column `target`, of a class in words.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise MissingExtraError(
            "[source] kind 'sklearn' needs scikit-learn",
            hint="install it with: pip install 'fedward[simulations]'",
        ) from error
    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
        target = pl.Series("target", bunch.target)
    else:
        bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
        target = pl.Series("target", [str(bunch.target_names[index]) for index in bunch.target])
    columns = {str(column): bunch.data[:, i] for i, column in enumerate(bunch.feature_names)}
    return pl.DataFrame(columns).with_columns(target).with_row_index(ROW).lazy()


def text(column: str, kind: pl.DataType, null_values: tuple[str, ...] = ()) -> pl.Expr:
    """A column as trimmed text, whole numbers without `.0`; empty and null values are null."""
    cell = _trimmed(column, kind, null_values)
    whole = cell.str.contains(_INTEGER_VALUED)  # much faster than replacing by the same pattern
    return pl.when(whole).then(cell.str.replace(r"\.0+$", "")).otherwise(cell)


def identifier(column: str, kind: pl.DataType, null_values: tuple[str, ...] = ()) -> pl.Expr:
    """A column of identifiers as text: as written, or whole numbers without `.0`."""
    if kind.is_float():
        return text(column, kind, null_values)
    return _trimmed(column, kind, null_values)


def is_empty(column: str, kind: pl.DataType, source: SourceSection) -> pl.Expr:
    """Whether each cell is empty or one of the null values."""
    if kind.is_numeric() or kind == pl.Boolean:
        return number(column, kind, source).is_null()
    return _trimmed(column, kind, source.null_values).is_null()


def _trimmed(column: str, kind: pl.DataType, null_values: tuple[str, ...]) -> pl.Expr:
    if kind.is_nested():
        return pl.lit(None, dtype=pl.String)
    cell = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(cell.is_in(["", *null_values])).then(None).otherwise(cell)


def canonical(value: str) -> str:
    """A configured value in the form that `text` gives cells."""
    return re.sub(_INTEGER_VALUED, r"\1", value.strip())


def number(column: str, kind: pl.DataType, source: SourceSection) -> pl.Expr:
    """A column as float64; what is not a number becomes null, the text "nan" becomes NaN."""
    if kind.is_numeric() or kind == pl.Boolean:
        value = pl.col(column).cast(pl.Float64)
        absent = [float(cell) for cell in source.null_values if _is_number(cell)]
        return pl.when(value.is_in(absent)).then(None).otherwise(value) if absent else value
    cell = _trimmed(column, kind, source.null_values)
    if source.decimal_comma:
        cell = cell.str.replace(",", ".", literal=True)
    return cell.cast(pl.Float64, strict=False)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def filtered(frame: pl.LazyFrame, source: SourceSection, label: str) -> pl.LazyFrame:
    """The rows that meet `[source] filter`.

    A text column all of whose cells are numbers takes part in comparisons as numbers.

    Raises:
        SiteConfigError: the filter is not an SQL condition, or does not fit the columns.
    """
    if source.filter is None:
        return frame
    schema = frame.collect_schema()
    try:
        condition = pl.sql_expr(source.filter)
        used = [name for name in dict.fromkeys(condition.meta.root_names()) if name in schema]
        numeric = _numeric_columns(frame, used, source, label)
        kept = {name: f"{ROW}: {name}" for name in used}
        typed = [
            number(name, schema[name], source)
            if name in numeric
            else text(name, schema[name], source.null_values)
            for name in used
        ]
        result = (
            frame.with_columns(pl.col(name).alias(copy) for name, copy in kept.items())
            .with_columns(cell.alias(name) for name, cell in zip(used, typed, strict=True))
            .filter(condition)
            .with_columns(pl.col(copy).alias(name) for name, copy in kept.items())
            .drop(kept.values())
        )
        _try(condition, {name: name in numeric for name in used})
    except PolarsError:
        raise SiteConfigError(
            "[source] filter is not an SQL condition over the columns of the source",
            hint="write something like: age >= 18 AND sex = 'F'",
        ) from None
    return result


def _try(condition: pl.Expr, numeric: dict[str, bool]) -> None:
    """Apply the condition to one empty row: a wrong one must fail here and not with the data."""
    kinds = {
        name: pl.Float64() if is_number else pl.String() for name, is_number in numeric.items()
    }
    columns = [pl.Series(name, [None], dtype=kind) for name, kind in kinds.items()]
    pl.DataFrame(columns).filter(condition)


def _numeric_columns(
    frame: pl.LazyFrame, names: list[str], source: SourceSection, label: str
) -> set[str]:
    """Those of the columns that hold numbers and nothing else."""
    if not names:
        return set()
    schema = frame.collect_schema()
    checks = []
    for name in names:
        empty = is_empty(name, schema[name], source)
        value = number(name, schema[name], source)
        checks.append((empty == value.is_null()).all().alias(name))
    with refusals(label):
        row = frame.select(checks).collect(engine="streaming").row(0, named=True)
    return {name for name in names if row[name]}
