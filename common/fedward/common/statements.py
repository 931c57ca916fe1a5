"""Signed statements that outlive the connection they came over: offers, answers, heads, releases.

A statement is one line of canonical JSON. It is kept as it came, byte for byte, and anybody with
the signer's public key can check it years later, without the other side and without a network.

    >>> class Key:
    ...     def sign(self, data): return b"signed:" + data[-9:]
    ...     def verify(self, signature, data): assert signature == b"signed:" + data[-9:]
    >>> data = state("decision", "north", {"study": "ab", "choice": "approve"}, Key())
    >>> read_statement(data, "decision", "north", Key())["choice"]
    'approve'

Kinds and what they say:

    offer              study (hash), document (canonical JSON), consortium, at_ms
    decision           study (hash), choice (approve, refuse, withdraw), at_ms, and what else the
                       site's stewards put on record
    ledger-head        length, hash (hexadecimal): the end of the signer's own ledger
    countersignature   site, length, hash: the end of another site's ledger, as the signer saw it;
                       statement: that site's own words for it (a ledger-head), and before: those
                       that the signer had signed before them, or empty
    release            what is in a release folder
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from fedward.common.errors import IdentityError

OFFER: Final = "offer"
DECISION: Final = "decision"
LEDGER_HEAD: Final = "ledger-head"
COUNTERSIGNATURE: Final = "countersignature"
RELEASE: Final = "release"

LARGEST: Final = 8 << 20
"""Bytes that a statement may have."""
_DOMAIN = b"fedward statement v1\0"
"""Keeps a signature under a statement from being one under anything else."""


class Signer(Protocol):
    """Holds a private key; `identity.PrivateKey` is one."""

    def sign(self, data: bytes) -> bytes:
        """A signature over `data`."""
        ...


class Verifier(Protocol):
    """Holds a public key; `identity.PublicKey` is one."""

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if `signature` is one over `data` by this key.

        Raises:
            IdentityError: it is not.
        """
        ...


def state(kind: str, signer: str, content: Mapping[str, Any], key: Signer) -> bytes:
    """Sign a statement.

    Args:
        kind: one of the above.
        signer: our name in the roster.
        content: JSON.
        key: ours.

    Raises:
        ValueError: the content is no JSON.
    """
    said = {"kind": kind, "signer": signer, "content": dict(content)}
    signature = key.sign(_DOMAIN + _canonical(said)).hex()
    return _canonical({**said, "signature": signature})


def read_statement(data: bytes, kind: str, signer: str, key: Verifier) -> dict[str, Any]:
    """Check a statement and give its content.

    Args:
        data: as it came.
        kind: what it must be about.
        signer: who must have made it.
        key: the signer's, from the roster.

    Raises:
        IdentityError: it is no statement, of another kind, by somebody else, or changed.
    """
    said = _parse(data)
    signature = said.pop("signature")
    if (said["kind"], said["signer"]) != (kind, signer):
        raise IdentityError(f"this is no {kind} by {signer}", hint=_HINT)
    key.verify(bytes.fromhex(signature), _DOMAIN + _canonical(said))
    content: dict[str, Any] = said["content"]
    return content


def signer_of(data: bytes) -> str:
    """Who says to have made a statement: to find the key to check it with, and for nothing else.

    Raises:
        IdentityError: it is no statement.
    """
    return str(_parse(data)["signer"])


def claims(data: bytes) -> dict[str, Any]:
    """What a statement says, whoever made it: to sort it before it is checked, for nothing else.

    Raises:
        IdentityError: it is no statement.
    """
    content: dict[str, Any] = _parse(data)["content"]
    return content


def _parse(data: bytes) -> dict[str, Any]:
    try:
        if len(data) > LARGEST:
            raise ValueError("too long")
        said = json.loads(data)
        texts = (said["kind"], said["signer"], said["signature"])
        if set(said) != {"kind", "signer", "signature", "content"} or _canonical(said) != data:
            raise ValueError("not canonical")
        if not all(isinstance(text, str) for text in texts) or not isinstance(
            said["content"], dict
        ):
            raise TypeError("no statement")
        bytes.fromhex(said["signature"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IdentityError("a signed statement cannot be read", hint=_HINT) from error
    return dict(said)


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


_HINT = "do not rely on it; ask for it again"
