"""Check a whole audit log, offline, with nothing but a public key.

Finds entries that were changed, removed, moved or added by anyone who does not hold the key. That
entries are missing at the end can only be seen against a head that somebody else kept: the other
side of the link puts it on record every round.

A key may vouch for its successor, so a log may have several. The one that is given must be among
them and must have signed at least once: its signatures vouch for everything before them, and for
the key that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.audit.chain import Head, extend
from fedward.common.audit.entries import BEGIN, DOMAIN, KEY, START, Entry, parse_entry
from fedward.common.errors import IdentityError, StateError
from fedward.common.identity.keys import PublicKey


@dataclass(frozen=True)
class Report:
    """What a verification found.

    Attributes:
        head: of the entries that are good.
        problem: the first thing that is wrong; empty if nothing is.
        keys: fingerprints of the keys that signed, oldest first.
        first: time of the first entry, empty if there is none.
        last: time of the last good entry.
    """

    head: Head
    problem: str
    keys: tuple[str, ...]
    first: str
    last: str

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "problem": self.problem,
            "head": self.head.to_dict(),
            "keys": list(self.keys),
            "first": self.first,
            "last": self.last,
        }


class _Check:
    """Walks along a log."""

    def __init__(self, expected: Head | None) -> None:
        self.head = START
        self.expected = expected
        self.keys: list[PublicKey] = []
        self.signed: set[PublicKey] = set()
        self.first = self.last = ""

    def take(self, line: bytes) -> str:
        """Follow one line; say what is wrong with it."""
        number = self.head.length + 1
        if not line.endswith(b"\n"):
            return f"entry {number} is cut off"
        try:
            entry = parse_entry(line[:-1])
        except ValueError:
            return f"entry {number} is not an entry as fedward writes it"
        after = extend(self.head, entry.content)
        if (entry.seq, entry.prev) != (number, self.head.hash):
            return f"entry {number} does not follow the one before: something is missing or moved"
        if entry.hash != after.hash:
            return f"entry {number} was changed"
        problem = self._check_signature(entry)
        if not problem and self.expected and self.expected.length == number:
            problem = "" if self.expected == after else f"entry {number} is not what was witnessed"
        if not problem:
            self.head, self.last = after, entry.time
            self.first = self.first or entry.time
        return problem

    def _check_signature(self, entry: Entry) -> str:
        try:
            if entry.seq == 1:
                if entry.kind != BEGIN:
                    return "entry 1 does not begin a log"
                self.keys.append(PublicKey.from_pem(str(entry.facts.get("key"))))
            signer = self.keys[-1]
            signer.verify(bytes.fromhex(entry.signature), DOMAIN + bytes.fromhex(entry.hash))
            if entry.kind == KEY:
                self.keys.append(PublicKey.from_pem(str(entry.facts.get("key"))))
        except (IdentityError, ValueError):
            return f"entry {entry.seq} is not signed by the log's key"
        self.signed.add(signer)
        return ""

    def finish(self, public_key: PublicKey) -> str:
        """What only shows at the end."""
        if self.head == START:
            return "the log is empty"
        if public_key not in self.signed:
            return "the log was not signed by this key"
        if self.expected is not None and self.expected.length > self.head.length:
            missing = self.expected.length - self.head.length
            return f"{missing} entries are missing at the end: they were witnessed"
        return ""


def verify_log(path: Path, public_key: PublicKey, *, expected: Head | None = None) -> Report:
    """Check every entry of a log.

    Args:
        path: of the log, which nobody should be writing to.
        public_key: the log's, or that of one of its keys; from a certificate or the roster.
        expected: a head of this log that somebody else kept.

    Raises:
        StateError: the log cannot be read.
    """
    check = _Check(expected)
    problem = ""
    try:
        with path.open("rb") as file:
            for line in file:
                problem = check.take(line)
                if problem:
                    break
    except OSError as error:
        raise StateError(f"cannot read {path.name or path}", hint="check the path") from error
    problem = problem or check.finish(public_key)
    keys = tuple(key.fingerprint for key in check.keys)
    return Report(check.head, problem, keys, check.first, check.last)
