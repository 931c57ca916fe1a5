"""Deflate for bodies that shrink: sums and tables do, trained weights do not.

A sample decides. Decoding stops at the announced size: a small message cannot fill a disk.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

from fedward.common.errors import LinkError
from fedward.common.files import output_error
from fedward.common.wire.body import BLOCK, Written

DEFLATE = "deflate"
PLAIN = ""
_SAMPLE = 64 << 10
_WORTH_IT = 0.8
_SMALLEST = 4 << 10


def compresses(path: Path) -> bool:
    """Whether the middle of a file shrinks enough to pay for the work."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < _SMALLEST:
            return False
        file.seek(max(0, size // 2 - _SAMPLE // 2))
        sample = file.read(_SAMPLE)
    return len(zlib.compress(sample, 1)) < _WORTH_IT * len(sample)


def deflate(source: Path, target: Path) -> Written:
    """Compress a file into another.

    Raises:
        OutputError: the disk refuses.
    """
    digest, size, packer = hashlib.sha256(), 0, zlib.compressobj(1)
    try:
        with source.open("rb") as inside, target.open("wb") as outside:
            while chunk := inside.read(BLOCK):
                packed = packer.compress(chunk)
                digest.update(packed)
                size += outside.write(packed)
            packed = packer.flush()
            digest.update(packed)
            size += outside.write(packed)
    except OSError as error:
        raise output_error(target, error) from error
    return Written(target, digest.digest(), size)


def inflate(source: Path, target: Path, *, plain_size: int) -> None:
    """Decompress a file into another, which must come out at exactly `plain_size` bytes.

    Raises:
        LinkError: it is not deflate, or has another size.
        OutputError: the disk refuses.
    """
    unpacker, left = zlib.decompressobj(), plain_size
    try:
        with source.open("rb") as inside, target.open("wb") as outside:
            while chunk := inside.read(BLOCK):
                while chunk:
                    plain = unpacker.decompress(chunk, min(left, BLOCK) + 1)
                    left -= outside.write(plain)
                    if left < 0:
                        raise _wrong()
                    chunk = unpacker.unconsumed_tail
    except zlib.error as error:
        raise _wrong() from error
    except OSError as error:
        raise output_error(target, error) from error
    if left or not unpacker.eof or unpacker.unused_data:
        raise _wrong()


def _wrong() -> LinkError:
    return LinkError("a message does not unpack to what it said", hint="send it again")
