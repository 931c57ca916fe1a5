"""A hash chain: every entry's hash covers all entries before it. Pure; audit log and ledger use it.

Whoever knows the head, the number of entries and the last hash, notices any change to any entry.

    >>> start = empty("an example")
    >>> one = extend(start, {"kind": "first"})
    >>> two = extend(one, {"kind": "second"})
    >>> two.length, two == extend(extend(start, {"kind": "first"}), {"kind": "second"})
    (2, True)
    >>> two.hash == extend(extend(start, {"kind": "frist"}), {"kind": "second"}).hash
    False
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from fedward.common.errors import StateError

_HASH = re.compile(r"[0-9a-f]{64}")
LONGEST_LOG = 1 << 63
"""Entries that no log has: what a database can count ends before."""


@dataclass(frozen=True)
class Head:
    """The end of a chain.

    Attributes:
        length: number of entries.
        hash: of the last one, 64 hexadecimal digits; of an empty chain, a constant of its purpose.
    """

    length: int
    hash: str

    @property
    def digest(self) -> bytes:
        """The hash as 32 bytes, as it travels."""
        return bytes.fromhex(self.hash)

    @classmethod
    def of(cls, length: int, digest: bytes) -> Self:
        """From what travelled.

        Raises:
            StateError: it is no head.
        """
        return cls.read({"length": length, "hash": digest.hex()})

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `read` reverses it."""
        return {"length": self.length, "hash": self.hash}

    @classmethod
    def read(cls, value: object) -> Self:
        """From JSON.

        Raises:
            StateError: it is no head.
        """
        if isinstance(value, Mapping):
            length, text = value.get("length"), value.get("hash")
            known = isinstance(text, str) and _HASH.fullmatch(text) is not None
            if type(length) is int and 0 <= length < LONGEST_LOG and known:
                return cls(length, str(text))
        raise StateError("this is not the head of a log", hint="it has a length and a hash")


def empty(purpose: str) -> Head:
    """The head of a chain without entries. The purpose keeps chains of two kinds apart."""
    return Head(0, hashlib.sha256(f"fedward {purpose} v1".encode()).hexdigest())


def extend(head: Head, content: Mapping[str, Any]) -> Head:
    """The head after one more entry, which says `content` (JSON)."""
    data = canonical({"content": content, "prev": head.hash, "seq": head.length + 1})
    return Head(head.length + 1, hashlib.sha256(data).hexdigest())


def canonical(value: Any) -> bytes:
    """JSON in the one way in which it is hashed and signed: keys sorted, no space, UTF-8, no NaN.

    Raises:
        ValueError: a number is not finite.
        TypeError: something is no JSON.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
