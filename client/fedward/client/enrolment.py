"""How a site becomes a member: its keys are made here and stay here; what comes back is checked.

Nothing is installed that does not fit this site's key and name, the roster, and the root that was
compared with the coordinator once. All of it can be done again, and after a crash must be.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from fedward.client.home import SiteFolder
from fedward.common.errors import IdentityError, OutputError, StateError
from fedward.common.files import private_folder, read_bytes, write_atomic
from fedward.common.identity.certificates import (
    Certificate,
    check_chain,
    read_certificate,
    read_certificates,
)
from fedward.common.identity.enrolment import Bundle, check_own, read_bundle
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.names import check_name
from fedward.common.identity.requests import make_request
from fedward.common.identity.roster_file import RosterFile
from fedward.common.identity.secret_file import SECRET_BYTES, save_secret
from fedward.common.settings import fill


@dataclass(frozen=True)
class Installed:
    """What an installation changed.

    Attributes:
        site: its name.
        until: when the certificate ends.
        version: of the roster.
        changed: whether anything is new.
    """

    site: str
    until: datetime
    version: int
    changed: bool


def make_site(path: Path, site: str, passphrase: str | None = None) -> SiteFolder:
    """Make a site's folder: keys, request, settings. What people wrote there before stays.

    The request is also written beside the folder, as `SITE.csr`, to be sent.

    Raises:
        StateError: it is a site's folder already.
        IdentityError: the name or the passphrase is not allowed.
        OutputError: the disk refuses, or a file is in the way.
    """
    check_name(site)
    folder = SiteFolder(path)
    if folder.settings_file.exists():
        raise StateError(
            f"{path.name or path} is a site's folder already",
            hint=f"to send its request again, it is {folder.request}",
        )
    sent = request_beside(path, site)
    if sent.exists() and not folder.request.exists():
        raise OutputError(
            f"{sent.name} exists already", hint="move it away, or choose another name"
        )
    for inside in (path, folder.identity):
        private_folder(inside)
    # The settings come last: without them it is no site's folder, and this starts again.
    key = _make_keys(folder, passphrase)
    request = make_request(key, site)
    write_atomic(folder.request, request)
    write_atomic(sent, request)
    _write_templates(folder, site)
    with folder.open_audit_log(key) as log:
        log.append("init", site=site, fingerprint=key.public.fingerprint)
    return folder


def request_beside(path: Path, site: str) -> Path:
    """Where the copy of the request that is to be sent is written."""
    return path.absolute().parent / f"{site}.csr"


def _make_keys(folder: SiteFolder, passphrase: str | None) -> PrivateKey:
    if not folder.patients_key.exists():
        save_secret(folder.patients_key, secrets.token_bytes(SECRET_BYTES), passphrase)
    if folder.key.exists():
        return PrivateKey.load(folder.key, passphrase)
    key = PrivateKey.generate()
    key.save(folder.key, passphrase)
    return key


def _write_templates(folder: SiteFolder, site: str) -> None:
    templates = resources.files("fedward.client") / "templates"
    for path in (folder.site_file, folder.policy_file, folder.settings_file):
        if not path.exists():
            text = (templates / path.name).read_text(encoding="utf-8")
            write_atomic(path, fill(text, name=site))


def install(
    folder: SiteFolder,
    data: bytes,
    *,
    confirm: Callable[[Certificate], None],
    passphrase: str | None = None,
    now: datetime | None = None,
) -> Installed:
    """Install what the coordinator sent; also a later file, with a newer certificate or roster.

    Args:
        folder: of the site.
        data: the enrolment file.
        confirm: asks whether a root is the consortium's; raises if not. Called only the first time.
        passphrase: of the site's key.
        now: the time; of the clock by default.

    Raises:
        IdentityError: it is not for this site, was changed, has expired, is older than what is
            here, or is of another consortium.
        OutputError: the disk refuses.
    """
    now = now or datetime.now(UTC)
    key = folder.load_key(passphrase)
    bundle = read_bundle(data, now=now)
    check_own(bundle, folder.settings.site.name, key.public)
    if folder.root_certificate.exists():
        _check_pinned(folder, bundle)
    else:
        confirm(bundle.root)
    changed = RosterFile(folder.roster_file, bundle.root.pem).accept(bundle.roster_data, now=now)
    changed |= _write_certificates(folder, bundle.leaf, bundle.issuer, bundle.root)
    if changed:
        with folder.open_audit_log(key) as log:
            log.append(
                "install",
                root=bundle.root.fingerprint,
                roster=bundle.roster.version,
                until=bundle.leaf.not_after.isoformat(),
            )
    until = read_certificate(read_bytes(folder.certificate)).not_after
    return Installed(bundle.leaf.name, until, bundle.roster.version, changed)


def install_renewed(
    folder: SiteFolder, key: PrivateKey, chain_pem: bytes, *, now: datetime | None = None
) -> bool:
    """Install a renewed certificate that came over the link; False if ours is as good.

    Raises:
        IdentityError: it is not for our key and name, or not from our consortium.
        OutputError: the disk refuses.
    """
    chain = read_certificates(chain_pem)
    own = folder.load_identity_of(key)
    if len(chain) != 2 or (chain[0].name, chain[0].role) != (own.name, own.certificate.role):
        raise IdentityError("the renewed certificate is not this site's", hint=_ASK)
    check_chain(chain[0], chain[1], own.root, now=now or datetime.now(UTC))
    if chain[0].public_key != key.public:
        raise IdentityError("the renewed certificate is for another key", hint=_ASK)
    return _write_certificates(folder, chain[0], chain[1], own.root)


_ASK = "ask the coordinator; the present certificate stays"


def _check_pinned(folder: SiteFolder, bundle: Bundle) -> None:
    pinned = read_certificate(read_bytes(folder.root_certificate, error=IdentityError))
    if pinned.raw != bundle.root.raw:
        raise IdentityError(
            "the enrolment file is of another consortium than the one that was confirmed here",
            hint="for another consortium, make another folder",
        )


def _write_certificates(
    folder: SiteFolder, leaf: Certificate, issuer: Certificate, root: Certificate
) -> bool:
    if not folder.root_certificate.exists():
        write_atomic(folder.root_certificate, root.pem)
    if folder.certificate.exists():
        present = read_certificate(read_bytes(folder.certificate, error=IdentityError))
        if present.not_after >= leaf.not_after:
            return False
    write_atomic(folder.certificate, leaf.pem + issuer.pem)
    return True
