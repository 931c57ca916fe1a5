"""NumPy archives in the MedMNIST layout: `train_images`, `train_labels`, `val_…`, `test_…`.

Images are uint8 `[n, h, w]` or `[n, h, w, 3]`, labels integers `[n, 1]` that count the study's
labels from 0. The archive's own division is kept: val trains. An extra array `train_<name>` (and so
on) of length n becomes a column `<name>`, for patient identifiers.

Members are unpacked to disk and memory-mapped; `allow_pickle` is never on, so an archive cannot run
code. (Yang et al., MedMNIST v2, Scientific Data 2023.)
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.sources.source import ROW, PictureFindings
from fedward.client.sources.stack import build_stack, fingerprint, inspect
from fedward.common.errors import DataError
from fedward.common.files import output_error
from fedward.common.study.schema import ImageSection
from fedward.common.table import ImageStack

SUBSETS = ("train", "val", "test")
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    ValueError,  # objects, or no array
    EOFError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # a password
)
"""What zipfile and NumPy raise on archives that are no plain NumPy archive."""


@dataclass(frozen=True)
class ArchivePictures:
    """Pictures of an archive, memory-mapped.

    Attributes:
        arrays: images of each subset, in row order.
        starts: row at which each subset starts.
        state: what changes when the archive changes.
        cache: folder for prepared pictures, if they are to be kept.
    """

    arrays: tuple[NDArray[Any], ...]
    starts: NDArray[np.int64]
    state: str
    cache: Path | None

    def stack(self, rows: NDArray[np.int64], image: ImageSection) -> ImageStack:
        """Prepare; see `Pictures.stack`."""
        name = fingerprint(image, [self.state, rows.tobytes().hex()])
        return build_stack(rows, self._read, image, name, self.cache)

    def inspect(self, rows: NDArray[np.int64], image: ImageSection) -> PictureFindings:
        """Look without refusing; see `Pictures.inspect`."""
        return inspect(rows, self._read, image)

    def digests(self, rows: NDArray[np.int64]) -> list[str]:
        """Hashes of the pixels; see `Pictures.digests`."""
        return [hashlib.sha256(self._read(row).tobytes()).hexdigest() for row in rows.tolist()]

    def _read(self, row: int) -> NDArray[Any]:
        subset = int(np.searchsorted(self.starts, row, side="right")) - 1
        return np.asarray(self.arrays[subset][row - int(self.starts[subset])])


def open_archive(
    path: Path, subset: str, labels: tuple[str, ...], cache: Path | None
) -> tuple[pl.LazyFrame, ArchivePictures]:
    """The table (`label`, `split` and extra columns) and the pictures of an archive.

    Args:
        path: the `.npz` file.
        subset: "all", or which of `SUBSETS`.
        labels: what the integers 0, 1, … mean; others, and all if empty, stay integers.
        cache: folder for prepared pictures.

    Raises:
        DataError: the archive is damaged, holds objects, or has another layout.
        OutputError: there is no room to unpack it.
    """
    members = _mapped(path, SUBSETS if subset == "all" else (subset,))
    names = [s for s in SUBSETS if f"{s}_images" in members]
    chosen = names if subset == "all" else [subset]
    if not names or not set(chosen) <= set(names):
        raise _layout(path, "has no arrays " + ", ".join(f"{s}_images" for s in chosen or SUBSETS))
    frames = [_table(path, members, name, labels) for name in chosen]
    arrays = tuple(members[f"{name}_images"] for name in chosen)
    starts = np.cumsum([0, *(len(a) for a in arrays[:-1])]).astype(np.int64)
    state = path.stat()
    mark = f"{path.resolve()}\0{subset}\0{state.st_size}\0{state.st_mtime_ns}"
    table = pl.concat(frames, how="diagonal_relaxed").with_row_index(ROW)
    return table.lazy(), ArchivePictures(arrays, starts, mark, cache)


def _mapped(path: Path, subsets: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Unpack members of the subsets to disk and map them; the files lose their names at once."""
    folder = Path(tempfile.mkdtemp(prefix="fedward-"))
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for index, info in enumerate(archive.infolist()):
                if not info.filename.startswith(tuple(f"{subset}_" for subset in subsets)):
                    continue
                target = folder / f"{index}.npy"  # never the archive's own path
                with archive.open(info) as packed, target.open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
                name = info.filename.removesuffix(".npy")
                found[name] = np.load(target, mmap_mode="r", allow_pickle=False)
        return found
    except DAMAGE:
        raise DataError(
            f"{path.name} is no NumPy archive, is damaged, or holds Python objects",
            hint="use a .npz with plain numeric arrays, as MedMNIST publishes them",
        ) from None
    except OSError as error:
        raise output_error(folder, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _table(
    path: Path, members: dict[str, NDArray[Any]], subset: str, labels: tuple[str, ...]
) -> pl.DataFrame:
    images, outcome = members[f"{subset}_images"], members.get(f"{subset}_labels")
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        raise _layout(path, f"has {subset}_images that are not uint8 [n, h, w] or [n, h, w, 3]")
    if outcome is None or outcome.size != len(images) or outcome.dtype.kind not in "iuf":
        raise _layout(path, f"has {subset}_labels that are not one number for each image")
    columns: dict[str, Any] = {"label": _words(outcome.reshape(-1), labels)}
    for name, values in members.items():
        extra = name.removeprefix(f"{subset}_")
        if extra not in (name, "images", "labels") and values.shape[:1] == images.shape[:1]:
            columns[extra] = values.reshape(-1) if values.size == len(images) else None
    split = pl.lit(subset).alias("split")
    kept = {name: np.array(values) for name, values in columns.items() if values is not None}
    return pl.DataFrame(kept).with_columns(split)


def _words(numbers: NDArray[Any], labels: tuple[str, ...]) -> NDArray[Any]:
    """Integer labels as the study's words; those without a word stay numbers."""
    if not labels or not np.issubdtype(numbers.dtype, np.integer):
        return np.array(numbers)
    words = [labels[n] if 0 <= n < len(labels) else str(n) for n in numbers.tolist()]
    return np.array(words, dtype=np.str_)


def _layout(path: Path, what: str) -> DataError:
    return DataError(
        f"{path.name} {what}", hint="check [source] subset, and that it is in the MedMNIST layout"
    )
