"""What of a text is written in fedward's own source code, and may therefore be shown to anybody.

Messages are phrases of our source with values put into their gaps. A text is recognised as one of
them and given back with every gap shown as `…`; what no phrase explains is not given back at all.

Guarantee:
    `Phrases.public` returns only characters that stand in a string of a loaded module of fedward,
    which everybody can read, and `…`. Whatever was put into a message stays out.

    >>> import fedward.common.files
    >>> phrases = Phrases()
    >>> phrases.public("cannot write lung.csv: the disk is full, free some space and try again")
    'cannot write …: the disk is full, free some space and try again'
    >>> phrases.public("lung.csv") is None
    True
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import fedward.common.parsing  # noqa: F401  (`ast.parse` in several threads)

GAP = "…"
_PREFIX = "fedward."
_LONGEST = 1000
"""Characters; a longer text is not looked up."""
_LEAST_LETTERS = 10
"""Of a phrase, and two words: a shorter string of our source could by chance be somebody's data."""


@dataclass(frozen=True)
class _Module:
    """The phrases of one module: those without gaps, and what stands around the gaps of others."""

    whole: frozenset[str]
    gapped: tuple[tuple[str, ...], ...]


class Phrases:
    """The phrases of fedward's loaded modules, read when they are first needed."""

    def __init__(self) -> None:
        self._read: dict[str, _Module] = {}

    def public(self, text: str, *, first: str = "") -> str | None:
        """The public part of a text, or None if it is not one of our phrases.

        Args:
            text: for example a log message, or an error as `problem: hint`.
            first: module to look at before all others, usually the one that made the text.
        """
        if len(text) > _LONGEST:
            return None
        loaded = [name for name in list(sys.modules) if name.startswith(_PREFIX)]
        if first in loaded and text in self._module(first).whole:
            return text
        found = (self._explain(text, loaded), self._two_halves(text, loaded))
        return max((phrase for phrase in found if phrase), key=len, default=None)

    def _two_halves(self, text: str, names: list[str]) -> str | None:
        """`problem: hint`, each a phrase of its own."""
        at = text.find(": ")
        while at >= 0:
            halves = [self._explain(half, names) for half in (text[:at], text[at + 2 :])]
            if all(halves):
                return ": ".join(half for half in halves if half)
            at = text.find(": ", at + 1)
        return None

    def _explain(self, text: str, names: list[str]) -> str | None:
        """The phrase of these modules that explains most of a text."""
        best: tuple[str, ...] = ()
        for name in names:
            module = self._module(name)
            if text in module.whole:
                return text
            fitting = (parts for parts in module.gapped if fits(text, parts))
            best = max(best, *fitting, (), key=lambda parts: (sum(map(len, parts)), parts))
        return GAP.join(best) if best else None

    def _module(self, name: str) -> _Module:
        if name not in self._read:
            found = [parts for parts in _strings(name) if _is_phrase(parts)]
            self._read[name] = _Module(
                whole=frozenset(parts[0] for parts in found if len(parts) == 1),
                gapped=tuple(parts for parts in found if len(parts) > 1),
            )
        return self._read[name]


def fits(text: str, parts: tuple[str, ...]) -> bool:
    """Whether a text is these parts, in order, with anything between them; in linear time.

    >>> fits("round 3 is closed", ("round ", " is closed"))
    True
    """
    head, *middle, tail = parts
    end = len(text) - len(tail)
    if end < len(head) or not (text.startswith(head) and text.endswith(tail)):
        return False
    at = len(head)
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _strings(name: str) -> Iterator[tuple[str, ...]]:
    """Every string in a module's source, cut at its gaps."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    get_source = getattr(loader, "get_source", None)
    try:
        source = None if get_source is None else get_source(name)
    except (OSError, ImportError):
        return
    for node in ast.walk(ast.parse(source or "")):
        if isinstance(node, ast.JoinedStr):
            yield _parts(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield (node.value,)


def _parts(node: ast.JoinedStr) -> tuple[str, ...]:
    parts = [""]
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts[-1] += str(value.value)
        else:
            parts.append("")
    return tuple(parts)


def _is_phrase(parts: tuple[str, ...]) -> bool:
    letters = sum(character.isalpha() for part in parts for character in part)
    return letters >= _LEAST_LETTERS and any(" " in part.strip() for part in parts)
