"""The documentation is what the code says, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: ModuleType) -> None:
    stale = [
        path.name
        for path, text in generate.pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs`"


def test_links_lead_somewhere(generate: ModuleType) -> None:
    assert generate.broken_links() == []


def test_every_help_is_complete(generate: ModuleType) -> None:
    """Each command says what it does, shows an example, and names options and exit codes."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    incomplete = [
        section.splitlines()[0]
        for section in re.split(r"^#{2,4} ", page, flags=re.M)[1:]
        if not all(part in section for part in ("Usage:", "Example", "Options:", "Exit codes:"))
    ]
    assert incomplete == []


def test_every_argument_and_option_is_explained(generate: ModuleType) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    names = re.findall(r"^  (--[a-z-]+|\[?[A-Z_]+\]?)$", page, flags=re.M)
    bare = re.findall(r"^  (\[?[A-Z_]+\]?)  \[", page, flags=re.M)
    assert (names, bare) == ([], [])


def test_the_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\bmake ([a-z]+)\b", readme))
    assert {"demo", "test"} <= used
    for target in used | {"check", "bench", "docs", "clean", "help"}:
        assert re.search(rf"^{target}:.*##", makefile, re.M), target


def test_decisions_are_dated_and_short() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert len(pages) >= 5
    for number, page in enumerate(pages, start=1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04d}-")
        assert re.search(r"^Date: \d{4}-\d{2}-\d{2}$", text, re.M)
        for heading in ("## Why", "## What follows"):
            assert heading in text
        assert len(text.splitlines()) < 60
