"""An open ledger: what it holds, with what other processes add, and how entries get into it.

`Ledger` builds its promises on this; nothing here judges what may be released.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedward.client.ledger.account import Members
from fedward.client.ledger.book import Book, Reservation
from fedward.client.ledger.entries import CohortMade, LedgerEntry
from fedward.client.ledger.store import BUSY_S, START, Store
from fedward.common.audit.chain import Head
from fedward.common.errors import StateError

Clock = Callable[[], datetime]


class OpenLedger:
    """An open ledger; safe to share between threads. Close it, or use it as a context.

    Args:
        path: of the file; made if it is not there.
        clock: gives the time of entries.
        busy_s: how long to wait for another process that is writing.

    Raises:
        StateError: the file is damaged, or was changed by something else than a ledger.
        OutputError: the disk refuses.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, busy_s: float = BUSY_S) -> None:
        self._lock = threading.RLock()
        self._clock = clock or (lambda: datetime.now(UTC))
        self._book = Book()
        self._members: dict[str, Members] = {}
        self._store = Store(path, busy_s=busy_s)
        try:
            self._follow()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the file go."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def head(self) -> Head:
        """The end of the chain, with what other processes have added."""
        with self._reading():
            return self._store.head

    @property
    def book(self) -> Book:
        """What all entries add up to, with those of other processes; look, do not change."""
        with self._reading() as book:
            return book

    def reservations(self, study: str, run: str) -> tuple[Reservation, ...]:
        """What a run has reserved, oldest first."""
        with self._reading() as book:
            return tuple(book.reserved(study, run))

    def cohorts(self) -> dict[str, Members]:
        """Who is in each cohort.

        Raises:
            StateError: patients were added or removed behind the ledger's back.
        """
        with self._reading() as book:
            return {cohort: self._members_of(made) for cohort, made in book.cohorts.items()}

    def check_witnessed(self, head: Head, by: str) -> None:
        """Compare the ledger with a head of it that somebody else has kept.

        Raises:
            StateError: the ledger does not have it: an older copy was put back, or it was replaced.
        """
        with self._reading():
            if self._store.hash_at(head.length) == head.hash:
                return
        raise StateError(
            f"the privacy ledger is not the one that {by} witnessed: it is an older copy, or it "
            "was replaced",
            hint="put the newest copy back; what it lacks was spent, and may not be spent again",
        )

    @contextmanager
    def _reading(self) -> Iterator[Book]:
        with self._lock:
            self._follow()
            yield self._book

    @contextmanager
    def _writing(self) -> Iterator[Book]:
        with self._lock:
            try:
                with self._store.writing():
                    self._follow()
                    yield self._book
            except BaseException:
                if self._store.head == START:  # what the book has taken in was rolled back
                    self._book = Book()
                raise

    def _follow(self) -> None:
        for number, entry in self._store.follow():
            self._book.apply(number, entry)

    def _append(self, entry: LedgerEntry) -> int:
        time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        number, written = self._store.append(time, entry)
        self._book.apply(number, written)
        return number

    def _members_of(self, made: CohortMade) -> Members:
        if made.cohort not in self._members:
            rows = self._store.members(made.cohort)
            members = Members(
                made.identified_by,
                made.unit,
                frozenset(patient for patient, group in rows if group == "training"),
                frozenset(patient for patient, group in rows if group == "testing"),
            )
            if members.id != made.cohort:
                raise StateError(
                    "the patients of a cohort in the privacy ledger were changed behind our back",
                    hint="stop here, keep the file as evidence, and find out who touched it",
                )
            self._members[made.cohort] = members
        return self._members[made.cohort]
