"""What a site's patients have been charged so far in one run: privacy events, not ε.

Events are recorded *before* the release that they pay for, and a release that the site's plan does
not hold is refused: whatever a server asks for, a study cannot cost more than it promised. ε is
computed from all events together, never summed per round.

A simulation keeps the events in memory (`MemorySpending`, here); a hospital keeps them on disk,
across runs and studies (`ledger.spending.LedgerSpending`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args

from fedward.common.errors import PrivacyError, RoundSpentError
from fedward.common.privacy.events import (
    PrivacyEvent,
    SampledGaussian,
    event_from_dict,
    event_to_dict,
)
from fedward.common.privacy.plan import PrivacyPlan

Group = Literal["training", "testing"]
"""Patients that train and patients kept for testing are different people: each pays for itself."""


@dataclass(frozen=True)
class Charge:
    """One release and what it cost.

    Attributes:
        round: round of the run; 0 is before the first.
        group: which patients it was about.
        event: what was done to protect them.
    """

    round: int
    group: Group
    event: PrivacyEvent

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {"round": self.round, "group": self.group, "event": event_to_dict(self.event)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Charge:
        """Inverse of `to_dict`.

        Raises:
            PrivacyError: a field is missing or unknown; nothing may be trained on a broken record.
        """
        try:
            if data["group"] not in get_args(Group):
                raise ValueError("no such group")  # it would never be counted
            return Charge(int(data["round"]), data["group"], event_from_dict(data["event"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PrivacyError(
                "a privacy record cannot be read", hint="restore it; do not delete it"
            ) from error


class Spending(Protocol):
    """What a site charges in one run: append-only, and refuses what the plan does not hold."""

    def charge(self, round_number: int, group: Group, event: PrivacyEvent) -> None:
        """Record a release that is about to happen, or refuse it.

        Raises:
            RoundSpentError: the round was charged for these patients before.
            PrivacyError: the plan does not hold this release (any more). In either case nothing is
                recorded and nothing may be released.
        """
        ...

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Everything recorded, oldest first."""
        ...

    def events(self, group: Group, *, until: int | None = None) -> tuple[PrivacyEvent, ...]:
        """Events of one group of patients, up to and including round `until`."""
        ...


SpendingFor = Callable[[PrivacyPlan | None], Spending]
"""Makes the spending of a run from what the study may release at this site."""


class MemorySpending:
    """Spending that lives as long as its process: for simulations.

    Args:
        plan: what the study may release at this site; None if it makes no promise, then nothing is
            ever charged.
        charges: what was charged before, in a run that is continued.
    """

    def __init__(self, plan: PrivacyPlan | None = None, charges: tuple[Charge, ...] = ()) -> None:
        self._charges: list[Charge] = []
        self._done: set[Charge] = set()
        self._used: dict[Group, dict[PrivacyEvent, int]] = {"training": {}, "testing": {}}
        self._held = {group: _amounts(events) for group, events in budget_of(plan).items()}
        for charge in charges:
            self._keep(charge)

    def charge(self, round_number: int, group: Group, event: PrivacyEvent) -> None:
        """Record a release that is about to happen, or refuse it; see `Spending.charge`."""
        charge = Charge(round_number, group, event)
        if charge in self._done:
            raise RoundSpentError(
                f"round {round_number} was done before at this site",
                hint="a site does nothing twice; continue with the next round",
            )
        kind, amount = _amount(event)
        used = self._used[group]
        _check_amounts(self._held[group], {**used, kind: used.get(kind, 0) + amount})
        self._keep(charge)

    def _keep(self, charge: Charge) -> None:
        used = self._used[charge.group]
        kind, amount = _amount(charge.event)
        used[kind] = used.get(kind, 0) + amount
        self._charges.append(charge)
        self._done.add(charge)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Everything recorded, oldest first."""
        return tuple(self._charges)

    def events(self, group: Group, *, until: int | None = None) -> tuple[PrivacyEvent, ...]:
        """Events of one group of patients, up to and including round `until`."""
        return events_of(self._charges, group, until)


def budget_of(plan: PrivacyPlan | None) -> dict[Group, tuple[PrivacyEvent, ...]]:
    """All that a study may release about each group of patients."""
    return {
        "training": () if plan is None else plan.total(),
        "testing": () if plan is None else plan.evaluation_total(),
    }


def events_of(
    charges: Iterable[Charge], group: Group, until: int | None = None
) -> tuple[PrivacyEvent, ...]:
    """Events of one group of patients, up to and including round `until`."""
    return tuple(
        charge.event
        for charge in charges
        if charge.group == group and (until is None or charge.round <= until)
    )


def check_held(budget: Iterable[PrivacyEvent], used: Iterable[PrivacyEvent]) -> None:
    """Refuse to use what a budget does not hold.

    Raises:
        PrivacyError: there are more steps, or releases, of some kind than the budget has.
    """
    _check_amounts(_amounts(budget), _amounts(used))


_Amounts = dict[PrivacyEvent, int]


def _check_amounts(held: _Amounts, used: _Amounts) -> None:
    if any(amount > held.get(kind, 0) for kind, amount in used.items()):
        raise PrivacyError(
            "the study's privacy budget at this site does not hold this",
            hint="the study says how many rounds and evaluations there are",
        )


def _amounts(events: Iterable[PrivacyEvent]) -> _Amounts:
    """How many steps, or releases, there are of each kind."""
    amounts: _Amounts = {}
    for event in events:
        kind, amount = _amount(event)
        amounts[kind] = amounts.get(kind, 0) + amount
    return amounts


@lru_cache(maxsize=1024)  # the same event is charged in every round
def _amount(event: PrivacyEvent) -> tuple[PrivacyEvent, int]:
    """An event's kind, and how many steps or releases of it there are."""
    if isinstance(event, SampledGaussian):
        return replace(event, steps=1), event.steps
    return replace(event, count=1), event.count
