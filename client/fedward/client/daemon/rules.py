"""What a site allows at this moment: read from its folder each time, never remembered.

Whoever asks is told that it is not allowed, and no more: which rule it was is for the site's own
people, and stands in the error's cause.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fedward.client.daemon.desk import Decided
from fedward.client.daemon.remembered import decisions_went_back
from fedward.client.decisions import Decisions, Status
from fedward.client.home import SiteFolder
from fedward.client.offers import kept_offers
from fedward.client.policy import Finding, check, load_policy
from fedward.common.audit.chain import Head
from fedward.common.errors import PolicyError, StateError
from fedward.common.files import read_bytes
from fedward.common.identity import PrivateKey
from fedward.common.statements import DECISION, state
from fedward.common.study import Study

_UNWILLING = {
    "approved": "this site has not approved the study",  # by now it has: it was asked too early
    "waiting": "this site has not approved the study",
    "refused": "this site has refused the study",
    "withdrawn": "this site has withdrawn from the study",
}
_CHOICES = {"approved": "approve", "refused": "refuse", "withdrawn": "withdraw"}


class SiteRules:
    """Stewards' decisions and the site's policy.

    Args:
        home: the site's folder.
        key: of the site: decisions are signed with it, here and on the way to the server.
        now: gives the local time.
    """

    def __init__(self, home: SiteFolder, key: PrivateKey, *, now: Callable[[], datetime]) -> None:
        self._home = home
        self._key = key
        self._now = now
        self._decisions = Decisions(home.decisions, key.public)

    def check_study(self, name: str, study: Study) -> None:
        """Return if stewards and policy allow this study now, whatever the hour.

        Raises:
            PolicyError: they do not (any more).
            StateError: decisions or manifest are not what was signed.
            SiteConfigError: the policy cannot be read.
        """
        policy = load_policy(self._home.policy_file)
        try:
            status = self._decisions.require_approved(name, policy)
        except PolicyError as error:
            said = _UNWILLING[self._decisions.status(name, policy).state]
            raise PolicyError(said, hint="ask its stewards") from error
        manifest = read_bytes(
            self._home.manifests / f"{name}.json",
            error=StateError,
            hint="have the study approved again",
        )
        # Its hash is that of its canonical form, and no other form of it is read.
        if hashlib.sha256(manifest).hexdigest() != status.manifest:
            raise StateError(
                "the manifest is not the one that was approved",
                hint="have the study approved again",
            )
        _raise_first(
            [found for found in check(policy, study, self._now()) if not found.temporary],
            "this site's policy does not allow the study",
        )

    def check_hours(self, study: Study) -> None:
        """Return if work is allowed at this hour.

        Raises:
            PolicyError: it is not.
        """
        policy = load_policy(self._home.policy_file)
        _raise_first(
            [found for found in check(policy, study, self._now()) if found.temporary],
            "outside the hours that this site's policy allows",
        )

    @property
    def end(self) -> Head | None:
        """The end of the record of decisions, verified; None if nothing was decided yet."""
        return self._decisions.head

    def check_holds(self, seen: Any) -> None:
        """Return if the record of decisions still holds what the audit log says of it.

        Args:
            seen: its end, from `remembered.last_end`.

        Raises:
            StateError: it was put back to an older copy, or is another one.
        """
        if seen is not None and not self._decisions.holds(Head.read(seen)):
            raise decisions_went_back()

    def states(self) -> dict[str, str]:
        """Where every study stands that was offered: approved, waiting, refused or withdrawn."""
        return {name: status.state for name, status in self._statuses().items()}

    def undecided(self) -> frozenset[str]:
        """Studies that were offered and that nobody has said anything about."""
        return frozenset(n for n, status in self._statuses().items() if status.untouched)

    def _statuses(self) -> dict[str, Status]:
        policy = load_policy(self._home.policy_file)
        return self._decisions.statuses(kept_offers(self._home.studies), policy)

    def decided(self) -> Mapping[str, Decided]:
        """What the server should have on record, signed now."""
        head = self._decisions.head
        found: dict[str, Decided] = {}
        for name, where in self.states().items():
            choice = _CHOICES.get(where)
            if choice is None:
                continue
            content = {
                "study": name,
                "choice": choice,
                "at_ms": int(self._now().timestamp() * 1000),
                "decisions": None if head is None else head.to_dict(),
            }
            said = state(DECISION, self._home.settings.site.name, content, self._key)
            found[name] = Decided(choice, said.decode())
        return found


def _raise_first(findings: list[Finding], told: str) -> None:
    if findings:
        raise PolicyError(told, hint="ask its stewards") from findings[0].error
