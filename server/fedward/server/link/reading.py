"""Pieces of tasks' bodies, read and serialised once for all the sites that fetch them together."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedward.common.wire import kinds
from fedward.common.wire.pieces import chunk

_MOST: Final = 4
"""Pieces that are kept, over all runs: 2 MB. Who is further behind has his read for himself."""


class Reading:
    """The pieces that were read last, while anybody fetches. For the event loop only."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int], tuple[bytes, int]] = OrderedDict()
        self._open = 0

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """A body, open for reading.

        Raises:
            OSError: it is not there.
        """
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open += 1
        try:
            yield file
        finally:
            os.close(file)
            self._open -= 1
            if not self._open:
                self._kept.clear()

    def piece(self, path: Path, file: int, position: int) -> tuple[bytes, int]:
        """A serialised `Chunk`, and how many bytes of the body are in it: 0 at its end.

        Args:
            path: of a body that is never changed, and whose name is never used again.
            file: the same, open.
            position: where the piece begins.
        """
        found = self._kept.get((path, position))
        if found is None:
            data = os.pread(file, kinds.CHUNK, position)
            found = self._kept[path, position] = chunk(position, data), len(data)
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return found
