"""Refusals of the link: in the log, for the audit log, and as what a peer is told.

The same refusal of the same peer is written at once and then counted, and so are refusals of one
peer that differ ever anew: an attacker must not be able to fill a disk with log lines.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from fedward.common.errors import FedwardError, IdentityError, LinkError, StateError

_log = logging.getLogger(__name__)
_AGAIN_S = 10.0
_MOST = 1024
_MOST_OF_ONE = 16
_LONGEST_REASON = 300
FURTHER = "refused for yet another reason, one of many"

Facts = dict[str, Any]
OnRefusal = Callable[[Facts], None]


class BusyError(LinkError):
    """A peer calls more than it may."""


class SessionError(LinkError):
    """A call of no session, or of one that is over: the site must greet again."""


class EndedError(LinkError):
    """We end a connection in good order: nobody is refused."""


class SilenceError(LinkError):
    """Nothing came for too long."""


_STATUS: Mapping[type[FedwardError], grpc.StatusCode] = {
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SessionError: grpc.StatusCode.FAILED_PRECONDITION,
    EndedError: grpc.StatusCode.UNAVAILABLE,
    SilenceError: grpc.StatusCode.DEADLINE_EXCEEDED,
    IdentityError: grpc.StatusCode.PERMISSION_DENIED,
    StateError: grpc.StatusCode.NOT_FOUND,
    LinkError: grpc.StatusCode.INVALID_ARGUMENT,
}


def status_of(error: FedwardError) -> grpc.StatusCode:
    """What a gRPC call that is refused ends with."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.INTERNAL


def told(error: FedwardError) -> dict[str, Any]:
    """The body of a refusal."""
    return {"code": error.exit_code, "problem": error.problem, "hint": error.hint}


@dataclass
class _Count:
    logged_at: float
    times: int = 0
    facts: Facts | None = None


class Refusals:
    """Notes refusals; may be called from any thread.

    Args:
        on_refusal: is given the facts of each that is logged, in the thread that refused; it must
            not wait.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        on_refusal: OnRefusal = lambda _facts: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_refusal = on_refusal
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], _Count] = {}

    def note(self, reason: str, *, peer: str, name: str, error: str = LinkError.__name__) -> None:
        """A peer was refused.

        Args:
            reason: one line; nothing private.
            peer: network address, as far as it is known.
            name: in the roster, as far as it is known.
            error: name of the error's class.
        """
        now, host, reason = self._clock(), _host(peer), reason[:_LONGEST_REASON]
        with self._lock:
            due = self._due(now)
            known = sum(others[1:] == (host, name) for others in self._counts)
            if known >= _MOST_OF_ONE and (reason, host, name) not in self._counts:
                reason = FURTHER
            facts: Facts = {"reason": reason, "peer": peer, "name": name, "error": error}
            key = (reason, host, name)
            if key in self._counts:
                count = self._counts[key]
                count.times += 1
                count.facts = facts
            elif len(self._counts) < _MOST:
                self._counts[key] = _Count(now)
                due.append(facts)
        for one in due:
            self._write(one)

    def flush(self) -> None:
        """Write what was only counted so far."""
        with self._lock:
            due = self._due(float("inf"))
        for one in due:
            self._write(one)

    def _due(self, now: float) -> list[Facts]:
        old = [key for key, count in self._counts.items() if now - count.logged_at >= _AGAIN_S]
        counts = [self._counts.pop(key) for key in old]
        return [{**count.facts, "times": count.times} for count in counts if count.facts]

    def _write(self, facts: Facts) -> None:
        _log.warning("refused", extra={"facts": facts})
        self._on_refusal(facts)


def _host(peer: str) -> str:
    """An address without its port, which is another one for every connection."""
    return peer.rpartition(":")[0] or peer
