"""One process for one folder: two daemons would pay for the same round twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward.common.errors import StateError
from fedward.common.files import output_error


@contextmanager
def held(path: Path, *, who: str) -> Iterator[None]:
    """Hold a lock file; the system lets it go when this process ends, however it ends.

    Args:
        path: the file; made if it is not there.
        who: what another process that holds it is, for the message.

    Raises:
        StateError: another process holds it.
        OutputError: the disk refuses.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateError(
                f"{who} already runs on this folder", hint="stop that one first"
            ) from error
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(file)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
