"""Replies on disk, until their round is checkpointed: what a killed server need not ask for again.

A reply's files begin with its round and its task's key:

    000003-KEY-HASH.body.part   on its way in
    000003-KEY-HASH.body        whole and verified, as it travelled
    000003-KEY-HASH.plain       the same, decoded, if it came encoded
    000003-KEY.signed           the signed header; written last, so its reply is there
    000003-KEY.torn             the site answered twice, and not the same: none of it counts

Nothing here is fsynced: a reply that a power cut takes is asked for again, and the site, which
keeps it until the round is over, sends the same.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from fedward.common.errors import LinkError
from fedward.common.files import output_error
from fedward.common.wire.encoding import DEFLATE, inflate
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.spool import Incoming
from fedward.server.link.tasks import Answer, Task

TWICE = "answered twice, and not the same"
_SHORT = 16
_ROUND_DIGITS = 6


@dataclass(frozen=True)
class Kept:
    """A reply that is here.

    Attributes:
        answer: what the run is given.
        sha256: of the body as it travelled.
    """

    answer: Answer
    sha256: bytes


class Shelf:
    """The replies of one run.

    Args:
        folder: of the run; made if it is not there.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        self._folder = folder

    def incoming(self, task: Task, *, sha256: bytes, size: int) -> Incoming:
        """Where a reply is written; takes up what is there. May read all of it: not for the loop.

        Of one task only one unfinished reply is kept: a site that announces ever others, and
        finishes none, fills no disk.

        Raises:
            OutputError: the disk refuses.
        """
        wanted = self._body(task, sha256)
        begin = self._file(task, "-").name
        for other in self._folder.glob("*.body.part"):  # any other pattern would be kept, compiled
            if other.name.startswith(begin) and other.name != wanted.name + ".part":
                with suppress(OSError):
                    other.unlink()
        return Incoming(wanted, sha256=sha256, size=size)

    def offset(self, task: Task, *, sha256: bytes, size: int) -> int:
        """How many bytes of a reply are here."""
        part = self._body(task, sha256)
        with suppress(OSError):
            return min(part.with_name(part.name + ".part").stat().st_size, size)
        return 0

    def keep(self, task: Task, header: Header, evidence: bytes) -> Kept:
        """Put the signed header beside a body that is whole; decodes it first.

        Raises:
            OutputError: the disk refuses.
        """
        kept = self._answer(task, header, evidence)
        target = self._file(task, ".signed")
        partial = target.with_name(target.name + ".part")
        try:
            partial.write_bytes(evidence)
            partial.replace(target)
        except OSError as error:
            raise output_error(target, error) from error
        return kept

    def tear(self, task: Task) -> None:
        """Note that a site gave two different replies."""
        path = self._file(task, ".torn")
        try:
            path.touch()
        except OSError as error:
            raise output_error(path, error) from error

    def recall(self, task: Task) -> Kept | None:
        """The reply to a task that an earlier process kept, if it is unharmed."""
        signed = self._file(task, ".signed")
        if not signed.exists():
            return None
        try:
            evidence = signed.read_bytes()
            header = Header.FromString(Signed.FromString(evidence).header)
            with self._body(task, header.body_sha256).open("rb") as file:
                unharmed = hashlib.file_digest(file, "sha256").digest() == header.body_sha256
        except (OSError, DecodeError):
            unharmed = False
        if not unharmed:
            with suppress(OSError):
                signed.unlink()
            return None
        if self._file(task, ".torn").exists():
            return Kept(torn(task, evidence), header.body_sha256)
        return self._answer(task, header, evidence)

    def forget(self, task: Task) -> None:
        """Not keep the reply to a task: it is to be asked anew."""
        with suppress(OSError):
            self._file(task, ".signed").unlink()

    def forget_before(self, number: int) -> None:
        """Remove what belongs to rounds before one."""
        for path in self._folder.iterdir():
            begin = path.name[:_ROUND_DIGITS]
            if begin.isdecimal() and int(begin) < number:
                with suppress(OSError):
                    path.unlink()

    def _answer(self, task: Task, header: Header, evidence: bytes) -> Kept:
        body = self._body(task, header.body_sha256)
        if header.encoding == DEFLATE:
            plain = body.with_suffix(".plain")
            try:
                inflate(body, plain, plain_size=header.plain_size)
            except LinkError as error:
                refusal = (error.exit_code, error.problem)
                answer = Answer(task.site, task.key, None, refusal, evidence)
                return Kept(answer, header.body_sha256)
            body = plain
        return Kept(Answer(task.site, task.key, body, None, evidence), header.body_sha256)

    def _file(self, task: Task, suffix: str) -> Path:
        return self._folder / f"{task.round:0{_ROUND_DIGITS}d}-{task.key}{suffix}"

    def _body(self, task: Task, sha256: bytes) -> Path:
        return self._file(task, f"-{sha256.hex()[:_SHORT]}.body")


def torn(task: Task, evidence: bytes) -> Answer:
    """The answer of a site that gave two different ones."""
    return Answer(task.site, task.key, None, (LinkError.exit_code, TWICE), evidence)
