"""A site's privacy ledger: admit a study, reserve before each release, commit after it, report.

    admit ─→ reserve ─→ (train) ─→ commit ─→ … ─→ close ─→ (admit … close) ─→ close for good

Guarantee:
    - A study is admitted for a run only if, for every patient of its cohort, all that was ever
      reserved by other runs, all that is still set aside for those that are not closed, and *all*
      that this study may release stay under the site's caps (see `account` for ε and δ). So a study
      that begins can be finished within the caps, and one that cannot is refused before its first
      round. Runs add up: a second run of a study is admitted for itself, and counts in full.
    - A release is reserved, on the disk, before a row is looked at. A reservation is spent whether
      or not it was ever committed, and is never given twice: after a crash the round is refused.
    - Nothing lowers what was spent. `close` only frees what was set aside and not reserved.
    - A run that was closed for good is never admitted again, under any cohort, plan or caps.
    - A changed, removed or invented entry is noticed when the ledger is opened or used, and an
      older copy of the whole file when its head is compared with one that a witness kept.

Several processes may hold one ledger. Admission computes with both accountants, so it loads torch;
nothing else here does.
"""

from __future__ import annotations

from fedward.client.ledger.account import Caps, Members, Run, Totals
from fedward.client.ledger.admission import check_caps, check_runs
from fedward.client.ledger.book import run_of
from fedward.client.ledger.entries import (
    Admitted,
    Closed,
    CohortMade,
    Committed,
    Reserved,
    Witnessed,
)
from fedward.client.ledger.opened import OpenLedger
from fedward.client.spending import Group, check_held
from fedward.common.audit.chain import Head
from fedward.common.errors import PrivacyError, StateError
from fedward.common.privacy.events import PrivacyEvent


class Ledger(OpenLedger):
    """An open ledger; safe to share between threads. Close it, or use it as a context."""

    def add_cohort(self, members: Members) -> str:
        """Make a cohort known, so that studies can be charged to it; a known one stays as it is.

        Returns:
            Its id.
        """
        with self._writing() as book:
            if members.id not in book.cohorts:
                self._append(
                    CohortMade(
                        cohort=members.id,
                        identified_by=members.identified_by,
                        unit=members.unit,
                        members=len(members.training) + len(members.testing),
                    )
                )
                rows = ((patient, place[1]) for patient, place in members.places())
                self._store.add_members(members.id, rows)
        return members.id

    def admit(
        self,
        study: str,
        run: str,
        cohort: str,
        *,
        plan: str,
        totals: Totals,
        caps: Caps,
        code: str,
        private: bool = True,
        most_runs: int | None = None,
    ) -> None:
        """Set a whole study aside for a run, or refuse it before its first round.

        The same run is admitted again without effect, if cohort, plan and caps are the same. A run
        that was closed, or was admitted under other caps, is taken up again, if it still fits; one
        that was closed for good is not.

        Args:
            study: hash of the study.
            run: which execution of it.
            cohort: id of the cohort, from `add_cohort`.
            plan: hash of the site's privacy plan.
            totals: all that the study may release about a patient, from that plan.
            caps: of the site's policy.
            code: version of fedward.
            private: whether the study makes a promise.
            most_runs: of a study that makes none, how many runs the site takes part in.

        Raises:
            StateError: the run is over.
            PolicyError: it makes none, and took part in that many others.
            PrivacyError: it does not fit under the caps; how much is left is in the message, for
                the site's own people. Or the run was admitted with another cohort or plan.
        """
        entry = Admitted(
            study=study,
            run=run,
            cohort=cohort,
            plan=plan,
            private=private,
            training=totals.training,
            testing=totals.testing,
            epsilon_per_study=caps.epsilon_per_study,
            epsilon_total=caps.epsilon_total,
            delta=caps.delta,
            code=code,
        )
        with self._reading():  # accounting takes seconds: worked out once while others may write
            if self._admitted(entry):
                return
            self._check_caps(run_of(entry), caps)
        with self._writing():  # and again, from memory unless somebody did
            if not self._admitted(entry):
                if not private and (study, run) not in self._book.runs:
                    check_runs(self._book.runs_of(study), most_runs)
                self._check_caps(run_of(entry), caps)
                self._append(entry)

    def reserve(
        self,
        study: str,
        run: str,
        *,
        round_number: int,
        group: Group,
        event: PrivacyEvent,
        cohort: str,
        plan: str,
        code: str,
    ) -> int:
        """Pay for a release that is about to happen; when this returns it is on the disk.

        Returns:
            The reservation's number, for `commit`.

        Raises:
            RoundSpentError: this was reserved before.
            PrivacyError: the run is not admitted (any more), or what was set aside does not hold
                it. In either case nothing may be released.
        """
        with self._writing() as book:
            found = book.runs.get((study, run))
            if found is None or not found.open or (found.cohort, found.plan) != (cohort, plan):
                raise PrivacyError(
                    "nothing is set aside for this run, so nothing may be released",
                    hint="admit the study for this run, cohort and plan first",
                )
            book.check_new(study, run, round_number, group, event)
            check_held(found.totals.of_group(group), (*found.paid(group), event))
            return self._append(
                Reserved(
                    study=study,
                    run=run,
                    round=round_number,
                    group=group,
                    cohort=cohort,
                    unit=book.cohorts[cohort].unit,
                    event=event,
                    plan=plan,
                    code=code,
                )
            )

    def commit(self, reservation: int, reply: str) -> None:
        """Record that what a reservation paid for is durable; twice the same changes nothing.

        Args:
            reservation: its number.
            reply: SHA-256 of the reply, hexadecimal.

        Raises:
            StateError: there is no such reservation, or it paid for another reply.
        """
        with self._writing() as book:
            found = book.reservations.get(reservation)
            if found is None or found.reply not in ("", reply):
                raise StateError(
                    "the privacy ledger has no such reservation, or it paid for another reply",
                    hint="send the reply that was paid for; do not make another",
                )
            if not found.reply:
                self._append(Committed(reservation=reservation, reply=reply))

    def end_run(self, study: str, run: str, outcome: str, *, for_good: bool = False) -> None:
        """Free what was set aside for a run and not reserved; it reserves nothing more.

        What the ledger's entries call `close`. A run that was never admitted is left as it is, and
        so is one that was closed, unless now it is for good.

        Args:
            study: hash of the study.
            run: which execution of it.
            outcome: why, in a word.
            for_good: it is over; else it may be admitted again.
        """
        with self._writing() as book:
            found = book.runs.get((study, run))
            if found is None or (study, run) in book.over:
                return
            if found.open or for_good:
                self._append(Closed(study=study, run=run, outcome=outcome, for_good=for_good))

    def witness(self, head: Head, by: str, signature: bytes) -> None:
        """Record that somebody else keeps a head of this ledger.

        One that they kept before, or an earlier one, changes nothing: who signs may make ever
        other signatures under the same. Nor does one that nothing was spent before since: else
        ledgers at rest would grow by being seen.

        Raises:
            StateError: this ledger never had that head: see `check_witnessed`.
        """
        self.check_witnessed(head, by)
        entry = Witnessed(length=head.length, hash=head.hash, by=by, signature=signature.hex())
        with self._writing() as book:
            if book.seen_by.get(by, 0) < min(entry.length, book.spent_at):
                self._append(entry)

    def _admitted(self, entry: Admitted) -> bool:
        if entry.cohort not in self._book.cohorts:
            raise StateError("the ledger does not know this cohort", hint="add the cohort first")
        self._book.check_goes_on(entry.study, entry.run)
        known = self._book.runs.get((entry.study, entry.run))
        if known is None:
            return False
        if (known.cohort, known.plan) != (entry.cohort, entry.plan):
            raise PrivacyError(
                "this run was admitted with another cohort or another privacy plan",
                hint="what trains must stay what was admitted; start a new run",
            )
        return known.open and known.caps == run_of(entry).caps

    def _check_caps(self, run: Run, caps: Caps) -> None:
        members = {cohort: self._members_of(made) for cohort, made in self._book.cohorts.items()}
        check_caps(run, tuple(self._book.runs.values()), members, caps)
