"""How this process asks the system for memory: for what moves large bodies in pieces, all day.

The C library gives every thread an arena of its own and hands blocks of a few 100 kB back to the
system as soon as they are free. A transfer asks for thousands of such blocks, from many threads: it
then spends half of its time on page faults, and what is free in one arena does not help another.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# Of malloc.h in glibc; there they are part of the interface.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGEST_IN_HEAP: Final = 4 << 20
"""Bytes: more than any piece of a body or block of a model, less than a model."""
_KEPT: Final = 32 << 20
"""Bytes at the end of the heap that are kept for the next piece."""


def reuse_memory() -> None:
    """Let all threads share one heap that keeps what is free; does nothing without glibc.

    To be called before there are many threads. What is larger than a piece is still given back to
    the system at once.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for name, value in (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP),
        (_M_TRIM_THRESHOLD, _KEPT),
    ):
        mallopt(name, value)
