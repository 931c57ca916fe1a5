"""New pictures, without outcomes: a folder of files, or a NumPy archive.

They are prepared exactly as for training (`sources/pictures.py`), one at a time, into a temporary
memory-mapped stack.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.new_patients import PATIENT, NewPatients
from fedward.client.sources import ROW
from fedward.client.sources.medmnist import open_archive
from fedward.client.sources.pictures import decode
from fedward.client.sources.stack import Read, build_stack
from fedward.common.errors import DataError
from fedward.common.study.schema import ImageSection
from fedward.common.table import ImageStack

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_IMAGES = "images"
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    RuntimeError,  # a member that claims to be encrypted, or packed in an unknown way
)
"""What NumPy and zipfile raise on archives that are damaged, or were made to be."""


def read_pictures(image: ImageSection, path: Path) -> NewPatients:
    """Read pictures to score.

    Args:
        image: what the study makes of a picture.
        path: a folder, whose PNG, JPEG and TIFF files are taken in the order of their names, those
            of sub-folders too; or a `.npz` with one array `images`, uint8 `[n, h, w]` or
            `[n, h, w, 3]`, or in the MedMNIST layout.

    Raises:
        DataError: there is no picture, or one of them cannot be used.
    """
    if path.is_dir():
        return _folder(image, path)
    if not path.is_file():
        raise DataError(f"there is no file or folder {path.name}", hint="check the path")
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"{path.name} is neither a folder nor an archive",
            hint="give the folder that holds the pictures, or a .npz",
        )
    return _archive(image, path)


def _folder(image: ImageSection, path: Path) -> NewPatients:
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(
            f"the folder {path.name or path} has no pictures",
            hint=f"give one with files that end in {', '.join(SUFFIXES)}",
        )
    names = tuple(file.relative_to(path).as_posix() for file in files)
    stack = _stack(len(files), lambda row: decode(files[row]), image)
    return NewPatients(stack, {"file": names})


def _archive(image: ImageSection, path: Path) -> NewPatients:
    pixels = _plain_images(path)
    if pixels is not None:
        return NewPatients(_stack(len(pixels), lambda row: np.asarray(pixels[row]), image))
    try:
        table, pictures = open_archive(path, "all", (), None)
    except _BROKEN:
        raise _no_archive(path) from None
    frame = table.collect()
    known = {
        name: tuple(frame[name].cast(pl.String).fill_null("").to_list())
        for name in ("split", PATIENT)
        if name in frame.columns
    }
    rows = frame[ROW].to_numpy().astype(np.int64)
    return NewPatients(pictures.stack(rows, image), known)


def _plain_images(path: Path) -> NDArray[Any] | None:
    """The array `images` of an archive, None if it has another layout."""
    try:
        if not zipfile.is_zipfile(path):  # a single array or a text, whatever its name says
            raise _no_archive(path)
        # Opened here: NumPy leaves a file open when what is in it turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if _IMAGES not in archive.files:
                return None
            pixels: NDArray[Any] = archive[_IMAGES]
    except _BROKEN:
        raise _no_archive(path) from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not len(pixels):
        raise DataError(
            f"{path.name} has images that cannot be used",
            hint="save them as uint8 [n, h, w] or [n, h, w, 3], at least one",
        )
    return pixels


def _no_archive(path: Path) -> DataError:
    return DataError(
        f"{path.name} is no NumPy archive, is damaged, or holds Python objects",
        hint="save it with numpy.savez_compressed(path, images=...)",
    )


def _stack(count: int, read: Read, image: ImageSection) -> ImageStack:
    try:
        return build_stack(np.arange(count, dtype=np.int64), read, image, "", None)
    except DataError as error:
        raise DataError(
            error.problem,
            hint="replace or remove it; rows are counted from 1, files in the order of their names",
        ) from None
