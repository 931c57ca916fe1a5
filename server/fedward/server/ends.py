"""How far the sites' logs were seen, in memory and in the registry: none of them goes back.

Guarantee:
    A site whose ledger or audit log is shorter than it was before, or another, is refused when it
    greets. (Later messages of a session may overtake each other: what is shorter there is old.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from fedward.common.audit.caused import Caused
from fedward.common.audit.chain import Head
from fedward.common.errors import StateError
from fedward.common.wire.link_pb2 import Header
from fedward.server.registry import LogHead, Registry

LEDGER = "ledger"
AUDIT = "audit"
STATED = "stated-ledger"
"""Log under which a ledger's end is kept with a statement that other sites can check."""
WENT_BACK = "log went back"
"""Kind of the entry about it."""


class Ends:
    """The ends of all sites' logs; may be used from any thread.

    Args:
        registry: where they are kept.
        caused: adds entries to the coordinator's log that sites cause.
    """

    def __init__(self, registry: Registry, caused: Caused) -> None:
        self._registry = registry
        self._caused = caused
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._ends: dict[tuple[str, str], Head] = {
            (head.site, head.log): Head(head.length, head.hash) for head in registry.heads()
        }

    def of(self, site: str, log: str) -> Head | None:
        """The end of a log as it is on record; None if it was never seen."""
        with self._lock:
            return self._ends.get((site, log))

    def shown(self, site: str, log: str) -> dict[str, Any] | None:
        """The same for JSON."""
        end = self.of(site, log)
        return None if end is None else end.to_dict()

    def see(self, site: str, header: Header, evidence: bytes, *, greeting: bool = False) -> None:
        """Take note of the ends that came with a message.

        Args:
            site: who sent it.
            header: of the message.
            evidence: the message as the site signed it.
            greeting: whether it is the first of a session, which no other can have overtaken.

        Raises:
            StateError: a log went back.
        """
        for log, head in ((LEDGER, header.ledger), (AUDIT, header.audit)):
            # An empty log says nothing yet, unless there was more of it before.
            if header.HasField(log) and (head.length or self.of(site, log) is not None):
                end = Head.of(head.length, head.hash)
                self.put(site, log, end, evidence, greeting=greeting)

    def put(
        self, site: str, log: str, end: Head, evidence: bytes, *, greeting: bool = False
    ) -> None:
        """Put one end on record; see `see`.

        Raises:
            StateError: the log went back.
        """
        with self._writing:
            known, by = self.of(site, log), f"{log} of {site}"
            if known == end:
                self._caused.settled(WENT_BACK, by=by)
                return
            if known is not None and known.length > end.length and not greeting:
                return
            try:
                self._registry.witness(
                    site, log, length=end.length, hash_=end.hash, evidence=evidence
                )
            except StateError:
                # The site's daemon comes back with it for as long as it stays like that.
                facts = {"site": site, "log": log, **end.to_dict()}
                self._caused.append(WENT_BACK, by=by, once=True, **facts)
                raise
            self._caused.settled(WENT_BACK, by=by)
            with self._lock:
                self._ends[site, log] = end

    def remember(self, heads: Iterable[LogHead]) -> None:
        """Take note of ends that were put on record with a round."""
        with self._lock:
            for head in heads:
                known = self._ends.get((head.site, head.log))
                if known is None or known.length < head.length:
                    self._ends[head.site, head.log] = Head(head.length, head.hash)
