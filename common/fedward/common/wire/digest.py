"""SHA-256 of files, each read once: a reply is hashed when it is written, not when it is sent.

What this process wrote or hashed lately is known by the file's identity, size and time of change.
That saves work and promises nothing: whoever receives a body hashes it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

_MOST: Final = 64
_known: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
_lock = threading.Lock()


def file_sha256(path: Path) -> tuple[bytes, int]:
    """SHA-256 and size in bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        mark = _mark(file.fileno())
        with _lock:
            found = _known.get(mark)
        if found is None:
            found = hashlib.file_digest(file, "sha256").digest()
            remember(file.fileno(), found)
        return found, mark[2]


def remember(file: int, sha256: bytes) -> None:
    """Somebody hashed an open file as it is now."""
    with _lock:
        _known[_mark(file)] = sha256
        if len(_known) > _MOST:
            _known.popitem(last=False)


def _mark(file: int) -> tuple[int, ...]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
