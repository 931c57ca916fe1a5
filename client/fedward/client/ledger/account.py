"""What patients have been charged, worked out from events: pure functions, no disk.

Guarantee:
    For every patient of a cohort let E be all events of all runs of all studies in whose cohorts
    the patient is, in the group (training or testing) in which the patient is there. `worst` is at
    least the ε of E at the given δ, for the patient for whom that is largest, by
    `common.privacy.accounting`: everything that was released about a patient is composed as *one*
    mechanism and read at *one* δ.

How δ composes: it does not add up. A study's own (ε, δ) is one point of its privacy curve; the
ledger keeps the events, which are the whole curve, and reads ε of their composition at the δ of the
site's policy. So a study that promises ε = 3 at δ = 1e-3 is read at the policy's 1e-5 too, where
its ε is larger; and two studies of ε = 3 come to less than ε = 6, at the same δ, not at twice it.

How cohorts overlap: patients are known by keyed hashes of their identifiers. Two cohorts are
compared patient by patient if the same column told patients apart in both (`identified_by`). A
cohort whose patients have no identifier, or another kind of identifier, may be the same people: it
overlaps every other cohort completely, and its patients count as being in the other's most
expensive group. Only with itself it is compared exactly: its id says that no row has changed.

Edge cases: no events cost 0; a cohort without patients costs nothing of its own; beyond ε = 100 the
larger Rényi bound is given, which may be infinite; a study without a privacy promise has no events,
so nothing here counts it: reports name it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Literal

from fedward.client.spending import Group, budget_of
from fedward.common.errors import PrivacyError
from fedward.common.privacy.events import PrivacyEvent, compress
from fedward.common.privacy.plan import PrivacyPlan

Place = tuple[str, Group]
"""Where a patient is: in a cohort (by id), in one of its groups."""
Profile = frozenset[Place]
"""All the places of one patient."""
Accountant = Callable[[Sequence[PrivacyEvent], float], float]
"""From events and δ to ε."""

GROUPS: tuple[Group, Group] = ("training", "testing")
_MOST_PROFILES = 256


@dataclass(frozen=True)
class Caps:
    """What a site allows: ε of one study, of all together, and the δ at which both are read."""

    epsilon_per_study: float
    epsilon_total: float
    delta: float


@dataclass(frozen=True)
class Totals:
    """All that a study may release about a patient of each group."""

    training: tuple[PrivacyEvent, ...] = ()
    testing: tuple[PrivacyEvent, ...] = ()

    @staticmethod
    def of(plan: PrivacyPlan | None) -> Totals:
        """Of a site's plan; nothing, if the study makes no promise."""
        budget = budget_of(plan)
        return Totals(budget["training"], budget["testing"])

    def of_group(self, group: Group) -> tuple[PrivacyEvent, ...]:
        """Of one of the groups."""
        return self.training if group == "training" else self.testing


@dataclass(frozen=True)
class Members:
    """The patients of a cohort, by keyed hashes.

    Attributes:
        identified_by: keyed hash of what tells patients apart; empty if only their rows do.
        unit: whose data a promise about them protects.
        training: patients that train.
        testing: patients kept for testing.
    """

    identified_by: str
    unit: Literal["patient", "record"]
    training: frozenset[bytes]
    testing: frozenset[bytes]

    def __post_init__(self) -> None:
        if self.training & self.testing:
            raise PrivacyError(
                "a patient both trains and tests", hint="divide by patient, not by row"
            )

    @cached_property
    def id(self) -> str:
        """The cohort's id: equal if and only if everything about the cohort is."""
        digest = hashlib.sha256(f"fedward cohort v1\n{self.identified_by}\n{self.unit}\n".encode())
        for group in (self.training, self.testing):
            digest.update(len(group).to_bytes(8, "big"))
            for patient in sorted(group):
                digest.update(len(patient).to_bytes(2, "big") + patient)
        return digest.hexdigest()

    def places(self) -> Iterable[tuple[bytes, Place]]:
        """Every patient, and where in this cohort it is."""
        yield from ((patient, (self.id, "training")) for patient in self.training)
        yield from ((patient, (self.id, "testing")) for patient in self.testing)


@dataclass(frozen=True)
class Run:
    """A run of a study, as the ledger has it.

    Attributes:
        study: hash of the study.
        run: which execution of it.
        cohort: id of the cohort.
        plan: hash of the privacy plan.
        private: whether the study makes a promise.
        totals: all that it may release.
        open: whether the rest of it is still set aside.
        reserved: all that it has reserved, finished or not.
        caps: under which it was admitted last.
    """

    study: str
    run: str
    cohort: str
    plan: str
    private: bool
    totals: Totals
    open: bool = True
    reserved: Totals = field(default_factory=Totals)
    caps: Caps | None = None

    def paid(self, group: Group) -> tuple[PrivacyEvent, ...]:
        """What the group has paid: never less than before."""
        return self.reserved.of_group(group)

    def owed(self, group: Group) -> tuple[PrivacyEvent, ...]:
        """What the group has paid, and what is still set aside for it."""
        return self.totals.of_group(group) if self.open else self.paid(group)


def profiles(cohorts: Mapping[str, Members], about: str) -> frozenset[Profile]:
    """All the places that a patient of one cohort can be in; only sets that no other includes.

    Args:
        cohorts: by id; all that may have been charged, and the one in question.
        about: id of the one in question.
    """
    families: dict[str, list[Members]] = defaultdict(list)
    for members in cohorts.values():
        families[members.identified_by or members.id].append(members)
    own = cohorts[about].identified_by or about
    mine = {patient for patient, _ in cohorts[about].places()}
    parts = [_seen(families.pop(own), mine)]
    parts += [_seen(members, None) for members in families.values()]
    combined = 1
    for part in parts:
        combined *= len(part)
    if combined > _MOST_PROFILES:  # as if one patient were everywhere: more than any is charged
        parts = [parts[0], *(frozenset({frozenset().union(*part)}) for part in parts[1:])]
    return frozenset(frozenset().union(*choice) for choice in product(*parts))


def _seen(members: Iterable[Members], only: set[bytes] | None) -> frozenset[Profile]:
    """The largest profiles within cohorts whose patients can be told apart in the same way."""
    places: list[Place] = [(one.id, group) for one in members for group in GROUPS]
    bits = {place: 1 << index for index, place in enumerate(places)}
    masks: dict[bytes, int] = defaultdict(int)
    for one in members:
        for patient, place in one.places():
            if only is None or patient in only:
                masks[patient] |= bits[place]
    found = sorted(set(masks.values()), key=int.bit_count, reverse=True) or [0]
    largest: list[int] = []
    for mask in found:
        if not any(mask & other == mask for other in largest):
            largest.append(mask)
    return frozenset(
        frozenset(place for place, bit in bits.items() if mask & bit) for mask in largest
    )


def worst(
    seen: Iterable[Profile],
    runs: Iterable[Run],
    charged: Callable[[Run, Group], tuple[PrivacyEvent, ...]],
    *,
    delta: float,
    accountant: Accountant,
) -> float:
    """ε of the patient who lost most.

    Args:
        seen: what patients there are, from `profiles`.
        runs: what may have charged them.
        charged: `Run.paid` or `Run.owed`.
        delta: at which ε is read.
        accountant: computes it.
    """
    by_place: dict[Place, list[PrivacyEvent]] = defaultdict(list)
    for run in runs:
        for group in GROUPS:
            by_place[run.cohort, group] += charged(run, group)
    together = {
        compress(event for place in profile for event in by_place.get(place, ()))
        for profile in seen
    }
    return max((accountant(events, delta) for events in together if events), default=0.0)
