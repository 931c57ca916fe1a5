"""Founding a consortium: root, issuer, the server's own key and certificate, the first roster.

The folder appears when it is complete, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from fedward.common.errors import OutputError
from fedward.common.files import output_error, private_folder, staging, write_atomic
from fedward.common.identity import (
    Authority,
    Certificate,
    Member,
    PrivateKey,
    Roster,
    issue,
    make_issuer,
    make_root,
    sign_roster,
)
from fedward.common.settings import fill
from fedward.server.home import ConsortiumFolder
from fedward.server.settings import ServerSettings


@dataclass(frozen=True)
class Plan:
    """What a consortium is founded with.

    Attributes:
        consortium: its name.
        host: where hospitals reach the server.
        port: there.
        name: of the coordinator in the roster.
        passphrase: for all key files, or none.
    """

    consortium: str
    host: str
    port: int = 8440
    name: str = "coordinator"
    passphrase: str | None = None


def found(path: Path, plan: Plan, *, now: datetime) -> ConsortiumFolder:
    """Make a consortium's folder.

    Raises:
        OutputError: there is something at `path`, or the disk refuses.
        IdentityError: a name, the host or the passphrase is not allowed.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path.name or path} exists already", hint="choose a new folder")
    with staging(path) as building:
        _fill(ConsortiumFolder(building), plan, now)
        try:
            building.rename(path)
        except OSError as error:
            raise output_error(path, error) from error
    return ConsortiumFolder.open(path)


def _fill(folder: ConsortiumFolder, plan: Plan, now: datetime) -> None:
    for inside in (folder.path, folder.ca, folder.identity, folder.runs):
        private_folder(inside)
    template = resources.files("fedward.server") / "templates" / "server.toml"
    text = fill(
        template.read_text(encoding="utf-8"),
        consortium=plan.consortium,
        name=plan.name,
        host=plan.host,
        port=plan.port,
    )
    write_atomic(folder.settings_file, text)
    settings = folder.settings

    root_key, issuer_key, server_key = (PrivateKey.generate() for _ in range(3))
    root = make_root(root_key, plan.consortium, now=now)
    days = settings.certificates.issuer_days
    issuer = make_issuer(issuer_key.public, Authority(root_key, root), now=now, days=days)
    authority = Authority(issuer_key, issuer)
    member = Member.make(
        plan.name, "coordinator", server_key.public, since=now.isoformat(timespec="seconds")
    )
    leaf = issue_server(member, authority, settings, now=now)

    root_key.save(folder.root_key, plan.passphrase)
    issuer_key.save(folder.issuer_key, plan.passphrase)
    server_key.save(folder.server_key, plan.passphrase)
    for target in (folder.ca / "root.crt", folder.root_certificate):
        write_atomic(target, root.pem)
    write_atomic(folder.issuer_certificate, issuer.pem)
    write_atomic(folder.server_certificate, leaf.pem + issuer.pem)
    write_atomic(folder.roster_file, sign_roster(_first(plan, member), issuer_key, issuer))
    with folder.open_audit_log(plan.passphrase) as log:
        log.append(
            "found",
            consortium=plan.consortium,
            root=root.fingerprint,
            issuer=issuer.fingerprint,
            roster=1,
        )


def _first(plan: Plan, member: Member) -> Roster:
    return Roster(
        consortium=plan.consortium,
        version=1,
        issued_at=member.since,
        host=plan.host,
        port=plan.port,
        members=(member,),
    )


def issue_server(
    member: Member, issuer: Authority, settings: ServerSettings, *, now: datetime
) -> Certificate:
    """The server's certificate: for every name that it is reached by, and for this machine."""
    hosts = _distinct((settings.server.host, *settings.server.hosts, *LOCAL))
    days = settings.certificates.leaf_days
    return issue(
        member.public_key, member.name, "coordinator", issuer, now=now, days=days, hosts=hosts
    )


LOCAL: Sequence[str] = ("localhost", "127.0.0.1", "::1")
"""Names by which a machine reaches itself: for `rehearse` and for looking after the service."""


def _distinct(hosts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(hosts))
