"""The roster: who is a member of the consortium, signed by its issuer. Its version only grows.

A peer is known by its public key, whose fingerprint must be that of an active member. So a renewed
certificate for the same key changes no roster, and a revoked key is refused whatever certificate it
shows.

    >>> member = Member.make("north", "site", PrivateKey.generate().public, since="2026-01-01")
    >>> roster = Roster(consortium="Example", version=1, issued_at="2026-01-01T00:00:00+00:00",
    ...                 host="fl.example.org", port=8440, members=(member,))
    >>> roster.member("north").fingerprint == member.fingerprint
    True
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from fedward.common.audit.chain import canonical
from fedward.common.errors import IdentityError
from fedward.common.identity.certificates import (
    Certificate,
    Role,
    check_issuer,
    read_certificate,
    read_certificates,
)
from fedward.common.identity.issuing import Authority
from fedward.common.identity.keys import PrivateKey, PublicKey
from fedward.common.study.section import Name, Section

_DOMAIN = b"fedward roster v1\0"
_MOST_MEMBERS = 2_000
_ASK = "ask the coordinator for the roster again"


class Member(Section):
    """One key of one member.

    Attributes:
        name: of the member.
        role: coordinator, site or observer.
        key: public key, PEM.
        fingerprint: of the key.
        status: whether it may take part.
        since: when that was decided, ISO 8601.
        reason: why it is revoked; empty if it is not.
    """

    name: Name
    role: Role
    key: str
    fingerprint: str
    status: Literal["active", "revoked"] = "active"
    since: str
    reason: str = ""
    _public_key: PublicKey = PrivateAttr()

    @model_validator(mode="after")
    def _fingerprint_is_of_key(self) -> Self:
        try:
            key = PublicKey.from_pem(self.key)
        except IdentityError as error:
            raise ValueError(error.problem) from error
        if (key.fingerprint, key.pem) != (self.fingerprint, self.key):
            raise ValueError("key and fingerprint do not belong together")
        self._public_key = key
        return self

    @classmethod
    def make(cls, name: str, role: Role, key: PublicKey, *, since: str) -> Self:
        """An active member."""
        return cls(name=name, role=role, key=key.pem, fingerprint=key.fingerprint, since=since)

    @property
    def public_key(self) -> PublicKey:
        """The key."""
        return self._public_key

    @property
    def active(self) -> bool:
        """Whether it may take part."""
        return self.status == "active"

    def revoked(self, reason: str, *, since: str) -> Self:
        """The same, revoked."""
        values = self.model_dump() | {"status": "revoked", "reason": reason, "since": since}
        return type(self).model_validate(values)


class Roster(Section):
    """Everybody who is, or was, a member.

    Attributes:
        consortium: its name.
        version: grows with every change.
        issued_at: ISO 8601, UTC.
        host: where the server is reached.
        port: at that host.
        members: current and former keys; of one name at most one is active.
    """

    consortium: str
    version: Annotated[int, Field(ge=1)]
    issued_at: str
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    members: Annotated[tuple[Member, ...], Field(max_length=_MOST_MEMBERS)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [member.name for member in self.members if member.active]
        keys = [member.fingerprint for member in self.members]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise ValueError("a name or a key is there twice")
        return self

    def member(self, name: str) -> Member | None:
        """The active member of that name; else what was last known by it."""
        found = [member for member in self.members if member.name == name]
        return next((m for m in found if m.active), found[-1] if found else None)

    def by_fingerprint(self, fingerprint: str) -> Member | None:
        """The member, active or not, with that key."""
        return next((m for m in self.members if m.fingerprint == fingerprint), None)

    @property
    def coordinator(self) -> Member:
        """The active coordinator.

        Raises:
            IdentityError: there is none.
        """
        for member in self.members:
            if member.active and member.role == "coordinator":
                return member
        raise IdentityError("the roster has no coordinator", hint=_ASK)


def sign_roster(roster: Roster, issuer_key: PrivateKey, issuer_cert: Certificate | str) -> bytes:
    """The roster as it is kept and sent: one line of JSON with the issuer's certificate."""
    if not isinstance(issuer_cert, Certificate):
        issuer_cert = read_certificate(issuer_cert)
    issuer = Authority(issuer_key, issuer_cert)
    content = roster.model_dump(mode="json")
    signature = issuer.key.sign(_DOMAIN + canonical(content)).hex()
    parts = {"roster": content, "issuer": issuer.certificate.pem, "signature": signature}
    return canonical(parts) + b"\n"


def read_roster(
    data: bytes,
    root_cert_pem: str | bytes,
    *,
    not_before_version: int = 0,
    now: datetime | None = None,
) -> Roster:
    """Check a roster against the root that was pinned at enrolment.

    Args:
        data: what `sign_roster` gave.
        root_cert_pem: the pinned root.
        not_before_version: the newest version seen so far.
        now: the time; of the clock by default.

    Raises:
        IdentityError: it is not by this consortium's issuer, was changed, or is an older version.
    """
    issuer, signature, content = _parts(data)
    check_issuer(issuer, read_certificate(root_cert_pem), now=now or datetime.now(UTC))
    issuer.public_key.verify(signature, _DOMAIN + canonical(content))
    try:
        roster = Roster.model_validate_json(canonical(content))
    except ValidationError as error:
        raise IdentityError("the roster has an entry that is not allowed", hint=_ASK) from error
    if roster.consortium != issuer.consortium:
        raise IdentityError("the roster is of another consortium", hint=_ASK)
    if roster.version < not_before_version:
        raise IdentityError(
            f"the roster is version {roster.version}, but version {not_before_version} was seen",
            hint="do not go back; ask the coordinator why an old roster was sent",
        )
    return roster


def roster_issuer(data: bytes) -> Certificate:
    """The certificate that a roster came with, unchecked.

    Raises:
        IdentityError: it cannot be read.
    """
    return _parts(data)[0]


def _parts(data: bytes) -> tuple[Certificate, bytes, dict[str, object]]:
    try:
        value = json.loads(data)
        parts = value["issuer"], value["signature"], value["roster"]
        certificates = read_certificates(parts[0])
        signature, content = bytes.fromhex(parts[1]), dict(parts[2])
        again = canonical(
            {"issuer": certificates[0].pem, "signature": signature.hex(), "roster": content}
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IdentityError("the roster cannot be read", hint=_ASK) from error
    if again + b"\n" != data:
        raise IdentityError("the roster is not as it was written", hint=_ASK)
    return certificates[0], signature, content
