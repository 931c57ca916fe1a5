"""Pieces of bodies are those of `link.proto`, byte for byte; what else may come is understood."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.wire.link_pb2 import Chunk, Part, Signed
from fedward.common.wire.pieces import Piece, chunk, part, read_chunk, read_part

OFFSETS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
SIZES = (0, 1, 127, 128, 16_383, 16_384, 1 << 19)


@given(offset=OFFSETS, data=st.binary(min_size=1, max_size=300))
def test_a_piece_is_written_as_protobuf_writes_it(offset: int, data: bytes) -> None:
    assert chunk(offset, data) == Chunk(offset=offset, data=data).SerializeToString()
    assert part(offset, data) == Part(chunk=Chunk(offset=offset, data=data)).SerializeToString()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 127, 128, 1 << 40])
def test_a_piece_is_read_as_it_was_written(offset: int, size: int) -> None:
    data = bytes(size)
    for found in (read_chunk(chunk(offset, data)), read_part(part(offset, data))):
        assert isinstance(found, Piece)
        assert (found.offset, bytes(found.data)) == (offset, data)


def test_a_piece_is_read_without_a_copy() -> None:
    raw = chunk(7, b"abc")
    assert read_chunk(raw).data.obj is raw
    raw = part(7, b"abc")
    found = read_part(raw)
    assert isinstance(found, Piece)
    assert found.data.obj is raw


def test_the_message_of_a_part_is_given() -> None:
    signed = Signed(header=b"header", signature=b"signature")
    assert read_part(Part(message=signed).SerializeToString()) == signed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x08\x05",
        b"\x12\x03abc\x08\x05",  # in another order
        b"\x08\x01\x08\x05\x12\x03abc",  # the last one counts
        b"\x08\x85\x00\x12\x83\x00abc",  # longer than it need be
        b"\x08" + b"\xff" * 9 + b"\x01\x12\x03abc",  # more than 63 bits
        b"\x12\x03abc\x1a\x01x",  # a field of a later version
        b"\x12\x01a\x12\x03abc",
    ],
)
def test_what_is_written_otherwise_is_read_as_protobuf_reads_it(raw: bytes) -> None:
    expected = Chunk.FromString(raw)
    found = read_chunk(raw)
    assert (found.offset, bytes(found.data)) == (expected.offset, expected.data)


@pytest.mark.parametrize("raw", [b"", b"\x12\x00", b"\x12\x02\x08\x05"])
def test_a_part_without_bytes_is_an_empty_piece(raw: bytes) -> None:
    found = read_part(raw)
    assert isinstance(found, Piece)
    assert not found.data


@given(raw=st.binary(max_size=40))
def test_nothing_is_understood_that_protobuf_does_not_understand(raw: bytes) -> None:
    try:
        expected = Chunk.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_chunk(raw)
    else:
        found = read_chunk(raw)
        assert (found.offset, bytes(found.data)) == (expected.offset, expected.data)


@given(raw=st.binary(max_size=40).map(lambda data: b"\x12" + data))
def test_no_part_is_understood_that_protobuf_does_not_understand(raw: bytes) -> None:
    try:
        expected = Part.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_part(raw)
    else:
        found = read_part(raw)
        if isinstance(found, Piece):
            assert (found.offset, bytes(found.data)) == (expected.chunk.offset, expected.chunk.data)
        else:
            assert found == expected.message


@pytest.mark.parametrize("raw", [b"\x12\x05abc", b"\x12", b"\x0a\x05", b"\xff" * 12])
def test_what_is_no_piece_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        read_chunk(raw)
    with pytest.raises(DecodeError):
        read_part(raw)
