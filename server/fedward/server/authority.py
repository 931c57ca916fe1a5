"""What the coordinator's keys decide: who is a member, with which key, until when.

Every change makes a new version of the roster, signed by the issuer and written in one step; the
running service notices it. It is in the audit log before it is in the roster, so that nobody is a
member without an entry. One change at a time: a lock is held.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from fedward.common.audit import AuditLog
from fedward.common.errors import IdentityError
from fedward.common.files import output_error
from fedward.common.identity import (
    Certificate,
    Member,
    PrivateKey,
    Request,
    Role,
    Roster,
    issue,
    read_request,
    sign_roster,
)
from fedward.common.identity.enrolment import write_bundle
from fedward.common.identity.resealing import reseal
from fedward.server.founding import issue_server
from fedward.server.home import ConsortiumFolder
from fedward.server.rotation import (
    finish_rotation,
    load_issuer,
    prepare_server_key,
    replace_issuer,
    replace_server_certificate,
)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Enrolled:
    """Somebody was enrolled.

    Attributes:
        member: as the roster has them.
        certificate: that they were issued.
        bundle: text of the file to send them.
        version: of the roster that has them.
    """

    member: Member
    certificate: Certificate
    bundle: str
    version: int


class Registrar:
    """Holds the issuer's key, and changes the roster. Safe to use from several processes.

    Args:
        folder: of the consortium.
        passphrase: of its key files, if they have one.
        clock: gives the time in UTC.

    Raises:
        IdentityError: a key or certificate is missing or does not fit.
    """

    def __init__(
        self, folder: ConsortiumFolder, passphrase: str | None = None, clock: Clock = utc_now
    ) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._clock = clock
        self._root = folder.load_root()
        self._rosters = folder.load_roster()
        with self._locked():
            finish_rotation(folder, passphrase)
            self._finish_roster()

    @classmethod
    def open(cls, path: Path, passphrase: str | None = None, clock: Clock = utc_now) -> Self:
        """For the folder at `path`."""
        return cls(ConsortiumFolder.open(path), passphrase, clock)

    @property
    def roster(self) -> Roster:
        """The newest, as it is on disk."""
        return self._rosters.reload()

    def enroll(self, request: Request, role: Role = "site") -> Enrolled:
        """Make somebody a member and issue their certificate.

        The caller has compared the fingerprint. The same request again gives a new certificate and
        changes no roster.

        Raises:
            IdentityError: another key has that name, or the key was revoked or has another name.
        """
        with self._change() as (roster, log):
            member = roster.by_fingerprint(request.public_key.fingerprint)
            fresh = member is None
            if member is None:
                _check_free(roster, request.name, role)
                since = _text(self._clock())
                member = Member.make(request.name, role, request.public_key, since=since)
            _check_same(member, request.name, role)
            certificate = self._issue(member)
            log.append(
                "enroll" if fresh else "enroll-again",
                name=member.name,
                role=member.role,
                fingerprint=member.fingerprint,
                until=_text(certificate.not_after),
                roster=roster.version + fresh,
            )
            if fresh:
                roster = self._publish(roster, (*roster.members, member))
            issuer = self._issuer.certificate
            bundle = write_bundle(certificate, issuer, self._root, self._rosters.data, roster)
            return Enrolled(member, certificate, bundle, roster.version)

    def renew(self, site: str, request_pem: bytes) -> tuple[bytes, bytes]:
        """A new certificate for a member's key, over the link: nobody has to compare anything.

        Args:
            site: who asks, by the key that the link has checked.
            request_pem: for the same key and name.

        Returns:
            The certificate followed by the issuer's, and the roster.

        Raises:
            IdentityError: the request is for another key, or the member is not active.
        """
        request = read_request(request_pem)
        with self._change() as (roster, log):
            member = _active(roster, site)
            if (request.name, request.public_key) != (site, member.public_key):
                raise IdentityError(
                    "a certificate is renewed for the same name and key only",
                    hint="for a new key, send the coordinator a new request",
                )
            certificate = self._issue(member)
            log.append("renew", name=site, until=_text(certificate.not_after))
            chain = certificate.pem + self._issuer.certificate.pem
            return chain.encode(), self._rosters.data

    def revoke(self, name: str, reason: str) -> Roster:
        """End a membership; the running service drops the connection within seconds.

        Raises:
            IdentityError: nobody active has that name, or it is the coordinator's own.
        """
        with self._change() as (roster, log):
            member = _active(roster, name)
            if member.role == "coordinator":
                raise IdentityError(
                    "the coordinator cannot revoke itself", hint="use `fedward server rotate`"
                )
            log.append(
                "revoke",
                name=name,
                fingerprint=member.fingerprint,
                reason=reason,
                roster=roster.version + 1,
            )
            gone = member.revoked(reason, since=_text(self._clock()))
            return self._publish(roster, _replaced(roster, gone))

    def rotate(self, *, new_issuer: bool = False) -> Roster:
        """A new key and certificate for the server, and, if asked, a new issuer before that.

        The audit log's old key vouches for the new one.

        Raises:
            IdentityError: the root's key is needed for a new issuer and is not here.
        """
        with self._change() as (_, log):
            if new_issuer:
                replace_issuer(self.folder, self._root, log, self._passphrase, now=self._clock())
                self._issuer = load_issuer(self.folder, self._passphrase)
            self._rotate_server(log)
            self._finish_roster()
            return self._rosters.current

    def renew_server(self) -> Certificate:
        """A new certificate for the server's own key; the roster does not change."""
        with self._change() as (roster, log):
            key = self.folder.load_identity(self._passphrase).certificate.public_key
            member = roster.by_fingerprint(key.fingerprint)
            if member is None:
                raise IdentityError("the server is not in the roster", hint="rotate its key")
            certificate = self._issue(member)
            log.append("renew", name=member.name, until=_text(certificate.not_after))
            replace_server_certificate(self.folder, certificate, self._issuer.certificate)
            return certificate

    def encrypt_keys(self, passphrase: str | None) -> tuple[str, ...]:
        """Encrypt all key files that are here, however they are now; says their names.

        Raises:
            IdentityError: a file does not open, or the passphrase is missing or too short.
            OutputError: the disk refuses.
        """
        with self._locked():
            files = {path: PrivateKey.load(path, self._passphrase) for path in self.folder.keys}
            reseal({path: key.raw for path, key in files.items()}, self._passphrase, passphrase)
            self._passphrase = passphrase
        return tuple(path.name for path in files)

    def _rotate_server(self, log: AuditLog) -> None:
        name = self.folder.load_identity(self._passphrase).name
        key = prepare_server_key(
            self.folder,
            self._passphrase,
            lambda public: self._issue(
                Member.make(name, "coordinator", public, since=_text(self._clock()))
            ),
            self._issuer.certificate,
        )
        log.append("rotate", fingerprint=key.public.fingerprint)
        log.change_key(key)  # from here on, `finish_rotation` completes it
        finish_rotation(self.folder, self._passphrase)

    def _finish_roster(self) -> None:
        """See to it that the roster has the server's key, after a rotation or half of one."""
        roster = self._rosters.reload()
        own = self.folder.load_identity(self._passphrase).certificate
        self._issuer = load_issuer(self.folder, self._passphrase)
        if roster.by_fingerprint(own.fingerprint) is not None:
            return
        now = _text(self._clock())
        members = [
            m.revoked("rotated", since=now) if m.active and m.role == "coordinator" else m
            for m in roster.members
        ]
        members.append(Member.make(own.name, "coordinator", own.public_key, since=now))
        with self.folder.open_audit_log(self._passphrase) as log:
            log.append("rotated", fingerprint=own.fingerprint, roster=roster.version + 1)
        self._publish(roster, tuple(members))

    def _issue(self, member: Member) -> Certificate:
        settings, now = self.folder.settings, self._clock()
        if member.role == "coordinator":
            return issue_server(member, self._issuer, settings, now=now)
        days = settings.certificates.leaf_days
        return issue(member.public_key, member.name, member.role, self._issuer, now=now, days=days)

    def _publish(self, roster: Roster, members: tuple[Member, ...]) -> Roster:
        server, now = self.folder.settings.server, self._clock()
        after = Roster(
            consortium=roster.consortium,
            version=roster.version + 1,
            issued_at=_text(now),
            host=server.host,
            port=server.public_port or server.port,
            members=members,
        )
        data = sign_roster(after, self._issuer.key, self._issuer.certificate)
        self._rosters.accept(data, now=now)
        return after

    @contextmanager
    def _change(self) -> Iterator[tuple[Roster, AuditLog]]:
        with self._locked(), self.folder.open_audit_log(self._passphrase) as log:
            self._issuer = load_issuer(self.folder, self._passphrase)
            yield self._rosters.reload(), log

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.folder.identity / "lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def _check_free(roster: Roster, name: str, role: Role) -> None:
    known = roster.member(name)
    if known is not None and known.active:
        raise IdentityError(
            f"{name} is enrolled with another key",
            hint=f"if it has a new key, `fedward server revoke` {name} first",
        )
    if role == "coordinator":
        raise IdentityError(
            "a consortium has one coordinator",
            hint="for a new key of it, use `fedward server rotate`",
        )


def _check_same(member: Member, name: str, role: Role) -> None:
    if not member.active:
        raise IdentityError("this key was revoked", hint="the hospital has to make a new one")
    if (member.name, member.role) != (name, role):
        raise IdentityError(
            f"this key is enrolled as {member.role} {member.name} already",
            hint="a key has one name and one role",
        )


def _active(roster: Roster, name: str) -> Member:
    member = roster.member(name)
    if member is None or not member.active:
        raise IdentityError(f"{name} is no active member", hint="see `fedward server roster`")
    return member


def _replaced(roster: Roster, member: Member) -> tuple[Member, ...]:
    return tuple(member if m.fingerprint == member.fingerprint else m for m in roster.members)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")
