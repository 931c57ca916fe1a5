"""Work beside the thread of a run: on another core if there is enough of it, else at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Do it; what it raises is raised here."""
        done: Future[_T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@contextmanager
def aside(*, worth: bool) -> Iterator[Executor]:
    """One more thread, if that is worth it; what was submitted has ended with the context."""
    if not worth:
        yield AtOnce()
        return
    pool: Any = ThreadPoolExecutor(1, thread_name_prefix="aside")
    with pool:
        yield pool
