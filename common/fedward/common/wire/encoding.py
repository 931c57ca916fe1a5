"""Deflate for bodies that shrink: sums and tables do, trained weights do not.

A sample decides. Decoding stops at the announced size: a small message cannot fill a disk.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedward.common.errors import LinkError
from fedward.common.files import output_error
from fedward.common.wire.body import BLOCK, Written

DEFLATE = "deflate"
PLAIN = ""
ENCODINGS = frozenset({PLAIN, DEFLATE})
"""How a body may travel."""
_SAMPLE = 16 << 10
_WORTH_IT = 0.8
_SMALLEST = 4 << 10


def compresses(path: Path) -> bool:
    """Whether the middle of a file shrinks enough to pay for the work.

    Raises:
        LinkError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < _SMALLEST:
                return False
            file.seek(max(0, size // 2 - _SAMPLE // 2))
            sample = file.read(_SAMPLE)
    except OSError as error:
        raise LinkError("a message's body cannot be read", hint="check the disk") from error
    return len(zlib.compress(sample, 1)) < _WORTH_IT * len(sample)


def deflate(source: Path, target: Path) -> Written:
    """Compress a file into another.

    Raises:
        OutputError: the disk refuses.
    """
    digest, size, packer = hashlib.sha256(), 0, zlib.compressobj(1)
    with _written(target) as outside, source.open("rb") as inside:
        while chunk := inside.read(BLOCK):
            packed = packer.compress(chunk)
            digest.update(packed)
            size += outside.write(packed)
        packed = packer.flush()
        digest.update(packed)
        size += outside.write(packed)
    return Written(target, digest.digest(), size)


def inflate(source: Path, target: Path, *, plain_size: int) -> None:
    """Decompress a file into another, which must come out at exactly `plain_size` bytes.

    Raises:
        LinkError: it is not deflate, or has another size; then there is no target.
        OutputError: the disk refuses.
    """
    unpacker, left = zlib.decompressobj(), plain_size
    with _written(target) as outside, source.open("rb") as inside:
        while chunk := inside.read(BLOCK):
            if unpacker.eof:
                raise _wrong()
            while chunk:
                try:
                    plain = unpacker.decompress(chunk, min(left, BLOCK) + 1)
                except zlib.error as error:
                    raise _wrong() from error
                left -= outside.write(plain)
                if left < 0:
                    raise _wrong()
                chunk = unpacker.unconsumed_tail
        if left or not unpacker.eof or unpacker.unused_data:
            raise _wrong()


@contextmanager
def _written(target: Path) -> Iterator[BinaryIO]:
    """A file to write into, that is gone again if that fails."""
    try:
        with target.open("wb") as outside:
            yield outside
    except BaseException as error:
        with suppress(OSError):
            target.unlink()
        if isinstance(error, OSError):
            raise output_error(target, error) from error
        raise


def _wrong() -> LinkError:
    return LinkError("a message does not unpack to what it said", hint="send it again")
