"""A body that arrives piece by piece, over one connection or several: hashed as it comes.

What was received before a connection broke, or before this process was killed, stays in
`NAME.part`; the sender goes on from `offset`. Only a body that is whole and has the announced
SHA-256 gets its name.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from fedward.common.errors import LinkError
from fedward.common.files import output_error
from fedward.common.wire.body import BLOCK

_HINT = "send it again from the start"


class Incoming:
    """One body on its way in.

    Args:
        path: what it will be called when it is whole.
        sha256: announced by the signed header.
        size: announced by the signed header, in bytes.

    Raises:
        OutputError: the disk refuses.
    """

    def __init__(self, path: Path, *, sha256: bytes, size: int) -> None:
        self.path = path
        self._sha256 = sha256
        self._size = size
        self._part = path.with_name(path.name + ".part")
        self._digest = hashlib.sha256()
        self.offset = 0
        """Bytes that are here."""
        self._file = -1
        try:
            self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._take_up()
        except OSError as error:
            self.close()
            raise output_error(path, error) from error

    def _take_up(self) -> None:
        """Hash what an earlier connection left."""
        while chunk := os.pread(self._file, BLOCK, self.offset):
            self._digest.update(chunk)
            self.offset += len(chunk)
        if self.offset > self._size:
            self._restart()

    def _restart(self) -> None:
        os.ftruncate(self._file, 0)
        self._digest = hashlib.sha256()
        self.offset = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Add a chunk that begins at `offset`; what is here already is skipped.

        Raises:
            LinkError: there is a gap, or more than was announced.
            OutputError: the disk refuses.
        """
        if offset > self.offset:
            raise LinkError("a piece of a message is missing", hint=_HINT)
        fresh = memoryview(data)[self.offset - offset :]
        if self.offset + len(fresh) > self._size:
            raise LinkError("a message is longer than it said", hint=_HINT)
        try:
            while fresh:
                count = os.pwrite(self._file, fresh, self.offset)
                self._digest.update(fresh[:count])
                self.offset += count
                fresh = fresh[count:]
        except OSError as error:
            raise output_error(self.path, error) from error

    def finish(self) -> Path:
        """Give the whole body its name.

        Raises:
            LinkError: it is not whole, or not what was announced; then nothing of it is kept.
            OutputError: the disk refuses.
        """
        if self.offset < self._size:
            raise LinkError("a message ended too early", hint="go on where it stopped")
        if self._digest.digest() != self._sha256:
            self._restart()
            raise LinkError("a message is not what its sender signed", hint=_HINT)
        try:
            self._part.replace(self.path)
        except OSError as error:
            raise output_error(self.path, error) from error
        self.close()
        return self.path

    def close(self) -> None:
        """Stop for now; what is here stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Forget what came."""
        self.close()
        with suppress(OSError):
            self._part.unlink()
