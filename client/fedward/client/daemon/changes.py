"""Which of the files that decide things have changed since the audit log last said what they were.

A policy, a data mapping or a setting that is changed while nobody looks is on record at the next
look, by its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedward.common.audit.entries import Entry

KIND = "config"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; empty if it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def recorded(entries: Iterable[Entry]) -> dict[str, str]:
    """By file name, the digest that the log said last."""
    known: dict[str, str] = {}
    for entry in entries:
        if entry.kind == KIND:
            known[str(entry.facts.get("file"))] = str(entry.facts.get("sha256"))
    return known


class Changes:
    """Looks at files again and again, cheaply: a file is read if its dates changed.

    Args:
        files: to look at.
        known: digests by file name, see `recorded`.
    """

    def __init__(self, files: Iterable[Path], known: Mapping[str, str]) -> None:
        self._files = tuple(files)
        self._known = dict(known)
        self._dates: dict[Path, tuple[int, int, int]] = {}

    def look(self) -> Iterator[tuple[Path, str]]:
        """Files that changed, and their digests now; each until it is `recorded`."""
        for path in self._files:
            dates = _dates(path)
            if self._dates.get(path) == dates:
                continue
            digest = digest_of(path)
            if self._known.get(path.name) != digest:
                yield path, digest
            if self._known.get(path.name) == digest:
                self._dates[path] = dates

    def recorded(self, path: Path, digest: str) -> None:
        """The audit log has it."""
        self._known[path.name] = digest


def _dates(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
