"""A folder of picture files and a table that says which file belongs to which row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.sources.pictures import decode
from fedward.client.sources.source import ROW, PictureFindings
from fedward.client.sources.stack import build_stack, fingerprint, inspect
from fedward.client.sources.tables import refusals, text
from fedward.common.errors import DataError
from fedward.common.study.schema import ImageSection
from fedward.common.table import ImageStack


@dataclass(frozen=True)
class FolderPictures:
    """Pictures as files below a folder.

    Attributes:
        folder: where the files are.
        table: the rows, with `ROW` and the column of file names.
        column: the column of `table` with the path of each row's file, below `folder`.
        label: what messages call the table.
        cache: folder for prepared pictures, if they are to be kept.
    """

    folder: Path
    table: pl.LazyFrame
    column: str
    label: str
    cache: Path | None

    def stack(self, rows: NDArray[np.int64], image: ImageSection) -> ImageStack:
        """Decode and prepare; see `Pictures.stack`."""
        files = {row: self._find(row, name) for row, name in self._names(rows).items()}
        parts = [_state(files[row]) for row in rows.tolist()]
        name = fingerprint(image, parts)
        return build_stack(rows, lambda row: decode(files[row]), image, name, self.cache)

    def inspect(self, rows: NDArray[np.int64], image: ImageSection) -> PictureFindings:
        """Decode without refusing; see `Pictures.inspect`."""
        names = self._names(rows)

        def read(row: int) -> NDArray[Any]:
            return decode(self._find(row, names[row]))

        return inspect(rows, read, image)

    def digests(self, rows: NDArray[np.int64]) -> list[str]:
        """Hashes of the files, or of the row's number if there is none; see `Pictures.digests`."""
        names = self._names(rows)
        return [self._digest(row, names[row]) for row in rows.tolist()]

    def _digest(self, row: int, name: str | None) -> str:
        try:
            with self._find(row, name).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except (DataError, OSError):
            return f"row {row}"

    def _names(self, rows: NDArray[np.int64]) -> dict[int, str | None]:
        with refusals(self.label):
            kind = self.table.collect_schema()[self.column]
            cell = pl.col(self.column).cast(pl.String).str.strip_chars()
            if kind.is_nested():
                cell = text(self.column, kind)
            found = self.table.select(pl.col(ROW), cell).collect(engine="streaming")
        every = dict(zip(found[ROW].to_list(), found[self.column].to_list(), strict=True))
        return {row: every[row] for row in rows.tolist()}

    def _find(self, row: int, name: str | None) -> Path:
        """The file of a row; it must lie below the folder, whatever the table says."""
        folder = self.folder.resolve()
        path = (folder / name).resolve() if name else folder
        if not path.is_file() or not path.is_relative_to(folder):
            raise DataError(
                f"the picture of row {row + 1} is not a file below the folder {self.folder.name}",
                hint=f"check column {self.column} of {self.label}, or leave the row out with "
                "[source] filter",
            )
        return path


def _state(path: Path) -> str:
    state = path.stat()
    return f"{path}\0{state.st_size}\0{state.st_mtime_ns}"
