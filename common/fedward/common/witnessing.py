"""Words about the ends of ledgers, exactly as long as they must be: they are kept, and passed on.

A `ledger-head` is a site's statement of the end of its own ledger, a `countersignature` another
site's signature under it. Whoever reads one here refuses anything else that it might say: what one
member signs, all others keep.

    >>> from fedward.common.audit.chain import Head
    >>> from fedward.common.identity import PrivateKey
    >>> north, south = PrivateKey.generate(), PrivateKey.generate()
    >>> said = state_end("north", Head(7, "a" * 64), north)
    >>> signed = countersign("south", Seen("north", Head(7, "a" * 64), said), south)
    >>> read_countersignature(signed, "south", south.public).before
    ()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedward.common.audit.chain import Head
from fedward.common.errors import IdentityError
from fedward.common.statements import (
    COUNTERSIGNATURE,
    LEDGER_HEAD,
    Signer,
    Verifier,
    claims,
    read_statement,
    state,
)

LARGEST_END: Final = 1000
"""Bytes of the statement of an end."""
MOST_BEFORE: Final = 4
"""Earlier statements that go along with a signature."""
LARGEST: Final = (MOST_BEFORE + 3) * LARGEST_END
"""Bytes of a countersignature: statements in it are quoted."""


@dataclass(frozen=True)
class Seen:
    """An end of a ledger as another site has seen it.

    Attributes:
        site: whose ledger.
        head: the end.
        statement: the site's own words for it.
        before: those that the same witness had signed before, the newest first, at most
            `MOST_BEFORE`: a ledger that went another way and grew past what it was is told by them.
    """

    site: str
    head: Head
    statement: str
    before: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All that the site has said, by this."""
        return (self.statement, *self.before)


def state_end(site: str, head: Head, key: Signer) -> str:
    """Sign the end of the own ledger."""
    return state(LEDGER_HEAD, site, head.to_dict(), key).decode()


def read_end(statement: str, site: str, key: Verifier) -> Head:
    """Check a site's statement of its ledger's end.

    Raises:
        IdentityError: it is none by that site, or says anything else.
        StateError: it names no end.
    """
    data = _sized(statement, LARGEST_END)
    return _end(read_statement(data, LEDGER_HEAD, site, key), {"length", "hash"})


def countersign(witness: str, seen: Seen, key: Signer) -> str:
    """Sign the end of another site's ledger."""
    content = {
        "site": seen.site,
        **seen.head.to_dict(),
        "statement": seen.statement,
        "before": list(seen.before),
    }
    return state(COUNTERSIGNATURE, witness, content, key).decode()


def read_countersignature(text: str, witness: str, key: Verifier) -> Seen:
    """Check that a site signed an end; what the owner said in it is not checked, see `read_end`.

    Raises:
        IdentityError: it is none by that site, or says anything else.
        StateError: it names no end.
    """
    return _seen(read_statement(_sized(text, LARGEST), COUNTERSIGNATURE, witness, key))


def claimed(text: str) -> Seen:
    """What a countersignature says, whoever made it.

    Raises:
        IdentityError: it is none.
        StateError: it names no end.
    """
    return _seen(claims(_sized(text, LARGEST)))


def claimed_end(statement: str) -> Head:
    """The end that a statement names, whoever made it.

    Raises:
        IdentityError: it is none.
        StateError: it names no end.
    """
    return _end(claims(_sized(statement, LARGEST_END)), {"length", "hash"})


def _seen(content: dict[str, Any]) -> Seen:
    head = _end(content, {"site", "length", "hash", "statement", "before"})
    site, statement, before = (content[key] for key in ("site", "statement", "before"))
    if not isinstance(before, list) or len(before) > MOST_BEFORE:
        raise _strange()
    words: Sequence[object] = (site, statement, *before)
    if not all(isinstance(text, str) and len(text) <= LARGEST_END for text in words):
        raise _strange()
    return Seen(site, head, statement, tuple(before))


def _end(content: dict[str, Any], keys: set[str]) -> Head:
    if set(content) != keys:
        raise _strange()
    return Head.read(content)


def _sized(text: str, most: int) -> bytes:
    data = text.encode()
    if len(data) > most:
        raise _strange()
    return data


def _strange() -> IdentityError:
    return IdentityError(
        "a statement about a ledger says more or less than it must",
        hint="check that both sides run the same version of fedward",
    )
