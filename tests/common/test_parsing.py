"""Threads that parse at once do not disturb each other, whatever a garbage collection does."""

from __future__ import annotations

import ast
import gc
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import fedward.common.files  # what is parsed by `Phrases` here
from fedward.common import parsing
from fedward.common.phrases import Phrases

LONG_S = 180.0
TREE = "f(" * 20 + ")" * 20


@contextmanager
def another_thread_parses_in_each_collection() -> Iterator[list[bool]]:
    """As if each closed a file, and another thread could run then; whether it came to its end."""
    done: list[bool] = []
    here = threading.current_thread()

    def collecting(phase: str, _info: dict[str, int]) -> None:
        if phase == "start" and threading.current_thread() is here:
            other = threading.Thread(target=ast.parse, args=(TREE,), daemon=True)
            other.start()
            other.join(LONG_S)
            done.append(not other.is_alive())

    before = gc.get_threshold()
    gc.callbacks.append(collecting)
    gc.set_threshold(3)
    try:
        yield done
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collecting)


def read_header() -> object:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32))
    file.seek(0)
    return np.load(file).shape


def look_up() -> object:
    """The log's way, which has read no source yet."""
    return Phrases().public("lung.csv", first=fedward.common.files.__name__)


@pytest.mark.parametrize(
    ("parse", "result"), [(read_header, (2, 3)), (look_up, None)], ids=["array", "log"]
)
def test_threads_may_parse_at_once(parse: Callable[[], object], result: object) -> None:
    with another_thread_parses_in_each_collection() as done:
        found = {parse() for _ in range(3)}
    assert found == {result}
    assert done
    assert all(done)


def test_garbage_is_collected_as_before_even_if_parsing_fails() -> None:
    assert gc.isenabled()
    with pytest.raises(SyntaxError):
        parsing.parse_alone("(")
    assert gc.isenabled()
    gc.disable()
    try:
        assert ast.dump(parsing.parse_alone("1", mode="eval")) == ast.dump(
            ast.parse("1", "", "eval")
        )
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_an_interpreter_that_needs_it_is_changed() -> None:
    assert (ast.parse is parsing.parse_alone) is parsing.AFFECTED


@pytest.mark.parametrize("module", ["fedward.common.phrases", "fedward.server.flower_internals"])
def test_whoever_parses_in_threads_imports_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('{parsing.__name__}' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
