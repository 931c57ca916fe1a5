"""Bodies of tasks on disk: what is sent to many sites is written once."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from fedward.common.files import output_error
from fedward.common.wire.body import Written, write_body
from fedward.common.wire.encoding import DEFLATE, PLAIN, compresses, deflate
from fedward.server.link.records import content_of


@dataclass(frozen=True)
class Packed:
    """A body, ready to travel.

    Attributes:
        written: as it travels.
        encoding: of it.
        plain_size: bytes after decoding.
    """

    written: Written
    encoding: str
    plain_size: int


class Outgoing:
    """The bodies of one call of `send_and_receive`.

    Args:
        folder: where they are written; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        self._folder = folder
        self._packed: dict[int, tuple[RecordDict, Packed]] = {}

    def pack(self, content: RecordDict) -> Packed:
        """The body of a message; the same content object is written only once.

        Raises:
            LinkError: something in it does not travel.
            OutputError: the disk refuses.
        """
        # The content is kept beside its body: its identity is its name for as long as it lives.
        known = self._packed.get(id(content))
        if known is None:
            known = self._packed[id(content)] = (content, self._write(content))
        return known[1]

    def _write(self, content: RecordDict) -> Packed:
        path = self._folder / f"task-{secrets.token_hex(8)}"
        plain = write_body(path, content_of(content))
        if not compresses(path):
            return Packed(plain, PLAIN, plain.size)
        packed = deflate(path, path.with_suffix(".deflate"))
        with suppress(OSError):
            path.unlink()
        return Packed(packed, DEFLATE, plain.size)

    def remove(self) -> None:
        """Nobody fetches these any more; a fetch that goes on has its file open."""
        for _, packed in self._packed.values():
            with suppress(OSError):
                packed.written.path.unlink()
        self._packed = {}
