"""What a ledger amounts to: spent, set aside and left, per cohort and study.

Exact costs are the site's own: a report stays at the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedward.client.ledger.account import GROUPS, Accountant, Members, Run, profiles, worst
from fedward.client.ledger.admission import number
from fedward.client.ledger.book import Book
from fedward.client.ledger.ledger import Ledger
from fedward.common.privacy.accounting import epsilon
from fedward.common.privacy.events import PrivacyEvent


@dataclass(frozen=True)
class RunReport:
    """One run of a study.

    Attributes:
        study: hash of the study.
        run: which execution of it.
        private: whether the study promises anything; if not, its cost cannot be counted.
        state: "open", or how it ended.
        spent: ε of what it has reserved, by itself.
        set_aside: ε of all that it may still come to, by itself.
        reservations: how many releases were paid for.
        interrupted: how many of them were never sent, as far as is known.
    """

    study: str
    run: str
    private: bool
    state: str
    spent: float
    set_aside: float
    reservations: int
    interrupted: int


@dataclass(frozen=True)
class CohortReport:
    """One cohort, its runs, and what all studies together cost the patient who lost most.

    Attributes:
        cohort: its id.
        unit: whose data the promises protect.
        identified: whether its patients can be told from those of other cohorts; if not, all that
            was released about others counts too.
        patients: how many.
        spent: ε that was reserved, in this and every overlapping cohort.
        set_aside: ε if all that is set aside is used too.
        runs: charged to this very cohort.
    """

    cohort: str
    unit: str
    identified: bool
    patients: int
    spent: float
    set_aside: float
    runs: tuple[RunReport, ...]

    @property
    def unaccounted(self) -> bool:
        """Whether something was released about it that no ε covers."""
        return any(not run.private for run in self.runs)

    def left(self, epsilon_total: float) -> float:
        """ε that a cap leaves."""
        return max(0.0, epsilon_total - self.set_aside)


@dataclass(frozen=True)
class LedgerReport:
    """A whole ledger; every ε is at `delta`."""

    delta: float
    length: int
    hash: str
    cohorts: tuple[CohortReport, ...]
    witnesses: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form; an ε beyond all use is null."""

        def safe(value: Any) -> Any:
            if isinstance(value, float):
                return number(value)
            if isinstance(value, dict):
                return {key: safe(inner) for key, inner in value.items()}
            return [safe(inner) for inner in value] if isinstance(value, tuple | list) else value

        content: dict[str, Any] = safe(asdict(self))
        return content


def report(ledger: Ledger, delta: float, accountant: Accountant = epsilon) -> LedgerReport:
    """Work out what everything comes to.

    Args:
        ledger: of the site.
        delta: at which ε is read.
        accountant: `admission.checked_epsilon` confirms each figure by a second accountant, but
            loads torch, which a daemon does not.

    Raises:
        PrivacyError: the accountants disagree.
        StateError: the ledger was changed behind our back.
    """
    members, book, head = ledger.cohorts(), ledger.book, ledger.head
    runs = tuple(book.runs.values())
    return LedgerReport(
        delta=delta,
        length=head.length,
        hash=head.hash,
        cohorts=tuple(_cohort(c, members, runs, book, delta, accountant) for c in members),
        witnesses=tuple(sorted({witness.by for witness in book.witnesses})),
    )


def _cohort(
    cohort: str,
    members: Mapping[str, Members],
    runs: Sequence[Run],
    book: Book,
    delta: float,
    accountant: Accountant,
) -> CohortReport:
    own, made = members[cohort], book.cohorts[cohort]
    charged = {run.cohort for run in runs if run.totals.training or run.totals.testing} | {cohort}
    seen = profiles({c: m for c, m in members.items() if c in charged}, cohort)
    return CohortReport(
        cohort=cohort,
        unit=made.unit,
        identified=bool(own.identified_by),
        patients=made.members,
        spent=worst(seen, runs, Run.paid, delta=delta, accountant=accountant),
        set_aside=worst(seen, runs, Run.owed, delta=delta, accountant=accountant),
        runs=tuple(_run(run, book, delta, accountant) for run in runs if run.cohort == cohort),
    )


def _run(run: Run, book: Book, delta: float, accountant: Accountant) -> RunReport:
    def larger(training: Sequence[PrivacyEvent], testing: Sequence[PrivacyEvent]) -> float:
        return max(accountant(events, delta) if events else 0.0 for events in (training, testing))

    reserved = book.reserved(run.study, run.run)
    return RunReport(
        study=run.study,
        run=run.run,
        private=run.private,
        state="open" if run.open else book.outcomes.get((run.study, run.run), "ended"),
        spent=larger(*(run.paid(group) for group in GROUPS)),
        set_aside=larger(*(run.owed(group) for group in GROUPS)),
        reservations=len(reserved),
        interrupted=sum(not reservation.reply for reservation in reserved),
    )
