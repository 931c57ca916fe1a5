"""Ends of the sites' logs, as they were seen; who signed them; and what happened, to runs too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedward.common.errors import StateError
from fedward.server.registry.facts import Countersignature, Event, LogHead
from fedward.server.registry.runs import RunRecords
from fedward.server.registry.tables import CountersignatureRow, EventRow, HeadRow

MOST_EVENTS = 1000
_WENT_ON = "run goes on"


class HeadRecords(RunRecords):
    """The part of the registry that notices a log that went back."""

    def witness(
        self, site: str, log: str, *, length: int, hash_: str, evidence: bytes = b""
    ) -> bool:
        """Put the end of a site's log on record.

        Args:
            site: whose.
            log: `ledger` or `audit`.
            length: entries.
            hash_: of the last entry, hexadecimal.
            evidence: what the site signed to say so.

        Returns:
            Whether it is further than what was on record.

        Raises:
            StateError: it is shorter than before, or of the same length and another: the log went
                back. The record stays as it is.
        """
        with self._changes() as session:
            self._enrol(session, site)
            row = session.get(HeadRow, (site, log))
            if row is not None and _went_back(row, length, hash_):
                raise StateError(
                    f"the {log} of site {site} went back: {row.length} entries were seen before, "
                    f"now there are {length}",
                    hint="an old copy of the disk may have been restored; the site must bring back "
                    "its newest state before it takes part",
                )
            if row is not None and row.length == length:
                return False
            if row is None:
                row = HeadRow(site=site, log=log)
                session.add(row)
            row.length, row.hash, row.evidence = length, hash_, evidence
            row.at_ms = self._clock()
            return True

    def heads(self, log: str | None = None) -> tuple[LogHead, ...]:
        """Ends of logs by site, of one kind or all."""
        query = select(HeadRow).order_by(HeadRow.site, HeadRow.log)
        if log is not None:
            query = query.where(HeadRow.log == log)
        with self._reads() as session:
            return tuple(
                LogHead(r.site, r.log, r.length, r.hash, r.evidence, r.at_ms)
                for r in session.scalars(query)
            )

    def countersign(self, signatures: Iterable[Countersignature]) -> None:
        """Keep other sites' signatures under ends of ledgers; an older one changes nothing.

        Raises:
            StateError: a site signs its own ledger, or one further than was ever seen; then none
                of them is kept.
        """
        with self._changes() as session:
            for signature in signatures:
                self._countersign(session, signature)

    def _countersign(self, session: Session, signature: Countersignature) -> None:
        head = session.get(HeadRow, (signature.site, "ledger"))
        if signature.site == signature.witness or head is None:
            raise StateError("there is nothing to countersign", hint="ask what there is")
        if signature.length > head.length:
            raise StateError(
                f"site {signature.witness} signs a ledger of {signature.site} that nobody saw",
                hint="sign what was given to you",
            )
        self._enrol(session, signature.witness)
        key = (signature.site, signature.witness)
        row = session.get(CountersignatureRow, key)
        if row is not None and row.length >= signature.length:
            return
        if row is None:
            row = CountersignatureRow(site=key[0], witness=key[1])
            session.add(row)
        row.length, row.hash = signature.length, signature.hash
        row.evidence, row.at_ms = signature.evidence, self._clock()

    def countersignatures(
        self, site: str | None = None, *, witness: str | None = None
    ) -> tuple[Countersignature, ...]:
        """Signatures under the ledger of one site or all, by one witness or all."""
        query = select(CountersignatureRow).order_by(
            CountersignatureRow.site, CountersignatureRow.witness
        )
        if site is not None:
            query = query.where(CountersignatureRow.site == site)
        if witness is not None:
            query = query.where(CountersignatureRow.witness == witness)
        with self._reads() as session:
            return tuple(
                Countersignature(r.site, r.length, r.hash, r.witness, r.evidence)
                for r in session.scalars(query)
            )

    def note(self, kind: str, **facts: Any) -> None:
        """Write down that something happened; facts are JSON-safe and not private."""
        with self._changes() as session:
            self._note(session, kind, **facts)

    def go_on(self, run: str, reason: str) -> bool:
        """Let a run go on by itself after a defect, if it got further since the last time; note it.

        Args:
            run: which; it stays as it is.
            reason: what the defect was, without anything private.

        Returns:
            Whether it may: always the first time, then only after another round was counted.

        Raises:
            StateError: there is no such run.
        """
        query = select(EventRow.facts).where(EventRow.kind == _WENT_ON).order_by(EventRow.id.desc())
        with self._changes() as session:
            now = self._run(session, run).round
            found = (facts["after"] for facts in session.scalars(query) if facts["run"] == run)
            last = next(found, None)
            if last is not None and now <= last:
                return False
            self._note(session, _WENT_ON, run=run, after=now, reason=reason)
            return True

    def events(
        self, *, after: int = 0, limit: int = MOST_EVENTS, **where: str
    ) -> tuple[Event, ...]:
        """What happened, oldest first.

        Args:
            after: only events with a higher id.
            limit: at most so many.
            where: facts that an event must have, such as `run="…"`.
        """
        query = select(EventRow).where(EventRow.id > after).order_by(EventRow.id)
        found: list[Event] = []
        with self._reads() as session:
            for row in session.scalars(query):
                if _fits(row.facts, where) and len(found) < limit:
                    found.append(Event(row.id, row.at_ms, row.kind, row.facts))
        return tuple(found)


def _went_back(row: HeadRow, length: int, hash_: str) -> bool:
    return length < row.length or (length == row.length and hash_ != row.hash)


def _fits(facts: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    return all(facts.get(key) == value for key, value in where.items())
