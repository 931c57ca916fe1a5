"""What a ledger's entries add up to: which cohorts, runs and reservations there are. No disk.

Entries are applied one after the other; one that contradicts those before it is refused, so a book
that was read to the end is consistent.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from fedward.client.ledger.account import Caps, Run, Totals
from fedward.client.ledger.entries import (
    Admitted,
    Closed,
    CohortMade,
    Committed,
    LedgerEntry,
    Reserved,
    Witnessed,
    purpose_of,
)
from fedward.client.spending import Charge, Group
from fedward.common.errors import RoundSpentError, StateError
from fedward.common.privacy.events import PrivacyEvent, compress


@dataclass
class Reservation:
    """A release, paid for; `reply` is empty until it is known to be durable."""

    number: int
    entry: Reserved
    reply: str = ""


class Book:
    """All that follows from the entries applied so far."""

    def __init__(self) -> None:
        self.cohorts: dict[str, CohortMade] = {}
        self.runs: dict[tuple[str, str], Run] = {}
        self.reservations: dict[int, Reservation] = {}
        self.outcomes: dict[tuple[str, str], str] = {}
        self.over: set[tuple[str, str]] = set()
        self.witnesses: list[Witnessed] = []
        self.seen_by: dict[str, int] = {}
        """By witness, the furthest length that it has signed."""
        self.spent_at = 0
        """Number of the last entry that is about patients, and not about who has seen others."""
        self._by_run: dict[tuple[str, str], list[Reservation]] = defaultdict(list)

    def apply(self, number: int, entry: LedgerEntry) -> None:
        """Take in one more entry.

        Raises:
            StateError: it contradicts those before it.
        """
        if not isinstance(entry, Witnessed):
            self.spent_at = number
        match entry:
            case CohortMade():
                self.cohorts[entry.cohort] = entry
            case Admitted():
                self._admit(entry)
            case Reserved():
                self._reserve(number, entry)
            case Committed():
                _need(entry.reservation in self.reservations)
                self.reservations[entry.reservation].reply = entry.reply
            case Closed():
                run = self._run(entry.study, entry.run)
                self.runs[entry.study, entry.run] = replace(run, open=False)
                self.outcomes[entry.study, entry.run] = entry.outcome
                if entry.for_good:
                    self.over.add((entry.study, entry.run))
            case Witnessed():
                self.witnesses.append(entry)
                self.seen_by[entry.by] = max(entry.length, self.seen_by.get(entry.by, 0))

    def runs_of(self, study: str) -> int:
        """How many runs of a study were ever admitted."""
        return sum(run.study == study for run in self.runs.values())

    def check_goes_on(self, study: str, run: str) -> None:
        """A run that is over is over for good, whatever its name is used for.

        Raises:
            StateError: it is over.
        """
        if (study, run) in self.over:
            raise StateError(
                "this run is over at this site, for good",
                hint="go on with the study's newest run, or start another",
            )

    def reserved(self, study: str, run: str) -> tuple[Reservation, ...]:
        """The reservations of a run, oldest first."""
        return tuple(self._by_run.get((study, run), ()))

    def charges(self, study: str, run: str) -> tuple[Charge, ...]:
        """What a run has charged, oldest first."""
        return tuple(
            Charge(r.entry.round, r.entry.group, r.entry.event) for r in self.reserved(study, run)
        )

    def check_new(
        self, study: str, run: str, round_number: int, group: Group, event: PrivacyEvent
    ) -> None:
        """A site does nothing twice, not even what a crash cut short.

        Raises:
            RoundSpentError: the run has reserved this for this round before.
        """
        for reservation in self.reserved(study, run):
            entry = reservation.entry
            now = (round_number, group, purpose_of(event))
            if (entry.round, entry.group, entry.purpose) != now:
                continue
            if reservation.reply:
                raise RoundSpentError(
                    f"round {round_number} was done before at this site",
                    hint="a site does nothing twice; continue with the next round",
                )
            raise RoundSpentError(
                f"round {round_number} was interrupted here; its cost is spent",
                hint="continue with the next round",
            )

    def _admit(self, entry: Admitted) -> None:
        _need(entry.cohort in self.cohorts)
        admitted = run_of(entry)
        known = self.runs.get((entry.study, entry.run), admitted)
        _need((known.cohort, known.plan) == (entry.cohort, entry.plan))
        _need((entry.study, entry.run) not in self.over)
        self.runs[entry.study, entry.run] = replace(known, open=True, caps=admitted.caps)
        self.outcomes.pop((entry.study, entry.run), None)

    def _reserve(self, number: int, entry: Reserved) -> None:
        run = self._run(entry.study, entry.run)
        _need(run.cohort == entry.cohort)
        before, event = run.reserved, entry.event
        if entry.group == "training":
            after = replace(before, training=compress((*before.training, event)))
        else:
            after = replace(before, testing=compress((*before.testing, event)))
        self.runs[entry.study, entry.run] = replace(run, reserved=after)
        self.reservations[number] = Reservation(number, entry)
        self._by_run[entry.study, entry.run].append(self.reservations[number])

    def _run(self, study: str, run: str) -> Run:
        _need((study, run) in self.runs)
        return self.runs[study, run]


def run_of(entry: Admitted) -> Run:
    """The run that an admission begins."""
    return Run(
        study=entry.study,
        run=entry.run,
        cohort=entry.cohort,
        plan=entry.plan,
        private=entry.private,
        totals=Totals(entry.training, entry.testing),
        caps=Caps(entry.epsilon_per_study, entry.epsilon_total, entry.delta),
    )


def _need(consistent: bool) -> None:
    if not consistent:
        raise StateError(
            "the privacy ledger contradicts itself",
            hint="stop here, keep the file as evidence, and report this defect",
        )
