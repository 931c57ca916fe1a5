"""What a site's patients have been charged so far in one run: privacy events, not ε.

Events are written *before* the release that they pay for, so that a crash costs the whole
reservation. ε is computed from all of them together, never summed per round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from fedward.common.errors import PrivacyError
from fedward.common.privacy.events import PrivacyEvent, event_from_dict, event_to_dict

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


class Spending:
    """Append-only list of charges of one site in one run."""

    def __init__(self, charges: tuple[Charge, ...] = ()) -> None:
        self._charges = list(charges)

    def charge(self, round_number: int, group: Group, event: PrivacyEvent) -> None:
        """Record a release that is about to happen."""
        self._charges.append(Charge(round_number, group, event))

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Everything recorded, oldest first."""
        return tuple(self._charges)

    def events(self, group: Group, *, until: int | None = None) -> tuple[PrivacyEvent, ...]:
        """Events of one group of patients, up to and including round `until`."""
        return tuple(
            charge.event
            for charge in self._charges
            if charge.group == group and (until is None or charge.round <= until)
        )
