"""A consortium in memory, for tests: root, issuer, a coordinator, sites."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fedward.common.identity import (
    Authority,
    Certificate,
    Member,
    PrivateKey,
    Role,
    Roster,
    issue,
    make_issuer,
    make_root,
    sign_roster,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Consortium:
    """Everything is made at `now`; keys by name are made when they are asked for."""

    name: str = "Example"
    now: datetime = NOW
    keys: dict[str, PrivateKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Authority(
            self.key("root"), make_root(self.key("root"), self.name, now=self.now)
        )
        issuer = make_issuer(self.key("issuer").public, self.root, now=self.now)
        self.issuer = Authority(self.key("issuer"), issuer)

    def key(self, name: str) -> PrivateKey:
        return self.keys.setdefault(name, PrivateKey.generate())

    def leaf(self, name: str, role: Role = "site", **options: object) -> Certificate:
        given = {"now": self.now, **options}
        return issue(self.key(name).public, name, role, self.issuer, **given)  # type: ignore[arg-type]

    def member(self, name: str, role: Role = "site") -> Member:
        return Member.make(name, role, self.key(name).public, since=self.now.isoformat())

    def roster(self, *sites: str, version: int = 1) -> Roster:
        members = [self.member("coordinator", "coordinator"), *map(self.member, sites)]
        return Roster(
            consortium=self.name,
            version=version,
            issued_at=self.now.isoformat(),
            host="fl.example.org",
            port=8440,
            members=tuple(members),
        )

    def signed(self, roster: Roster) -> bytes:
        return sign_roster(roster, self.issuer.key, self.issuer.certificate)
