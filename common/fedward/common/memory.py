"""How this process asks the system for memory: for what needs large blocks again and again.

The C library gives every thread an arena of its own and hands blocks of a few 100 kB back to the
system as soon as they are free. A transfer asks for thousands of such blocks, from many threads, a
step of training for those of its layers: half and a quarter of their time then goes into page
faults, and what is free in one arena does not help another.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# Of malloc.h in glibc; there they are part of the interface.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
PIECES: Final = (4 << 20, 32 << 20)
"""For transfers: more than any piece of a body or block of a model, less than a model."""
STEPS: Final = (32 << 20, 256 << 20)
"""For training: what a layer makes of a batch, and what all layers do."""


def reuse_memory(sizes: tuple[int, int] = PIECES) -> None:
    """Let all threads share one heap that keeps what is free; does nothing without glibc.

    To be called before there are many threads.

    Args:
        sizes: bytes of the largest block that is kept, at most 32 MiB, what is larger being given
            back to the system at once; and how much is kept at the end of the heap.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for name, value in (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, sizes[0]),
        (_M_TRIM_THRESHOLD, sizes[1]),
    ):
        mallopt(name, value)
