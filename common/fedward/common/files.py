"""Files that are either whole or not there: everything fedward keeps is written through here.

A crash, a full disk or Ctrl-C leaves the old content, or nothing, never half of the new.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "a.txt", "whole")
    ...     read_bytes(Path(folder) / "a.txt")
    b'whole'
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedward.common.errors import DataError, FedwardError, OutputError

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.(partial|old)")
MARKER = ".fedward"
"""Names the files that fedward wrote into a directory, so that it only ever replaces its own."""

_HINTS = {
    errno.ENOSPC: "the disk is full, free some space and try again",
    errno.EDQUOT: "the disk quota is used up, free some space and try again",
    errno.EFBIG: "the file is larger than this system allows here, choose another disk",
    errno.EACCES: "permission is denied, choose a folder that you may write to",
    errno.EPERM: "permission is denied, choose a folder that you may write to",
    errno.EROFS: "the disk is read-only, choose a folder that you may write to",
    errno.ENOENT: "its folder does not exist, create it first",
    errno.ENOTDIR: "its folder is a file, choose another path",
    errno.EISDIR: "it is a folder, choose another path",
    errno.ENAMETOOLONG: "the name is too long, choose a shorter one",
    errno.EIO: "the disk reported an error, check it or choose another",
}
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def output_error(path: Path, error: OSError) -> OutputError:
    """Say what the operating system refused, and what to do."""
    hint = _HINTS.get(error.errno or 0, "check the path and the disk")
    return OutputError(f"cannot write {path.name or path}", hint=hint)


def write_atomic(
    path: Path, data: bytes | str | Iterable[bytes | memoryview], *, private: bool = False
) -> None:
    """Write a whole file, or leave what was there.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the
    name in one step. Text is written as UTF-8; what is large is given and written in pieces. What
    is there and is neither a file nor a folder (a pipe, `/dev/stdout`) is written to directly: it
    must never be replaced. A private file is one that nobody but its owner may read or write, from
    its first byte on.

    Raises:
        OutputError: the file cannot be written (full disk, no permission, no such folder).
    """
    whole = data.encode() if isinstance(data, str) else data
    pieces = [whole] if isinstance(whole, bytes) else whole
    partial = _sibling(path, "partial")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            with path.open("wb") as stream:
                stream.writelines(pieces)
            return
        with open(partial, "xb", opener=_private_opener if private else None) as stream:
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        _remove(partial)


def move(source: Path, target: Path) -> None:
    """Give a file another name in the same folder, durably, in place of what was called so.

    Raises:
        OutputError: the disk refuses.
    """
    try:
        source.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise output_error(target, error) from error


def private_folder(path: Path) -> None:
    """Make a folder that nobody but its owner may look into; one that exists is closed to others.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise output_error(path, error) from error


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_bytes(
    path: Path,
    *,
    error: type[FedwardError] = DataError,
    hint: str = "check the path and the permissions",
) -> bytes:
    """Read a whole file.

    Args:
        path: which file.
        error: what to raise if it cannot be read.
        hint: what to tell the user then.

    Raises:
        FedwardError: the file is missing or cannot be read; of class `error`.
    """
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"cannot read {path.name or path}", hint=hint) from cause


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Fill a directory that appears only when it is complete.

    The body writes into the yielded directory, a sibling of `path`; at the end it takes the name
    `path` and replaces an older one. A directory is replaced only if it is empty or was made here,
    and holds nothing that fedward did not write. If the body fails, the older one stays.

    Raises:
        OutputError: `path` holds other people's files, or the disk refuses.
    """
    check_replaceable(path)
    with staging(path) as building:
        yield building
        _finish(building, path)


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A directory beside `path` to prepare something in; it is gone afterwards, come what may.

    Raises:
        OutputError: it cannot be made, or the disk refuses what the body writes.
    """
    building = _sibling(path, "partial")
    try:
        try:
            building.mkdir()
        except OSError as error:
            raise output_error(path, error) from error
        yield building
    except OSError as error:
        # Reading problems of the body are not ours to explain; a refusing disk is.
        if error.errno in _DISK:
            raise output_error(path, error) from error
        raise
    finally:
        _remove(building)


def replace_directory(new: Path, path: Path) -> None:
    """Give a directory that `atomic_directory` filled another name, in place of an older one.

    Raises:
        OutputError: `path` holds other people's files, or the disk refuses.
    """
    check_replaceable(path)
    try:
        _swap(new, path)
        _sync(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def remove_leftovers(folder: Path, *, of: str = "") -> None:
    """Remove what a killed process left half-written in a folder; nothing else has such names.

    No other process may be writing there.

    Args:
        folder: where; it need not exist.
        of: only what was to become the file or folder of this name.
    """
    for path in folder.glob(f".{of}*"):
        if _LEFTOVER.fullmatch(path.name) and path.name.startswith(f".{of}." if of else "."):
            _remove(path)


def _finish(building: Path, path: Path) -> None:
    write_atomic(building / MARKER, json.dumps({"files": _files(building)}, indent=1) + "\n")
    try:
        for name in _files(building):
            _sync(building / name)
        for folder in (building, *(p for p in building.rglob("*") if p.is_dir())):
            _sync(folder)
        check_replaceable(path)
        _swap(building, path)
        _sync(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _swap(building: Path, path: Path) -> None:
    if not path.exists():
        building.rename(path)
        return
    old = _sibling(path, "old")
    path.rename(old)
    try:
        building.rename(path)
    except OSError:
        old.rename(path)
        raise
    _remove(old)


def check_replaceable(path: Path) -> None:
    """Refuse to delete anything that fedward did not write.

    Raises:
        OutputError: `path` is not a folder, or holds other people's files.
    """
    hint = "choose a new folder, or move what is in it"
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path.name or path} is not a folder", hint="choose another path")
    try:
        present = _files(path) if path.is_dir() else []
    except OSError as error:
        raise output_error(path, error) from error
    if not present:
        return
    ours = _written_here(path)
    if ours is None:
        raise OutputError(f"{path.name or path} is a folder that fedward did not make", hint=hint)
    others = [name for name in present if name != MARKER and name not in ours]
    if others:
        raise OutputError(
            f"{path.name or path} holds {others[0]}, which fedward did not write", hint=hint
        )


def _written_here(path: Path) -> frozenset[str] | None:
    try:
        content = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = content.get("files") if isinstance(content, dict) else None
    return frozenset(map(str, files)) if isinstance(files, list) else None


def _files(folder: Path) -> list[str]:
    return sorted(
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir()
    )


def _sibling(path: Path, kind: str) -> Path:
    # A name of our own choice, not mkstemp: results keep the permissions of the user's umask.
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.{kind}")


def _sync(path: Path) -> None:
    """Flush a file or the entries of a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
