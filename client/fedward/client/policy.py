"""What a site allows, whoever asks: the file `policy.toml`.

It is written by the site's own people and never leaves. Each rule is checked against a study before
anyone is asked to approve it, and again before every task; what does not fit is refused, with the
policy's key and the study's value. Unknown keys are errors.

    >>> from fedward.common.study.load import EXAMPLE, parse_study
    >>> policy = Policy(approvers=("Dr Example",))
    >>> [finding.key for finding in check(policy, parse_study(EXAMPLE), datetime(2026, 1, 5, 12))]
    ['min_sites_at_least', 'require_dp']
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedward.client.ledger.account import Caps
from fedward.common.audit.chain import canonical
from fedward.common.errors import PolicyError
from fedward.common.files import write_atomic
from fedward.common.privacy.accounting import LARGEST_EPSILON, SMALLEST_DELTA
from fedward.common.settings import load_settings
from fedward.common.study import Study, study_hash
from fedward.common.study.section import Count, Section

TEMPLATE = (Path(__file__).parent / "templates" / "policy.toml").read_text(encoding="utf-8")
"""A policy file with every key explained; its values are the defaults."""

Allowed = Literal["any"] | tuple[Annotated[str, Field(min_length=1)], ...]
Epsilon = Annotated[float, Field(gt=0.0, le=LARGEST_EPSILON)]
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Policy(Section):
    """A whole `policy.toml`; see the template for what each key means."""

    studies: Allowed = "any"
    models: Allowed = "any"
    algorithms: Allowed = "any"
    min_cell_at_least: Count = 10
    min_sites_at_least: Count = 2
    require_dp: bool = True
    max_runs_per_study: Count = 1
    require_secure_aggregation: bool = False
    max_epsilon_per_study: Epsilon = 8.0
    max_epsilon_total: Epsilon = 8.0
    delta: Annotated[float, Field(ge=SMALLEST_DELTA, lt=1.0)] = 1e-5
    hours: str = "any"
    approvers: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    approvals_needed: Count = 1

    @field_validator("hours")
    @classmethod
    def _hours_are_a_span(cls, hours: str) -> str:
        match = _HOURS.fullmatch(hours)
        if hours != "any" and (match is None or match[1] + match[2] == match[3] + match[4]):
            raise ValueError("give hours as '20:00-06:00' in local time, or 'any'")
        return hours

    @model_validator(mode="after")
    def _approvals_can_be_had(self) -> Self:
        if len(set(map(_spoken, self.approvers))) != len(self.approvers):
            raise ValueError("approvers must differ from each other, in more than their spelling")
        if self.approvers and self.approvals_needed > len(self.approvers):
            raise ValueError("approvals_needed is more than there are approvers")
        if self.max_epsilon_per_study > self.max_epsilon_total:
            raise ValueError("max_epsilon_per_study is above max_epsilon_total")
        return self

    @property
    def caps(self) -> Caps:
        """What the ledger holds studies to."""
        return Caps(self.max_epsilon_per_study, self.max_epsilon_total, self.delta)

    @property
    def digest(self) -> str:
        """SHA-256 over every rule: what a decision was made under."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    def open_at(self, now: datetime) -> bool:
        """Whether work is allowed at this local time; spans may pass midnight."""
        if self.hours == "any":
            return True
        first, last = (time.fromisoformat(part) for part in self.hours.split("-"))
        moment = now.time()
        if first < last:
            return first <= moment < last
        return moment >= first or moment < last


@dataclass(frozen=True)
class Finding:
    """A rule that a study does not meet.

    Attributes:
        key: of the policy.
        value: what the study says.
        allowed: what the policy says.
        temporary: it may be met later, with the same study and policy.
    """

    key: str
    value: str
    allowed: str
    temporary: bool = False

    def __str__(self) -> str:
        return f"policy.toml {self.key} = {self.allowed}; the study has {self.value}"

    @property
    def error(self) -> PolicyError:
        """As a refusal."""
        hint = (
            "wait until then"
            if self.temporary
            else "ask for another study, or change the policy if that is right"
        )
        return PolicyError(f"the site's policy does not allow this study: {self}", hint=hint)


def _spoken(name: str) -> str:
    """A name as it sounds: one person may not count twice as "Dr. Berg" and "DR BERG".

    >>> _spoken("Dr. Åsa  Berg") == _spoken("dr åsa berg")
    True
    """
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(c for c in plain if c.isalnum()) or name


def load_policy(path: Path) -> Policy:
    """Read and check a `policy.toml`.

    Raises:
        SiteConfigError: it is missing, is no TOML, or breaks the rules of its keys.
    """
    return load_settings(path, Policy)


def write_template(path: Path) -> None:
    """Write a policy that allows little and explains everything, for people to edit.

    Raises:
        OutputError: the disk refuses.
    """
    write_atomic(path, TEMPLATE)


def check(policy: Policy, study: Study, now: datetime) -> list[Finding]:
    """Every rule that a study does not meet at this (local) time; empty if it is allowed."""
    return [*_about_study(policy, study), *_about_privacy(policy, study), *_about_time(policy, now)]


def require(policy: Policy, study: Study, now: datetime) -> None:
    """Refuse a study that the policy does not allow.

    Raises:
        PolicyError: the first rule that it does not meet.
    """
    for finding in check(policy, study, now):
        raise finding.error


def _about_study(policy: Policy, study: Study) -> Iterator[Finding]:
    known = study_hash(study)
    if not (_allows(policy.studies, study.study.name) or _allows(policy.studies, known)):
        yield Finding("studies", f"{study.study.name} ({known[:12]})", _shown(policy.studies))
    if not _allows(policy.models, study.model.name):
        yield Finding("models", study.model.name, _shown(policy.models))
    if not _allows(policy.algorithms, study.algorithm.name):
        yield Finding("algorithms", study.algorithm.name, _shown(policy.algorithms))
    if study.evaluation.min_cell < policy.min_cell_at_least:
        yield Finding(
            "min_cell_at_least",
            f"[evaluation] min_cell = {study.evaluation.min_cell}",
            str(policy.min_cell_at_least),
        )
    if study.aggregation.min_sites < policy.min_sites_at_least:
        yield Finding(
            "min_sites_at_least",
            f"[aggregation] min_sites = {study.aggregation.min_sites}",
            str(policy.min_sites_at_least),
        )
    if policy.require_secure_aggregation and not study.aggregation.secure:
        yield Finding("require_secure_aggregation", "[aggregation] secure = false", "true")


def _about_privacy(policy: Policy, study: Study) -> Iterator[Finding]:
    if not study.private:
        if policy.require_dp:
            yield Finding("require_dp", "[privacy] mode = 'none'", "true")
        return
    epsilon = study.privacy.epsilon or 0.0
    if epsilon > policy.max_epsilon_per_study:
        value = f"[privacy] epsilon = {epsilon:g}"
        yield Finding("max_epsilon_per_study", value, f"{policy.max_epsilon_per_study:g}")


def _about_time(policy: Policy, now: datetime) -> Iterator[Finding]:
    if not policy.open_at(now):
        yield Finding("hours", f"to wait, it is {now:%H:%M}", policy.hours, temporary=True)


def _allows(allowed: Allowed, name: str) -> bool:
    return allowed == "any" or name in allowed


def _shown(allowed: Allowed) -> str:
    return allowed if isinstance(allowed, str) else "[" + ", ".join(allowed) + "]"
