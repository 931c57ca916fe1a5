"""Prepared pictures of a whole site as one memory-mapped array on disk, made one at a time.

Only one picture is in memory while the array is made. With a cache folder it is kept under a name
that depends on everything it was made from; without, the file has no name as soon as it is mapped,
so that nothing of a patient is left behind even by a crash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.client.sources.pictures import PICTURE_ERRORS, prepare
from fedward.client.sources.source import PictureFindings
from fedward.common.errors import DataError
from fedward.common.files import output_error
from fedward.common.study.schema import ImageSection
from fedward.common.table import ImageStack

_FORMAT = "1"
"""Changes whenever `pictures.prepare` would give other pixels for the same file."""

Read = Callable[[int], NDArray[Any]]
"""Pixels of the picture of one source row."""


def fingerprint(image: ImageSection, parts: Iterable[str]) -> str:
    """A name for prepared pictures: equal only if made from the same files in the same way."""
    digest = hashlib.sha256(f"{_FORMAT} {image.model_dump_json()}".encode())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()[:32]


def build_stack(
    rows: NDArray[np.int64], read: Read, image: ImageSection, name: str, cache: Path | None
) -> ImageStack:
    """Prepare the pictures of the given source rows, in order, or map those prepared before.

    Raises:
        DataError: a picture cannot be used.
        OutputError: the disk is full, or the cache cannot be written.
    """
    positions = np.arange(len(rows), dtype=np.int64)
    if cache is None:
        folder = Path(tempfile.mkdtemp(prefix="fedward-"))
        try:
            _write(folder / "pixels.npy", rows, read, image)
            return ImageStack(np.load(folder / "pixels.npy", mmap_mode="r"), positions)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the mapping keeps the data, not the name
    path = cache / f"pixels-{name}.npy"
    if not path.is_file():
        _write(path, rows, read, image)
    return ImageStack(np.load(path, mmap_mode="r"), positions)


def _write(path: Path, rows: NDArray[np.int64], read: Read, image: ImageSection) -> None:
    """Write the array picture by picture; the file is whole or not there.

    Written as a stream and not through a mapping, because a full disk kills a process that maps.
    """
    shape = (len(rows), image.height, image.width, image.channels)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            for row in rows.tolist():
                stream.write(_prepared(row, read, image).tobytes())
        partial.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _prepared(row: int, read: Read, image: ImageSection) -> NDArray[np.uint8]:
    try:
        return prepare(read(row), image)
    except PICTURE_ERRORS:
        raise DataError(
            f"the picture of row {row + 1} is corrupt or of a kind that cannot be used",
            hint="replace it with a PNG, JPEG or TIFF of one frame in grey or RGB, "
            "or leave the row out with [source] filter",
        ) from None


def inspect(rows: NDArray[np.int64], read: Read, image: ImageSection) -> PictureFindings:
    """Look at every picture, one at a time, without refusing any."""
    sizes: Counter[str] = Counter()
    unreadable = []
    for row in rows.tolist():
        try:
            pixels = read(row)
            prepare(pixels, image)
        except (DataError, *PICTURE_ERRORS):
            unreadable.append(row + 1)
        else:
            sizes[f"{pixels.shape[0]}×{pixels.shape[1]}"] += 1
    return PictureFindings(dict(sizes), tuple(unreadable))
