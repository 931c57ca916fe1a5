"""Pieces of bodies as gRPC carries them: `Chunk`, and `Part` with one, without protobuf's copies.

The bytes are those of `link.proto`: either side may as well use the generated classes. But these
copy a piece several times on its way out and once more each time it is looked at; here it is copied
once to be sent, and not at all when it came. What is not written as `chunk` and `part` write it is
left to protobuf to understand or refuse.

    >>> read_chunk(chunk(5, b"abc")).data.tobytes(), Chunk.FromString(chunk(5, b"abc")).offset
    (b'abc', 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedward.common.wire.link_pb2 import Chunk, Part, Signed

_OFFSET: Final = 0x08
"""Field 1 of a `Chunk`, a number."""
_BYTES: Final = 0x12
"""Field 2, bytes: the data of a `Chunk`, the chunk of a `Part`."""
_LONGEST_NUMBER: Final = 10


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a body that came.

    Attributes:
        offset: where it belongs.
        data: its bytes, not copied.
    """

    offset: int
    data: memoryview


def chunk(offset: int, data: bytes) -> bytes:
    """A serialised `Chunk`."""
    return b"".join((_head(offset, data), data))


def part(offset: int, data: bytes) -> bytes:
    """A serialised `Part` with a chunk in it."""
    head = _head(offset, data)
    return b"".join((_field(_BYTES, len(head) + len(data)), head, data))


def read_chunk(raw: bytes) -> Piece:
    """The reverse of `chunk`.

    Raises:
        DecodeError: it is no `Chunk`.
    """
    return _plain(raw, 0) or _piece(Chunk.FromString(raw))


def read_part(raw: bytes) -> Piece | Signed:
    """The reverse of `part`, or the message that a part holds; an empty part is an empty piece.

    Raises:
        DecodeError: it is no `Part`.
    """
    if raw[:1] == bytes((_BYTES,)):
        length, at = _number(raw, 1)
        if at and length == len(raw) - at and (found := _plain(raw, at)) is not None:
            return found
    one = Part.FromString(raw)
    return one.message if one.WhichOneof("part") == "message" else _piece(one.chunk)


def _piece(one: Chunk) -> Piece:
    return Piece(one.offset, memoryview(one.data))


def _head(offset: int, data: bytes) -> bytes:
    before = _field(_OFFSET, offset) if offset else b""  # zero is not written
    return before + _field(_BYTES, len(data))


def _field(tag: int, number: int) -> bytes:
    written = bytearray((tag,))
    while number > 0x7F:
        written.append(0x80 | number & 0x7F)
        number >>= 7
    written.append(number)
    return bytes(written)


def _plain(raw: bytes, at: int) -> Piece | None:
    """A chunk from `at` to the end, if it is written the usual way."""
    offset = 0
    if raw[at : at + 1] == bytes((_OFFSET,)):
        offset, at = _number(raw, at + 1)
        if not at:
            return None
    if raw[at : at + 1] != bytes((_BYTES,)):
        return None
    length, at = _number(raw, at + 1)
    if not at or length != len(raw) - at:
        return None
    return Piece(offset, memoryview(raw)[at:])


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends, which is 0 if there is none of at most 63 bits."""
    found = 0
    for count, byte in enumerate(raw[at : at + _LONGEST_NUMBER - 1]):
        found |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return found, at + count + 1
    return 0, 0
