"""Python's parser for several threads: to import this makes `ast.parse` safe in all of them.

Up to Python 3.11.7, building a syntax tree counts its depth in a place that all threads share. A
garbage collection in the middle of it may close a file, which lets another thread run; if that one
parses too, the first ends in a `SystemError: AST constructor recursion depth mismatch`. A server
parses all the time: NumPy the header of every array that Flower keeps as bytes, in each run's
thread, and the log our own source. There `ast.parse`, by which all of them go, is replaced by one
that lets nobody in between. (CPython's issue 106905; repaired in 3.11.8 and 3.12.)
"""

from __future__ import annotations

import ast
import gc
import sys
import threading
from typing import Any, Final

AFFECTED: Final = sys.version_info < (3, 11, 8)
"""Whether this interpreter needs it."""

_parse = ast.parse
_alone = threading.Lock()


def parse_alone(*args: Any, **kwargs: Any) -> Any:
    """As Python's own `ast.parse`, one thread after the other and without garbage collection.

    Without the latter a finaliser could run here, while the lock is held: one that waits for a
    thread that waits for the lock, or that parses itself.
    """
    with _alone:
        collects = gc.isenabled()
        gc.disable()
        try:
            return _parse(*args, **kwargs)
        finally:
            if collects:
                gc.enable()


if AFFECTED:
    ast.parse = parse_alone
