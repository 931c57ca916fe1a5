r"""The audit log: one line of JSON per entry, chained, signed, and on the disk before it counts.

Several processes may write to one log (the service and a command beside it); each takes a lock and
continues from what the others wrote. An entry that a crash cut off never happened: the next process
removes the piece and records that it did.

    >>> import tempfile
    >>> from fedward.common.identity.keys import PrivateKey
    >>> from fedward.common.audit.verify import verify_log
    >>> key = PrivateKey.generate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "audit.log"
    ...     with AuditLog.open(path, key) as log:
    ...         head = log.append("approve", study="ab" * 32, by="Dr Example")
    ...     verify_log(path, key.public, expected=head).ok
    True
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from fedward.common.audit.chain import Head, extend
from fedward.common.audit.entries import (
    BEGIN,
    DOMAIN,
    HINT,
    KEY,
    START,
    TAKEN,
    TORN,
    Entry,
    parse_entry,
    read_entries,
)
from fedward.common.errors import StateError
from fedward.common.files import output_error
from fedward.common.identity.keys import PublicKey

Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


class Signer(Protocol):
    """Holds a private key; `identity.PrivateKey` is one."""

    @property
    def public(self) -> PublicKey:
        """The key that verifies."""
        ...

    def sign(self, data: bytes) -> bytes:
        """A signature over `data`."""
        ...


class AuditLog:
    """A log open for writing; safe to share between threads, and between processes.

    Args:
        path: of the file.
        signer: signs what this process appends.
        clock: gives the time in UTC.
        successor: finds the key with a fingerprint, when another process changed the log's key.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        clock: Clock | None = None,
        successor: Callable[[str], Signer] | None = None,
    ) -> None:
        self.path = path
        self._signer = signer
        self._successor = successor
        self._clock = clock or _now
        self._lock = threading.Lock()
        self._head = START
        self._key = ""  # fingerprint of the key that signs the next entry
        self._size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise output_error(path, error) from error

    @classmethod
    def open(
        cls,
        path: Path,
        signer: Signer,
        clock: Clock | None = None,
        successor: Callable[[str], Signer] | None = None,
    ) -> Self:
        """Open a log, or begin one; its chain is checked, its signatures are not (`verify_log`).

        Raises:
            StateError: the chain is broken, or another key signs this log.
            OutputError: the disk refuses.
        """
        log = cls(path, signer, clock, successor)
        try:
            with log._locked():
                if log._head == START:
                    log._key = signer.public.fingerprint
                    log._write(BEGIN, _key_facts(signer))
                log._check_key()
        except BaseException:
            log.close()
            raise
        return log

    @property
    def head(self) -> Head:
        """The end of the log, as far as this process has seen it."""
        return self._head

    def append(self, kind: str, **facts: Any) -> Head:
        """Add an entry; when this returns it is signed and on the disk.

        Raises:
            StateError: another process broke the chain, or changed the key.
            OutputError: the disk refuses; then nothing was added.
        """
        with self._locked():
            self._check_key()
            return self._write(kind, facts)

    def change_key(self, signer: Signer) -> Head:
        """Sign with another key from now on: the old one vouches for it, then it signs itself.

        If another process made the change already, this one only follows it.

        Raises:
            StateError: another process changed to a third key.
            OutputError: the disk refuses.
        """
        with self._locked():
            if self._key != signer.public.fingerprint:
                self._check_key()
                self._write(KEY, _key_facts(signer))
                self._signer = signer
                self._write(TAKEN, {"fingerprint": self._key})
            self._signer = signer
            return self._head

    def refresh(self) -> Head:
        """The head, with what other processes added."""
        with self._locked():
            return self._head

    def entries(self) -> Iterator[Entry]:
        """All entries, oldest first.

        Raises:
            StateError: one cannot be read.
        """
        return read_entries(self.path)

    def holds(self, head: Head) -> bool:
        """Whether this log, at that length, had that hash: no entry up to there has changed."""
        if head.length == 0:
            return head == START
        return any(entry.seq == head.length and entry.hash == head.hash for entry in self.entries())

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
            except OSError as error:
                raise output_error(self.path, error) from error
            try:
                self._catch_up()
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Read what other processes, or earlier ones, wrote."""
        size = os.fstat(self._file).st_size
        if size < self._size:
            raise StateError("the audit log became shorter", hint=HINT)
        if size == self._size:
            return
        added = os.pread(self._file, size - self._size, self._size)
        whole, _, torn = added.rpartition(b"\n")
        for line in whole.split(b"\n") if whole else ():
            self._follow(line)
        self._size = size - len(torn)
        if torn:
            os.ftruncate(self._file, self._size)
            if self._head != START and self._key == self._signer.public.fingerprint:
                self._write(TORN, {"bytes": len(torn)})

    def _write(self, kind: str, facts: dict[str, Any]) -> Head:
        time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        head = extend(self._head, {"time": time, "kind": kind, "facts": facts})
        signature = self._signer.sign(DOMAIN + head.digest).hex()
        entry = Entry(head.length, time, kind, facts, self._head.hash, head.hash, signature)
        data = entry.line + b"\n"
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(28, "short write")
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise output_error(self.path, error) from error
        self._size += len(data)
        self._advance(head, entry)
        return head

    def _follow(self, line: bytes) -> None:
        try:
            entry = parse_entry(line)
        except ValueError as error:
            raise StateError("the audit log has a line that is no entry", hint=HINT) from error
        after = extend(self._head, entry.content)
        if (entry.seq, entry.prev, entry.hash) != (after.length, self._head.hash, after.hash):
            raise StateError("the audit log's chain is broken", hint=HINT)
        self._advance(after, entry)

    def _advance(self, head: Head, entry: Entry) -> None:
        self._head = head
        if entry.kind in (BEGIN, KEY):
            self._key = str(entry.facts.get("fingerprint"))

    def _check_key(self) -> None:
        if self._key != self._signer.public.fingerprint and self._successor is not None:
            self._signer = self._successor(self._key)
        if self._key != self._signer.public.fingerprint:
            raise StateError(
                "the audit log is signed by another key",
                hint="restart, to use the key of this folder; or restore what belongs together",
            )


def _key_facts(signer: Signer) -> dict[str, Any]:
    return {"key": signer.public.pem, "fingerprint": signer.public.fingerprint}
