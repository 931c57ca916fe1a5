"""New keys for issuer and server, such that a crash at any point leaves the old or the new.

A new key and its certificate wait beside the old ones (`upcoming`). What commits to the issuer's is
its certificate taking its place, and to the server's the audit log's entry that vouches for it;
whoever opens the folder next completes what was committed to and removes what was not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fedward.common.audit import AuditLog, current_key
from fedward.common.errors import IdentityError
from fedward.common.files import move, read_bytes, write_atomic
from fedward.common.identity import (
    Authority,
    Certificate,
    PrivateKey,
    PublicKey,
    make_issuer,
    read_certificate,
)
from fedward.server.home import ConsortiumFolder, upcoming

_RESTORE = "restore it from a backup"


def load_issuer(folder: ConsortiumFolder, passphrase: str | None) -> Authority:
    """The issuer; a replacement that a crash interrupted is completed or dropped.

    Nobody else may be replacing it at the same time.

    Raises:
        IdentityError: key or certificate is missing, or they do not fit.
    """
    certificate = _certificate(folder.issuer_certificate)
    waiting = upcoming(folder.issuer_key)
    if waiting.exists():
        if PrivateKey.load(waiting, passphrase).public == certificate.public_key:
            move(waiting, folder.issuer_key)
        else:
            _remove(waiting)
    return Authority(PrivateKey.load(folder.issuer_key, passphrase), certificate)


def replace_issuer(
    folder: ConsortiumFolder,
    root: Certificate,
    log: AuditLog,
    passphrase: str | None,
    *,
    now: datetime,
) -> None:
    """A new issuer under the same root.

    Raises:
        IdentityError: the root's key is not here, or is another.
    """
    if not folder.root_key.exists():
        raise IdentityError(
            "the root's key is not here", hint=f"bring {folder.root_key.name} back for a moment"
        )
    top = Authority(PrivateKey.load(folder.root_key, passphrase), root)
    key, days = PrivateKey.generate(), folder.settings.certificates.issuer_days
    certificate = make_issuer(key.public, top, now=now, days=days)
    key.save(upcoming(folder.issuer_key), passphrase)
    log.append("rotate-issuer", fingerprint=certificate.fingerprint)
    write_atomic(folder.issuer_certificate, certificate.pem)
    load_issuer(folder, passphrase)


def prepare_server_key(
    folder: ConsortiumFolder,
    passphrase: str | None,
    issue: Callable[[PublicKey], Certificate],
    issuer: Certificate,
) -> PrivateKey:
    """Make a key and certificate for the server, waiting to be taken."""
    key = PrivateKey.generate()
    write_atomic(upcoming(folder.server_certificate), issue(key.public).pem + issuer.pem)
    key.save(upcoming(folder.server_key), passphrase)
    return key


def replace_server_certificate(
    folder: ConsortiumFolder, certificate: Certificate, issuer: Certificate
) -> None:
    """A new certificate for the server's present key."""
    write_atomic(folder.server_certificate, certificate.pem + issuer.pem)


def finish_rotation(folder: ConsortiumFolder, passphrase: str | None) -> None:
    """Complete the server's rotation that the audit log vouches for; drop any other."""
    key, certificate = upcoming(folder.server_key), upcoming(folder.server_certificate)
    if key.exists():
        if PrivateKey.load(key, passphrase).public.fingerprint == current_key(folder.audit_log):
            if certificate.exists():
                move(certificate, folder.server_certificate)
            move(key, folder.server_key)
        else:
            _remove(key)
    _remove(certificate)


def _certificate(path: Path) -> Certificate:
    return read_certificate(read_bytes(path, error=IdentityError, hint=_RESTORE))


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
