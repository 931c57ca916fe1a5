"""The coordinator's folder: where everything of a consortium is kept.

consortium/
  server.toml      settings
  ca/              root.key, root.crt; root.key may be kept elsewhere, offline
  identity/        issuer.key, issuer.crt, server.key, server.crt, root.crt
  roster.json      who is a member, signed
  registry.sqlite  sites, studies, runs (unless server.toml names another database)
  audit.log        what was done, signed
  runs/RUN/        checkpoints, replies on their way, the released model
  status.json      what the running service says of itself
  lock             held by the running service
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedward.common.audit.log import AuditLog
from fedward.common.errors import IdentityError, StateError
from fedward.common.files import read_bytes
from fedward.common.identity.certificates import Certificate, read_certificate
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.own import Identity
from fedward.common.identity.roster_file import RosterFile
from fedward.common.settings import expand, load_settings
from fedward.server.settings import ServerSettings


@dataclass(frozen=True)
class ConsortiumFolder:
    """Paths in a coordinator's folder, and what is read from them.

    Attributes:
        path: of the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> ConsortiumFolder:
        """A folder that `fedward server init` made.

        Raises:
            StateError: it is not one.
        """
        folder = cls(path)
        if not folder.settings_file.is_file() or not folder.roster_file.is_file():
            raise StateError(
                f"{path.name or path} is not a consortium's folder",
                hint="check the path, or make one with `fedward server init`",
            )
        return folder

    @property
    def settings_file(self) -> Path:
        """`server.toml`."""
        return self.path / "server.toml"

    @property
    def ca(self) -> Path:
        """Folder of the root; may be taken offline."""
        return self.path / "ca"

    @property
    def root_key(self) -> Path:
        """Private key of the root; may be offline."""
        return self.ca / "root.key"

    @property
    def identity(self) -> Path:
        """Folder of the keys that are needed every day."""
        return self.path / "identity"

    @property
    def root_certificate(self) -> Path:
        """The root's certificate: the copy that stays when `ca` is taken away."""
        return self.identity / "root.crt"

    @property
    def issuer_key(self) -> Path:
        """Private key that signs certificates and the roster."""
        return self.identity / "issuer.key"

    @property
    def issuer_certificate(self) -> Path:
        """That belongs to it."""
        return self.identity / "issuer.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the service."""
        return self.identity / "server.key"

    @property
    def keys(self) -> tuple[Path, ...]:
        """All private keys that are here."""
        here = (self.server_key, self.issuer_key)
        return (*here, self.root_key) if self.root_key.exists() else here

    @property
    def server_certificate(self) -> Path:
        """That belongs to it, followed by the issuer's."""
        return self.identity / "server.crt"

    @property
    def roster_file(self) -> Path:
        """The signed roster."""
        return self.path / "roster.json"

    @property
    def audit_log(self) -> Path:
        """See `common.audit.log`."""
        return self.path / "audit.log"

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.path / "runs"

    def run(self, run: str) -> Path:
        """Folder of one run."""
        return self.runs / run

    @property
    def status(self) -> Path:
        """What the running service says of itself."""
        return self.path / "status.json"

    @property
    def lock(self) -> Path:
        """Held by the running service."""
        return self.path / "lock"

    @property
    def logs(self) -> Path:
        """Folder of the service's own log files."""
        return self.path / "logs"

    @cached_property
    def settings(self) -> ServerSettings:
        """What `server.toml` says.

        Raises:
            SiteConfigError: it is missing or wrong.
        """
        return load_settings(self.settings_file, ServerSettings)

    @property
    def database(self) -> str | Path:
        """URL of the registry, or its file."""
        return expand(self.settings.server.database) or self.path / "registry.sqlite"

    def load_identity(self, passphrase: str | None = None) -> Identity:
        """The service's own key and certificates.

        Raises:
            IdentityError: one is missing, or they do not belong together.
        """
        key = PrivateKey.load(self.server_key, passphrase)
        return Identity.load(key, self.server_certificate, self.root_certificate)

    def open_audit_log(self, passphrase: str | None = None) -> AuditLog:
        """The audit log, signed by the server's key; a rotated key is found when it is needed.

        Raises:
            IdentityError: the key is missing, or the log continues with one that is.
            StateError: the log is damaged.
        """

        def successor(fingerprint: str) -> PrivateKey:
            for path in (self.server_key, upcoming(self.server_key)):
                if path.exists():
                    key = PrivateKey.load(path, passphrase)
                    if key.public.fingerprint == fingerprint:
                        return key
            raise IdentityError("the audit log's key is missing", hint="restore it from a backup")

        signer = PrivateKey.load(self.server_key, passphrase)
        return AuditLog.open(self.audit_log, signer, successor=successor)

    def load_root(self) -> Certificate:
        """The root's certificate.

        Raises:
            IdentityError: it is missing.
        """
        return read_certificate(_read(self.root_certificate))

    def load_roster(self) -> RosterFile:
        """The roster.

        Raises:
            IdentityError: it is missing or cannot be trusted.
        """
        return RosterFile(self.roster_file, _read(self.root_certificate))


def upcoming(path: Path) -> Path:
    """Where a file waits that is to take the place of another."""
    return path.with_name(path.name + ".next")


def _read(path: Path) -> bytes:
    return read_bytes(path, error=IdentityError, hint="restore it from a backup")
