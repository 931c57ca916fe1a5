"""The ledger as the daemon sees it: it reads, frees what will not be used, and has its end kept.

The worker charges it, from its own process; this one never reserves anything.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fedward.client.ledger import Ledger
from fedward.client.ledger.account import GROUPS
from fedward.client.ledger.store import START
from fedward.common.audit.chain import Head
from fedward.common.errors import StateError
from fedward.common.privacy.accounting import epsilon

_SHOWN = 12
"""Characters of a study's hash that name it among figures."""


class Account:
    """An open ledger; may be used from any thread. Close it.

    Args:
        path: of the ledger.

    Raises:
        StateError: it was changed by something else than a ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ledger = Ledger(path)

    def close(self) -> None:
        """Let the file go."""
        self._ledger.close()

    def reopen(self) -> None:
        """Open the file anew: somebody may have put another in its place.

        Raises:
            StateError: it was changed by something else than a ledger.
        """
        with self._lock:
            fresh = Ledger(self._path)
            self._ledger.close()
            self._ledger = fresh

    @property
    def head(self) -> Head:
        """The end of the ledger."""
        with self._lock:
            return self._ledger.head

    @property
    def spent(self) -> int:
        """Entries that are about patients, and not about who has seen the others."""
        with self._lock:
            book = self._ledger.book
            return self._ledger.head.length - len(book.witnesses)

    def epsilon(self, delta: float) -> dict[str, float]:
        """What each study has spent, by the first characters of its hash: of its dearest run.

        It takes seconds, and needs nobody to wait meanwhile.
        """
        with self._lock:
            runs = [run for run in self._ledger.book.runs.values() if run.private]
        spent: dict[str, float] = {}
        for run in runs:
            name = run.study[:_SHOWN]
            costs = (epsilon(run.paid(group), delta) for group in GROUPS)
            spent[name] = max(spent.get(name, 0.0), *costs)
        return spent

    def paid(self, study: str, run: str, number: int, group: str, reply: str | None = None) -> bool:
        """Whether the ledger was charged for that round of that group, and for this very reply.

        Args:
            study: hash.
            run: of the study.
            number: of the round.
            group: of patients.
            reply: its SHA-256; None asks for any, also for one that was never finished.
        """
        with self._lock:
            return any(
                (found.entry.round, found.entry.group) == (number, group)
                and reply in (None, found.reply)
                for found in self._ledger.reservations(study, run)
            )

    def end_run(self, study: str, run: str, outcome: str, *, for_good: bool = False) -> None:
        """Free what was set aside for a run and will not be needed; see `Ledger.end_run`."""
        with self._lock:
            self._ledger.end_run(study, run, outcome, for_good=for_good)

    def check_goes_on(self, study: str, run: str) -> None:
        """Return if a run is not over; one that was never admitted is not.

        Raises:
            StateError: it is.
        """
        with self._lock:
            self._ledger.book.check_goes_on(study, run)

    def open_runs(self) -> frozenset[tuple[str, str]]:
        """Runs, by study and name, that something is set aside for."""
        with self._lock:
            runs = self._ledger.book.runs.values()
            return frozenset((run.study, run.run) for run in runs if run.open)

    def runs(self) -> frozenset[tuple[str, str]]:
        """All runs that were ever admitted, by study and name."""
        with self._lock:
            return frozenset(self._ledger.book.runs)

    def over_runs(self) -> frozenset[tuple[str, str]]:
        """Runs that are over for good, by study and name."""
        with self._lock:
            return frozenset(self._ledger.book.over)

    def names_over(self) -> frozenset[str]:
        """Names that only runs have that are over: two studies may have runs of one name."""
        with self._lock:
            book = self._ledger.book
            going = {name for _, name in book.runs.keys() - book.over}
            return frozenset(name for _, name in book.over) - going

    def check(self, seen: Any, by: str) -> None:
        """Compare the ledger with its end as somebody else has seen it.

        Args:
            seen: length and hash; None if nothing was seen yet.
            by: who has seen it.

        Raises:
            StateError: it is older than that, or another one.
        """
        if seen is None:
            return
        head = Head.read(seen)
        with self._lock:
            try:
                self._ledger.check_witnessed(head, by)
            except StateError as error:
                raise StateError(
                    f"this site's ledger is older than what {by} has seen, or another one",
                    hint="restore the newer one; what it lacks was spent",
                ) from error

    def witness(self, head: Head, by: str, evidence: bytes) -> None:
        """Keep that somebody else has this end of the ledger on record."""
        if head == START:
            return
        with self._lock:
            self._ledger.witness(head, by, evidence)
