"""What a ledger's entries say: typed values, and JSON that nothing is lost or added in.

Events are written, never ε: what they cost follows from all of them together (`account`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError

from fedward.client.spending import Group
from fedward.common.errors import StateError
from fedward.common.privacy.events import PrivacyEvent, event_from_dict, event_to_dict
from fedward.common.study.section import Section

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunName = Annotated[str, Field(min_length=1, max_length=200)]
Event = Annotated[
    PrivacyEvent,
    PlainValidator(lambda v: event_from_dict(v) if isinstance(v, dict) else v),
    PlainSerializer(event_to_dict),
]


class CohortMade(Section):
    """A set of patients that studies may be charged to; who they are stands beside the chain.

    Attributes:
        cohort: its id, a hash over the three below and every patient's keyed hash and group.
        identified_by: keyed hash of what tells patients apart; empty if only their rows do.
        unit: whose data a promise about this cohort protects.
        members: how many patients.
    """

    kind: ClassVar[str] = "cohort"
    cohort: Hash
    identified_by: str
    unit: Literal["patient", "record"]
    members: Annotated[int, Field(ge=0)]


class Admitted(Section):
    """A whole study is set aside, for one run, or taken up again.

    Attributes:
        study: hash of the study.
        run: which execution of it.
        cohort: id of the cohort.
        plan: hash of the site's privacy plan.
        private: whether the study promises anything; if not, it costs what cannot be counted.
        training: all that it may release about a patient kept for training.
        testing: all that it may release about a patient kept for testing.
        epsilon_per_study: the site's cap when it was admitted, as the two below.
        epsilon_total: likewise.
        delta: at which the caps hold.
        code: version of fedward.
    """

    kind: ClassVar[str] = "admit"
    study: Hash
    run: RunName
    cohort: Hash
    plan: Hash
    private: bool
    training: tuple[Event, ...]
    testing: tuple[Event, ...]
    epsilon_per_study: float
    epsilon_total: float
    delta: float
    code: str


class Reserved(Section):
    """A release that is about to happen; it is paid for from here on, whatever comes.

    `relation` says between which two data sets the cost is counted: one unit is in them, or not.
    """

    kind: ClassVar[str] = "reserve"
    study: Hash
    run: RunName
    round: Annotated[int, Field(ge=0)]
    group: Group
    cohort: Hash
    unit: Literal["patient", "record"]
    relation: Literal["add-or-remove-one"] = "add-or-remove-one"
    event: Event
    plan: Hash
    code: str

    @property
    def purpose(self) -> str:
        """What is done once a round: training, statistics or evaluation."""
        return purpose_of(self.event)


class Committed(Section):
    """The reply that a reservation paid for is durable."""

    kind: ClassVar[str] = "commit"
    reservation: Annotated[int, Field(ge=1)]
    reply: Hash


class Closed(Section):
    """A run will reserve nothing more: what it did not reserve is free again.

    `for_good` says that it is over, not only paused: it is never admitted again.
    """

    kind: ClassVar[str] = "close"
    study: Hash
    run: RunName
    outcome: Annotated[str, Field(min_length=1, max_length=200)]
    for_good: bool = False


class Witnessed(Section):
    """Somebody else has put a head of this ledger on record, and signed it."""

    kind: ClassVar[str] = "witness"
    length: Annotated[int, Field(ge=0)]
    hash: Hash
    by: Annotated[str, Field(min_length=1, max_length=200)]
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


LedgerEntry = CohortMade | Admitted | Reserved | Committed | Closed | Witnessed

_KINDS: dict[str, type[LedgerEntry]] = {
    kind.kind: kind for kind in (CohortMade, Admitted, Reserved, Committed, Closed, Witnessed)
}


def purpose_of(event: PrivacyEvent) -> str:
    """What is done once a round: training, statistics or evaluation."""
    return str(getattr(event, "purpose", "training"))


def entry_to_dict(entry: LedgerEntry) -> dict[str, Any]:
    """JSON-safe form, without the kind."""
    return entry.model_dump(mode="json")


def entry_from_dict(kind: str, body: dict[str, Any]) -> LedgerEntry:
    """The reverse of `entry_to_dict`.

    Raises:
        StateError: unknown kind, missing or unknown key, or a value out of range. Nothing is
            skipped: an entry that is not understood may have cost anything.
    """
    try:
        return _KINDS[kind].model_validate(body)
    except (KeyError, ValidationError) as error:
        raise StateError(
            "the privacy ledger has an entry that is not understood",
            hint="use the version of fedward that wrote it, or a later one",
        ) from error
