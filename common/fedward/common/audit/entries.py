"""Entries of the audit log: their form, their kinds of our own, and reading them from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.audit.chain import canonical, empty
from fedward.common.errors import StateError

START = empty("audit log")
DOMAIN = b"fedward audit entry v1\0"
BEGIN = "log-begun"
KEY = "log-key-changed"
TAKEN = "log-key-taken"
TORN = "log-torn-entry-removed"
HINT = "keep the file as evidence, run `log verify`, and move it away to begin a new one"


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        seq: 1 for the first.
        time: UTC, ISO 8601.
        kind: what happened.
        facts: about it; nothing private.
        prev: hash of the entry before.
        hash: of this one, see `chain.extend`.
        signature: over `DOMAIN` and the hash, hexadecimal.
    """

    seq: int
    time: str
    kind: str
    facts: dict[str, Any]
    prev: str
    hash: str
    signature: str

    @property
    def line(self) -> bytes:
        """As it is in the file, without the end of the line."""
        return canonical(vars(self))

    @property
    def content(self) -> dict[str, Any]:
        """What is chained."""
        return {"time": self.time, "kind": self.kind, "facts": self.facts}


def parse_entry(line: bytes) -> Entry:
    """Read a line.

    Raises:
        ValueError: it is no entry, or not exactly as `Entry.line` would write it.
    """
    try:
        value = json.loads(line)
        entry = Entry(**value)
        texts = (entry.time, entry.kind, entry.prev, entry.hash, entry.signature)
        fits = type(entry.seq) is int and isinstance(entry.facts, dict)
        if not fits or not all(isinstance(text, str) for text in texts) or entry.line != line:
            raise ValueError("not canonical")
    except (TypeError, RecursionError) as error:
        raise ValueError("no entry") from error
    return entry


def current_key(path: Path) -> str:
    """Fingerprint of the key that signs a log's next entry; empty if it has none yet.

    Raises:
        StateError: the log cannot be read.
    """
    key = ""
    for entry in read_entries(path):
        if entry.kind in (BEGIN, KEY):
            key = str(entry.facts.get("fingerprint"))
    return key


def read_entries(path: Path) -> Iterator[Entry]:
    """All whole entries of a log, oldest first; nothing is checked but their form.

    Raises:
        StateError: the log is missing, or a line is no entry.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield parse_entry(line[:-1])
    except OSError as error:
        raise StateError(f"cannot read {path.name}", hint="check the path") from error
    except ValueError as error:
        raise StateError("the audit log has a line that is no entry", hint=HINT) from error
