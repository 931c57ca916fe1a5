"""What happened, on the site's audit log; and the end of the server's log, put on record with it.

Every entry of a release or a refusal names the end of the server's audit log as it came with the
task: a server that later shows another history contradicts what the site has signed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from fedward.common.audit import AuditLog, Head
from fedward.common.audit.caused import Caused
from fedward.common.errors import LinkError
from fedward.common.wire import link_pb2
from fedward.common.wire.message import peek
from fedward.common.wire.session import Heads

SERVER = "server"


class Record:
    """The audit log of a running daemon; may be used from any thread.

    Args:
        audit: the log; somebody else closes it.
        on_left_out: is told the kind of each entry that the server caused and that is left out.
    """

    def __init__(
        self, audit: AuditLog, *, on_left_out: Callable[[str], None] = lambda _kind: None
    ) -> None:
        self._audit = audit
        self._caused = Caused(audit, on_left_out=on_left_out)
        self._lock = threading.Lock()
        self._seen: link_pb2.Head | None = None
        self._ledger: Head | None = None

    def note(self, kind: str, **facts: Any) -> Head:
        """Put something on record, durably. Nothing private.

        Raises:
            OutputError: the disk refuses.
            StateError: the log was changed by something else.
        """
        return self._audit.append(kind, **facts)

    def note_caused(self, kind: str, *, by: str = SERVER, once: bool = False, **facts: Any) -> None:
        """Put on record what the other side can bring about at will: not too often, see `Caused`.

        Raises:
            OutputError: the disk refuses.
            StateError: the log was changed by something else.
        """
        self._caused.append(kind, by=by, once=once, **facts)

    def close(self) -> None:
        """Put on record what was left out so far; the log stays open.

        Raises:
            OutputError: the disk refuses.
        """
        self._caused.close()

    def note_task(self, kind: str, evidence: bytes, *, at_will: bool = False, **facts: Any) -> None:
        """Put on record what became of a task, with the end of the server's log that came along.

        Args:
            kind: what became of it.
            evidence: the server's signed words.
            at_will: whether the server can bring that about as often as it likes.
            facts: what else there is to say.
        """
        theirs = _server_head(evidence)
        if theirs is not None:
            facts["server_log"] = {"length": theirs.length, "hash": theirs.hash.hex()}
        (self.note_caused if at_will else self.note)(kind, **facts)
        with self._lock:
            if theirs is not None and theirs.length >= (self._seen.length if self._seen else 0):
                self._seen = theirs

    def ledger_at(self, head: Head) -> None:
        """The ledger has this end now."""
        with self._lock:
            self._ledger = head

    def heads(self) -> Heads:
        """What goes along with every message: ends of our logs, and of the server's as seen."""
        own = self._audit.head
        with self._lock:
            ledger, seen = self._ledger, self._seen
        return Heads(
            audit=link_pb2.Head(length=own.length, hash=own.digest),
            ledger=link_pb2.Head(length=ledger.length, hash=ledger.digest) if ledger else None,
            witnessed=seen,
        )


def _server_head(evidence: bytes) -> link_pb2.Head | None:
    try:
        header = peek(link_pb2.Signed.FromString(evidence))
    except (LinkError, DecodeError):
        return None
    return header.audit if header.HasField("audit") else None
