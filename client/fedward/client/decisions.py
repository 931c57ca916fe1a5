"""What the site's people decided about a study: named, reasoned, signed, and read again every time.

Decisions are entries of a chained log that the site's key signs (`state/decisions/decisions.log`).
Nothing is remembered from one use to the next: `require_approved` reads and verifies all of it.

A study may be computed if, since the last withdrawal or refusal of exactly this study (by hash), as
many different people as the policy needs, all of whom it still names, have approved it with one and
the same manifest of the cohort. So a withdrawal holds for ever, unless everybody who is needed
approves the study anew; and so does a refusal, by whomever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from fedward.client.ledger.entries import Hash
from fedward.client.policy import Policy
from fedward.common.audit.chain import Head
from fedward.common.audit.entries import read_entries
from fedward.common.audit.log import AuditLog, Signer
from fedward.common.audit.verify import verify_log
from fedward.common.errors import PolicyError, StateError
from fedward.common.identity.keys import PublicKey
from fedward.common.study.section import Section

Verdict = Literal["approve", "refuse", "withdraw"]
KIND = "decision"
_FILE = "decisions.log"


class Decision(Section):
    """What one person decided.

    Attributes:
        study: hash of the study.
        decision: what.
        by: name of the person.
        reason: in their words.
        time: UTC, ISO 8601.
        manifest: digest of the cohort's manifest, for an approval; else empty.
        policy: digest of the site's policy at that time.
    """

    study: Hash
    decision: Verdict
    by: str = Field(min_length=1, max_length=200)
    reason: str = Field(min_length=1, max_length=2000)
    time: str
    manifest: Hash | Literal[""] = ""
    policy: Hash


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        study: hash of the study.
        state: "approved", "waiting" for more approvals, "refused", "withdrawn".
        needed: how many approvals the policy wants.
        approvals: those that count, oldest first.
        manifest: digest of the manifest that they approved; empty without any.
        ended: the refusal or withdrawal that holds, if any.
    """

    study: str
    state: Literal["approved", "waiting", "refused", "withdrawn"]
    needed: int
    approvals: tuple[Decision, ...]
    manifest: str
    ended: Decision | None

    @property
    def untouched(self) -> bool:
        """Whether nobody ever decided anything that still counts."""
        return not self.approvals and self.ended is None

    @property
    def approved(self) -> bool:
        """Whether it may be computed."""
        return self.state == "approved"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {
            "study": self.study,
            "state": self.state,
            "needed": self.needed,
            "approved_by": [decision.by for decision in self.approvals],
            "manifest": self.manifest,
            "ended": None if self.ended is None else self.ended.model_dump(mode="json"),
        }


class Decisions:
    """The decisions in a site's folder.

    Args:
        folder: `state/decisions`.
        key: of the site, that must have signed them.
        clock: gives the time in UTC.
    """

    def __init__(
        self, folder: Path, key: PublicKey, clock: Callable[[], datetime] | None = None
    ) -> None:
        self._path = folder / _FILE
        self._key = key
        self._clock = clock or (lambda: datetime.now(UTC))

    @property
    def path(self) -> Path:
        """Of the log."""
        return self._path

    def record(
        self,
        signer: Signer,
        policy: Policy,
        *,
        study: str,
        decision: Verdict,
        by: str,
        reason: str,
        manifest: str = "",
    ) -> Decision:
        """Write a decision down; when this returns it is signed and on the disk.

        Args:
            signer: the site's key.
            policy: as it is now.
            study: hash of the study.
            decision: what.
            by: who; an approver of the policy. Anyone may withdraw.
            reason: why; never empty.
            manifest: digest of what is approved.

        Raises:
            PolicyError: the policy does not name them, they gave no reason, or they have approved
                it before.
            StateError: other approvals that still hold are for another manifest; or the log is
                broken.
        """
        by, reason = by.strip(), reason.strip()
        self.check_may_decide(policy, study, decision, by, reason)
        if decision == "approve":
            self._check_manifest(policy, study, manifest)
        made = Decision(
            study=study,
            decision=decision,
            by=by,
            reason=reason,
            time=self._clock().astimezone(UTC).isoformat(timespec="seconds"),
            manifest=manifest if decision == "approve" else "",
            policy=policy.digest,
        )
        with AuditLog.open(self._path, signer, self._clock) as log:
            log.append(KIND, **made.model_dump(mode="json"))
        return made

    def check_may_decide(
        self, policy: Policy, study: str, decision: Verdict, by: str, reason: str
    ) -> None:
        """Refuse a decision that somebody may not make, before any work is done for it.

        Raises:
            PolicyError: the policy does not name them, they gave no reason, or they have approved
                it before.
        """
        if not reason.strip() or not by.strip():
            raise PolicyError("a decision needs a name and a reason", hint="give --by and --reason")
        if decision != "withdraw" and by not in policy.approvers:
            raise PolicyError(
                f"{by} is not among the approvers of policy.toml", hint="add the name there first"
            )
        if decision == "approve":
            approvals = self.status(study, policy).approvals
            if any(approval.by == by for approval in approvals):
                raise PolicyError(f"{by} has approved this study before", hint="ask somebody else")

    def _check_manifest(self, policy: Policy, study: str, manifest: str) -> None:
        status = self.status(study, policy)
        if not manifest or (status.approvals and status.manifest != manifest):
            raise StateError(
                "the data have changed since the study was first approved",
                hint="withdraw the study, then have everybody approve it anew",
            )

    def all(self) -> tuple[Decision, ...]:
        """Every decision, oldest first, verified.

        Raises:
            StateError: the log was changed by something else, or is not signed by the site's key.
        """
        return tuple(self._read())

    @property
    def head(self) -> Head | None:
        """The end of the verified log; None if nothing was decided yet."""
        return self._verify() if self._path.exists() else None

    def holds(self, head: Head) -> bool:
        """Whether the record, at that length, had that end: nothing up to there is gone."""
        if not self._path.exists():
            return head.length == 0
        self._verify()
        return any((e.seq, e.hash) == (head.length, head.hash) for e in read_entries(self._path))

    def _verify(self) -> Head:
        found = verify_log(self._path, self._key)
        if not found.ok:
            raise StateError(
                f"the record of decisions cannot be trusted: {found.problem}",
                hint="keep the file as evidence; nothing is computed until it is put back",
            )
        return found.head

    def _read(self) -> Iterator[Decision]:
        if not self._path.exists():
            return
        self._verify()
        for entry in read_entries(self._path):
            if entry.kind != KIND:
                continue
            try:
                yield Decision.model_validate(entry.facts)
            except ValidationError as error:
                raise StateError(
                    "the record of decisions has an entry that is not understood",
                    hint="use the version of fedward that wrote it, or a later one",
                ) from error

    def status(self, study: str, policy: Policy) -> Status:
        """Where a study stands under the policy as it is now."""
        return self.statuses([study], policy)[study]

    def statuses(self, studies: Iterable[str], policy: Policy) -> dict[str, Status]:
        """Where several studies stand: the record is read and verified once."""
        decisions: dict[str, list[Decision]] = {study: [] for study in studies}
        for decision in self._read():
            if decision.study in decisions:
                decisions[decision.study].append(decision)
        return {study: _status(study, policy, made) for study, made in decisions.items()}

    def require_approved(self, study: str, policy: Policy) -> Status:
        """Refuse what the site's people have not approved.

        Raises:
            PolicyError: they have not, or not enough of them, or somebody withdrew.
            StateError: the record of decisions cannot be trusted.
        """
        status = self.status(study, policy)
        if status.approved:
            return status
        if status.ended is not None and not status.approvals:
            word = "withdrawn" if status.state == "withdrawn" else "refused"
            problem = f"the study was {word} at this site"
            hint = "everybody who is needed has to approve it anew: `fedward client approve`"
        else:
            problem = f"{len(status.approvals)} of {status.needed} approvals are there"
            hint = "review the study, then `fedward client approve`"
        raise PolicyError(problem, hint=hint)


def _status(study: str, policy: Policy, decisions: list[Decision]) -> Status:
    """Replay the decisions about one study."""
    ended: Decision | None = None
    approvals: dict[str, Decision] = {}
    for decision in decisions:
        if decision.decision == "approve":
            approvals[decision.by] = decision
        else:
            ended, approvals = decision, {}
    counted = [d for d in approvals.values() if d.by in policy.approvers]
    manifest = counted[-1].manifest if counted else ""
    counted = [d for d in counted if d.manifest == manifest]
    enough = len(counted) >= policy.approvals_needed and bool(manifest)
    state: Literal["approved", "waiting", "refused", "withdrawn"] = "waiting"
    if enough:
        state = "approved"
    elif ended is not None:
        state = "withdrawn" if ended.decision == "withdraw" else "refused"
    return Status(study, state, policy.approvals_needed, tuple(counted), manifest, ended)
