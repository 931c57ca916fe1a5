"""Signed messages: a header that names everything, its signature, and the body's hash in it.

Guarantee:
    What `unseal` accepts was signed, as it is, by the holder of the key that it is given. Whether
    it is new, and meant for us, is what `session` checks.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from fedward.common.audit.chain import LONGEST_LOG
from fedward.common.errors import LinkError
from fedward.common.wire import kinds, strict
from fedward.common.wire.encoding import ENCODINGS
from fedward.common.wire.link_pb2 import Header, Signed

_HASH_SIZE = hashlib.sha256().digest_size
_DOMAIN = b"fedward link message v1\0"
"""Keeps a signature over a message from being one over anything else."""
_LARGEST_HEADER = 8 << 10


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


def seal(header: Header, signer: Signer, body: bytes = b"") -> Signed:
    """Sign a header; of a small kind, `body` goes along and the header is given its hash."""
    if header.kind in kinds.SMALL:
        header.body_sha256 = hashlib.sha256(body).digest()
        header.body_size = header.plain_size = len(body)
    raw = header.SerializeToString(deterministic=True)
    return Signed(header=raw, signature=signer.sign(_DOMAIN + raw), body=body)


def peek(signed: Signed) -> Header:
    """The header, before its signature is checked: only to find out whose key to check it with.

    Raises:
        LinkError: it is no header.
    """
    if len(signed.header) > _LARGEST_HEADER:
        raise LinkError("a message has a header that is too long", hint=_HINT)
    try:
        return Header.FromString(signed.header)
    except DecodeError as error:
        raise LinkError("a message has no header that can be read", hint=_HINT) from error


def unseal(signed: Signed, verifier: Verifier) -> Header:
    """Check a message and give its header.

    Raises:
        IdentityError: the signature is not by that key.
        LinkError: kind, size or body are not what the rules allow.
    """
    header = peek(signed)
    verifier.verify(signed.signature, _DOMAIN + signed.header)
    if header.protocol != kinds.PROTOCOL:
        raise LinkError(
            f"a message speaks version {header.protocol} of the link, this is "
            f"version {kinds.PROTOCOL}",
            hint="install the same version of fedward on both sides",
        )
    _check_heads(header)
    if header.kind in kinds.SMALL:
        _check_small(header, signed.body)
    elif header.kind in (kinds.TASK, kinds.REPLY):
        _check_large(header, signed.body)
    else:
        raise LinkError("a message is of a kind that is not known", hint=_HINT)
    return header


def _check_heads(header: Header) -> None:
    """Ends of logs are put on record as they come: by a number and a hash of their own size."""
    for head in (header.audit, header.ledger, header.witnessed):
        sizes = (_HASH_SIZE,) if head.length else (0, _HASH_SIZE)
        if head.length >= LONGEST_LOG or len(head.hash) not in sizes:
            raise LinkError("a message names an end of a log that can be none", hint=_HINT)


def _check_small(header: Header, body: bytes) -> None:
    if len(body) > kinds.LARGEST_SMALL_BODY or len(body) != header.body_size:
        raise LinkError("a message has a body of the wrong size", hint=_HINT)
    if hashlib.sha256(body).digest() != header.body_sha256:
        raise LinkError("a message is not what its sender signed", hint="send it again")


def _check_large(header: Header, body: bytes) -> None:
    sizes = (header.body_size, header.plain_size)
    if body or not all(0 < size <= kinds.LARGEST_BODY for size in sizes):
        raise LinkError("a message has a body that may not travel", hint=_HINT)
    if header.encoding not in ENCODINGS or (not header.encoding and sizes[0] != sizes[1]):
        raise LinkError("a message has a body in a form that is not known", hint=_HINT)
    if len(header.body_sha256) != _HASH_SIZE:
        raise LinkError("a message does not name its body", hint=_HINT)


def message_id(signed: Signed) -> bytes:
    """What names a message: SHA-256 of its header as it was signed."""
    return hashlib.sha256(signed.header).digest()


def pack(value: dict[str, Any]) -> bytes:
    """A small body: JSON."""
    return strict.dumps(value)


def unpack(body: bytes) -> dict[str, Any]:
    """The reverse of `pack`.

    Raises:
        LinkError: it is no JSON object.
    """
    try:
        value = strict.loads(body or b"{}")
    except ValueError as error:
        raise LinkError("a message's body cannot be read", hint=_HINT) from error
    if not isinstance(value, dict):
        raise LinkError("a message's body cannot be read", hint=_HINT)
    return value


_HINT = "check that both sides run the same version of fedward"


def task_key(*, run: str, round_number: int, action: str, site: str, body_sha256: bytes) -> str:
    """What names a task on both sides, in every session: the same work has the same key.

    Args:
        run: name of the run.
        round_number: as in the header.
        action: as in the header.
        site: name of the site that is asked.
        body_sha256: of the task's body as it travels, as in the header.

    Returns:
        64 hexadecimal digits.
    """
    parts = json.dumps([run, round_number, action, site, body_sha256.hex()])
    return hashlib.sha256(parts.encode()).hexdigest()
