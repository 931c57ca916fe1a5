"""What a hospital's `Site` charges: straight into the ledger, before a row is looked at.

`ledger_spending` admits the run as soon as the site's plan is known, that is when the `Site` is
made, before the first round. The worker calls `commit` when a reply is durable.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from fedward.client.ledger.account import Caps, Members, Totals
from fedward.client.ledger.ledger import Ledger
from fedward.client.spending import Charge, Group, Spending, SpendingFor, events_of
from fedward.common.audit.chain import canonical
from fedward.common.privacy.events import PrivacyEvent
from fedward.common.privacy.plan import PrivacyPlan


def plan_hash(plan: PrivacyPlan | None) -> str:
    """SHA-256 over everything that a plan says; a site's own, since it tells how many it has."""
    content = None if plan is None else asdict(plan)
    return hashlib.sha256(canonical(content)).hexdigest()


def ledger_spending(
    ledger: Ledger,
    study: str,
    run: str,
    members: Members,
    caps: Caps,
    code: str,
    *,
    most_runs: int | None = None,
) -> SpendingFor:
    """How a `Site` of one run is charged to a ledger.

    Args:
        ledger: of the site.
        study: hash of the study.
        run: which execution of it.
        members: the patients whose data train and test, from the manifest that was approved.
        caps: of the site's policy.
        code: version of fedward.
        most_runs: that the policy allows of a study without a promise.

    Returns:
        What `Site` takes as `spending`. It raises `PrivacyError` if the study does not fit,
        `PolicyError` if this is one run too many, and `StateError` if the run is over.
    """

    def admit(plan: PrivacyPlan | None) -> Spending:
        cohort, known = ledger.add_cohort(members), plan_hash(plan)
        ledger.admit(
            study,
            run,
            cohort,
            plan=known,
            totals=Totals.of(plan),
            caps=caps,
            code=code,
            private=plan is not None,
            most_runs=most_runs,
        )
        return LedgerSpending(ledger, study, run, cohort=cohort, plan=known, code=code)

    return admit


class LedgerSpending:
    """`client.spending.Spending` of one admitted run, kept in the ledger.

    Guarantee:
        When `charge` returns, its cost is on the disk, whatever happens next. A release of a round
        that was reserved before is refused, whether or not it was ever sent; so is one that the
        plan does not hold, and anything in a run that is not admitted or is closed.

    Args:
        ledger: of the site.
        study: hash of the study.
        run: which execution of it.
        cohort: id of the cohort it was admitted with.
        plan: hash of the plan it was admitted with.
        code: version of fedward.
    """

    def __init__(
        self, ledger: Ledger, study: str, run: str, *, cohort: str, plan: str, code: str
    ) -> None:
        self._ledger = ledger
        self._study, self._run = study, run
        self._cohort, self._plan, self._code = cohort, plan, code
        self._pending: list[int] = []

    def charge(self, round_number: int, group: Group, event: PrivacyEvent) -> None:
        """Pay for a release that is about to happen, or refuse it.

        Raises:
            PrivacyError: see the class. Nothing is recorded and nothing may be released.
        """
        number = self._ledger.reserve(
            self._study,
            self._run,
            round_number=round_number,
            group=group,
            event=event,
            cohort=self._cohort,
            plan=self._plan,
            code=self._code,
        )
        self._pending.append(number)

    def commit(self, reply: str) -> tuple[int, ...]:
        """Record that the reply to all that was charged since the last time is durable.

        Args:
            reply: SHA-256 of the reply, hexadecimal.

        Returns:
            The reservations that paid for it; none, if the study costs nothing.
        """
        done = tuple(self._pending)
        for number in done:
            self._ledger.commit(number, reply)
        self._pending.clear()
        return done

    @property
    def pending(self) -> tuple[int, ...]:
        """Reservations of this process that no reply was committed for yet."""
        return tuple(self._pending)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Everything this run has charged, oldest first, also before a restart."""
        return self._ledger.book.charges(self._study, self._run)

    def events(self, group: Group, *, until: int | None = None) -> tuple[PrivacyEvent, ...]:
        """Events of one group of patients, up to and including round `until`."""
        return events_of(self.charges, group, until)
