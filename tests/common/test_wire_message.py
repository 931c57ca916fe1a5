"""Signed messages: only what was signed, as it was signed, is accepted."""

from __future__ import annotations

import contextlib
import hashlib
import tracemalloc
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import IdentityError, LinkError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head, Header, Signed
from fedward.common.wire.message import message_id, pack, peek, seal, unpack, unseal


class Key:
    """A P-256 key, as signer and as verifier."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def verify(self, signature: bytes, data: bytes) -> None:
        try:
            self._key.public_key().verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise IdentityError("a signature does not fit", hint="ask who sent it") from error


KEY = Key()
BODY = b"x" * 40


def small(**fields: Any) -> Signed:
    return seal(Header(**{"protocol": 1, "kind": kinds.PROBE, **fields}), KEY, pack({"a": 1}))


def large(**fields: Any) -> Signed:
    digest = hashlib.sha256(BODY).digest()
    sizes = {"body_sha256": digest, "body_size": 40, "plain_size": 40}
    return seal(Header(**{"protocol": 1, "kind": kinds.TASK, **sizes, **fields}), KEY)


def test_what_was_signed_is_accepted() -> None:
    assert unseal(small(round=3), KEY).round == 3
    assert unseal(large(round=3), KEY).body_size == 40
    assert unseal(large(encoding="deflate", plain_size=90), KEY).plain_size == 90
    assert message_id(small(round=3)) == message_id(small(round=3))
    assert message_id(small(round=3)) != message_id(small(round=4))


@given(st.sampled_from(["header", "signature", "body"]), st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_noticed(where: str, position: int, flip: int) -> None:
    for message in (small(study="ab" * 32), large(run="r1")):
        part = bytearray(getattr(message, where) or b"\0")
        part[position % len(part)] ^= flip
        changed = Signed(**{"header": message.header, "signature": message.signature,
                            "body": message.body, where: bytes(part)})  # fmt: skip
        with pytest.raises((IdentityError, LinkError)):
            unseal(changed, KEY)


@pytest.mark.parametrize("which", ["audit", "ledger", "witnessed"])
def test_an_end_of_a_log_that_can_be_none_is_refused(which: str) -> None:
    """It is put on record: one that no database can hold would end a run for everybody."""
    for length, size in ((0, 0), (0, 32), (1, 32), ((1 << 63) - 1, 32)):
        assert unseal(small(**{which: Head(length=length, hash=bytes(size))}), KEY)
    for length, size in ((1 << 63, 32), ((1 << 64) - 1, 32), (1, 0), (1, 33), (0, 31)):
        for make in (small, large):
            with pytest.raises(LinkError, match="an end of a log that can be none"):
                unseal(make(**{which: Head(length=length, hash=bytes(size))}), KEY)


def test_another_key_is_noticed() -> None:
    with pytest.raises(IdentityError):
        unseal(small(), Key())


@pytest.mark.parametrize(
    "message",
    [
        small(protocol=2),
        small(protocol=0),
        small(kind="unheard-of"),
        small(kind=""),
        large(body_size=0),
        large(body_size=kinds.LARGEST_BODY + 1, plain_size=kinds.LARGEST_BODY + 1),
        large(encoding="deflate", plain_size=kinds.LARGEST_BODY + 1),
        large(encoding="deflate", plain_size=0),
        large(encoding="gzip"),
        large(plain_size=41),
        large(body_sha256=b"short"),
        small(run="r" * 9000),
    ],
)
def test_signed_but_not_allowed(message: Signed) -> None:
    with pytest.raises(LinkError):
        unseal(message, KEY)


def test_a_large_message_carries_no_body() -> None:
    message = large()
    message.body = BODY
    with pytest.raises(LinkError):
        unseal(message, KEY)


def test_a_small_body_has_a_limit() -> None:
    body = b" " * kinds.LARGEST_SMALL_BODY
    assert unseal(seal(Header(protocol=1, kind=kinds.PROBE), KEY, body), KEY)
    with pytest.raises(LinkError):
        unseal(seal(Header(protocol=1, kind=kinds.PROBE), KEY, body + b" "), KEY)


def test_another_version_is_answered_in_words() -> None:
    with pytest.raises(LinkError, match="speaks version 7 of the link, this is version 1: install"):
        unseal(small(protocol=7), KEY)


@given(st.binary(max_size=200), st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_are_accepted_or_refused(header: bytes, signature: bytes, body: bytes) -> None:
    message = Signed(header=header, signature=signature, body=body)
    with contextlib.suppress(LinkError):
        peek(message)
    with pytest.raises((IdentityError, LinkError)):
        unseal(message, KEY)
    signed = Signed(
        header=header, signature=KEY.sign(b"fedward link message v1\0" + header), body=body
    )
    with contextlib.suppress(IdentityError, LinkError):
        unseal(signed, KEY)


@given(st.binary(max_size=200))
def test_any_bytes_unpack_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(LinkError):
        assert isinstance(unpack(body), dict)


@pytest.mark.parametrize(
    "body", [b"[]", b"1", b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 90_000, b"\xff"]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(LinkError):
        unpack(body)
    assert unpack(b"") == {}
    assert unpack(pack({"ä": [1, 2.5, None]})) == {"ä": [1, 2.5, None]}


def test_unpacking_stays_in_proportion() -> None:
    body = b'{"a":[' + b"[]," * 300_000 + b"0]}"
    tracemalloc.start()
    try:
        unpack(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * len(body)
