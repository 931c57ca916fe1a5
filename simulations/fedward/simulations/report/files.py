"""Write a whole file or none: readers never see half of one.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     write_atomically(Path(folder) / "a.txt", b"whole")
...     (Path(folder) / "a.txt").read_bytes()
b'whole'
"""

from __future__ import annotations

import os
from pathlib import Path

from fedward.common.files import output_error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, durably, or leave what was there.

    The bytes go to a temporary file in the same folder, are flushed to disk, and take the name in
    one step. What is not a regular file (a pipe, `/dev/stdout`) is written to directly: it must
    never be replaced.

    Raises:
        OutputError: the disk is full, the folder is missing, or may not be written.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace(target, content)
    except OSError as error:
        raise output_error(path, error) from error


def _replace(target: Path, content: bytes) -> None:
    # One name per process: a file that a killed run left behind is overwritten, not collected.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
