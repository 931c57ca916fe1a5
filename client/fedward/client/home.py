"""The site's folder: where everything of a hospital is kept. Nothing in it is meant to be sent.

north/
  client.toml   settings of the daemon
  site.toml     where the data are
  policy.toml   what may be studied
  identity/     site.key, site.csr, site.crt, root.crt, patients.key
  roster.json   who is a member of the consortium, signed
  state/        ledger.sqlite, audit.log, studies/, decisions/, manifests/, inbox/, outbox/,
                status.json, lock
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedward.client.settings import ClientSettings
from fedward.common.audit.log import AuditLog
from fedward.common.errors import IdentityError, StateError
from fedward.common.files import private_folder, read_bytes
from fedward.common.identity.keys import PrivateKey, PublicKey
from fedward.common.identity.own import Identity
from fedward.common.identity.requests import read_request
from fedward.common.identity.roster_file import RosterFile
from fedward.common.identity.secret_file import load_secret
from fedward.common.settings import load_settings

_INSTALL = "install what the coordinator sent: `fedward client install`"


@dataclass(frozen=True)
class Address:
    """Where the server is.

    Attributes:
        host: to connect to.
        port: to connect to.
        name: that the server's certificate must be for.
        coordinator: its name in the roster.
    """

    host: str
    port: int
    name: str
    coordinator: str


@dataclass(frozen=True)
class SiteFolder:
    """Paths in a site's folder, and what is read from them.

    Attributes:
        path: of the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> SiteFolder:
        """A folder that `fedward client init` made.

        Raises:
            StateError: it is not one.
        """
        folder = cls(path)
        if not folder.settings_file.is_file():
            raise StateError(
                f"{path.name or path} is not a site's folder",
                hint="check the path, or make one with `fedward client init`",
            )
        return folder

    @property
    def settings_file(self) -> Path:
        """`client.toml`."""
        return self.path / "client.toml"

    @property
    def site_file(self) -> Path:
        """`site.toml`."""
        return self.path / "site.toml"

    @property
    def policy_file(self) -> Path:
        """`policy.toml`."""
        return self.path / "policy.toml"

    @property
    def identity(self) -> Path:
        """Folder of the keys."""
        return self.path / "identity"

    @property
    def key(self) -> Path:
        """The site's private key."""
        return self.identity / "site.key"

    @property
    def request(self) -> Path:
        """The request for a certificate."""
        return self.identity / "site.csr"

    @property
    def certificate(self) -> Path:
        """The site's certificate, followed by the issuer's."""
        return self.identity / "site.crt"

    @property
    def root_certificate(self) -> Path:
        """The consortium's root, as it was compared at enrolment."""
        return self.identity / "root.crt"

    @property
    def patients_key(self) -> Path:
        """32 secret bytes: key of patients' hashes and of the division into training and test."""
        return self.identity / "patients.key"

    @property
    def keys(self) -> tuple[Path, ...]:
        """All files with secrets."""
        return self.key, self.patients_key

    @property
    def roster_file(self) -> Path:
        """The signed roster."""
        return self.path / "roster.json"

    @property
    def state(self) -> Path:
        """Folder of what the daemon keeps."""
        return self.path / self.settings.state.folder

    @property
    def ledger(self) -> Path:
        """What was released about patients, and what it cost."""
        return self.state / "ledger.sqlite"

    @property
    def audit_log(self) -> Path:
        """See `common.audit.log`."""
        return self.state / "audit.log"

    @property
    def studies(self) -> Path:
        """Studies that were offered."""
        return self.state / "studies"

    @property
    def decisions(self) -> Path:
        """What the stewards decided."""
        return self.state / "decisions"

    @property
    def manifests(self) -> Path:
        """Which patients were approved for which study."""
        return self.state / "manifests"

    @property
    def inbox(self) -> Path:
        """Tasks on their way in."""
        return self.state / "inbox"

    @property
    def outbox(self) -> Path:
        """Replies on their way out."""
        return self.state / "outbox"

    @property
    def logs(self) -> Path:
        """Folder of the daemon's own log files."""
        return self.state / "logs"

    @property
    def status(self) -> Path:
        """What the running daemon says of itself."""
        return self.state / "status.json"

    @property
    def lock(self) -> Path:
        """Held by the running daemon."""
        return self.state / "lock"

    @cached_property
    def settings(self) -> ClientSettings:
        """What `client.toml` says.

        Raises:
            SiteConfigError: it is missing or wrong.
        """
        return load_settings(self.settings_file, ClientSettings)

    def load_key(self, passphrase: str | None = None) -> PrivateKey:
        """The site's private key.

        Raises:
            IdentityError: it is missing, others may read it, or the passphrase is wrong.
        """
        return PrivateKey.load(self.key, passphrase)

    def load_public_key(self) -> PublicKey:
        """The site's public key, which its request for a certificate holds.

        Raises:
            IdentityError: the request is missing.
        """
        hint = "restore it from a backup"
        return read_request(read_bytes(self.request, error=IdentityError, hint=hint)).public_key

    def load_patients_key(self, passphrase: str | None = None) -> bytes:
        """See `patients_key`.

        Raises:
            IdentityError: it is missing, others may read it, it is too short, or the passphrase is
                wrong.
        """
        return load_secret(self.patients_key, passphrase)

    def load_identity(self, passphrase: str | None = None) -> Identity:
        """The site's key and certificates.

        Raises:
            IdentityError: one is missing, or they do not belong together or to this site.
        """
        return self.load_identity_of(self.load_key(passphrase))

    def load_identity_of(self, key: PrivateKey) -> Identity:
        """The site's certificates for a key that is loaded already; see `load_identity`."""
        found = Identity.load(key, self.certificate, self.root_certificate)
        if found.name != self.settings.site.name:
            raise IdentityError("the certificate is for a site of another name", hint=_INSTALL)
        return found

    def open_audit_log(self, key: PrivateKey) -> AuditLog:
        """The audit log, signed by the site's key.

        Raises:
            StateError: the log is damaged, or was begun with another key.
        """
        private_folder(self.state)
        return AuditLog.open(self.audit_log, key)

    def load_roster(self) -> RosterFile:
        """The newest roster that this site has seen.

        Raises:
            IdentityError: there is none, or it cannot be trusted.
        """
        root = read_bytes(self.root_certificate, error=IdentityError, hint=_INSTALL)
        return RosterFile(self.roster_file, root)

    def server(self) -> Address:
        """Where the server is: as `client.toml` says, else as the roster does.

        Raises:
            IdentityError: there is no roster yet.
        """
        given, roster = self.settings.server, self.load_roster().current
        host = given.host or roster.host
        return Address(
            host=host,
            port=given.port or roster.port,
            name=given.name or host,
            coordinator=given.coordinator or roster.coordinator.name,
        )
