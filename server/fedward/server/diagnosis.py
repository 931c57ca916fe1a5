"""What can be wrong with a coordinator's server. Nothing is changed by looking."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from fedward.common.diagnosis import Advice, Check, machine, network
from fedward.common.diagnosis.passphrase import passphrase
from fedward.common.errors import IdentityError
from fedward.common.identity.certificates import Certificate, check_chain
from fedward.common.identity.key_files import read_secret
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.own import Identity
from fedward.common.lock import is_held
from fedward.server.home import ConsortiumFolder

_EARLY = timedelta(days=30)


class ServerDiagnosis:
    """The checks of one consortium's server.

    Args:
        folder: the coordinator's.
        passphrase: of the service's key.
        now: the time, with its zone.
    """

    def __init__(
        self,
        folder: ConsortiumFolder,
        *,
        passphrase: str | None = None,
        now: datetime | None = None,
    ) -> None:
        self._folder = folder
        self._passphrase = passphrase
        self._now = now or datetime.now(UTC)

    def checks(self) -> tuple[Check, ...]:
        """All of them, in order."""
        return (
            Check("settings", self.settings),
            Check("keys", self.keys),
            Check("passphrase", self.passphrase, needs=("keys",)),
            Check("root key", self.root_key),
            Check("certificate", self.certificate, needs=("keys",)),
            Check("issuer", self.issuer, needs=("keys",)),
            Check("host", self.host, needs=("settings", "certificate")),
            Check("roster", self.roster, needs=("certificate",)),
            Check("database", self.database, needs=("settings",)),
            Check("disk", self.disk),
            Check("limits", machine.limits),
            Check("port", self.port, needs=("settings",)),
            Check("audit log", self.audit_log, needs=("keys",)),
        )

    @cached_property
    def _key(self) -> PrivateKey:
        return PrivateKey.load(self._folder.server_key, self._passphrase)

    @cached_property
    def _identity(self) -> Identity:
        return self._folder.load_identity(self._passphrase)

    def settings(self) -> str:
        """`server.toml`."""
        return self._folder.settings.server.consortium

    def keys(self) -> str:
        """The service's and the issuer's: there, and nobody else's."""
        fingerprint = self._key.public.fingerprint
        read_secret(self._folder.issuer_key)
        return f"only their owner may read them; fingerprint {fingerprint[:16]}…"

    def passphrase(self) -> str | Advice:
        """Whether all that are here need one."""
        return passphrase(self._folder.keys, "fedward server encrypt-keys")

    def root_key(self) -> str | Advice:
        """Whether the root's key is away, as it should be."""
        if self._folder.root_key.exists():
            read_secret(self._folder.root_key)
            return Advice(
                "it is on this machine", "move the folder ca to a medium that is kept in a safe"
            )
        return "it is kept elsewhere"

    def certificate(self) -> str | Advice:
        """The service's own."""
        me = self._identity
        todo = "run `fedward server rotate`"
        found = self._dates(me.certificate, todo)
        check_chain(me.certificate, me.issuer, me.root, now=self._now)
        return found

    def issuer(self) -> str | Advice:
        """The issuer's."""
        return self._dates(
            self._identity.issuer, "bring the root's key and run `fedward server rotate --issuer`"
        )

    def _dates(self, certificate: Certificate, todo: str) -> str | Advice:
        return machine.dates(certificate, self._now, early=_EARLY, todo=todo, renew=todo)

    def host(self) -> str:
        """Whether the certificate is for the name that hospitals use, and that has an address."""
        server = self._folder.settings.server
        if server.host not in self._identity.certificate.hosts:
            raise IdentityError(
                f"the certificate is not for {server.host}", hint="run `fedward server rotate`"
            )
        return network.resolve(server.host, server.public_port or server.port)

    def roster(self) -> str:
        """Whether it can be trusted, and names this server."""
        roster = self._folder.load_roster().current
        member = roster.by_fingerprint(self._key.public.fingerprint)
        if member is None or not member.active or member.role != "coordinator":
            raise IdentityError(
                "the roster does not name this server's key as its coordinator's",
                hint="restore roster.json and identity from the same backup",
            )
        sites = sum(member.active and member.role == "site" for member in roster.members)
        return f"version {roster.version}, {sites} active sites"

    def database(self) -> str:
        """Whether the registry answers."""
        from fedward.server.registry import Registry

        url = self._folder.database
        if isinstance(url, Path) and not url.is_file():
            return "there is none yet"
        with Registry.open(url) as registry:
            runs = registry.runs()
        return f"it answers; {len(runs)} runs"

    def disk(self) -> str | Advice:
        """Whether the folder has room."""
        return machine.disk(self._folder.path)

    def port(self) -> str:
        """Whether the service listens, or could."""
        server = self._folder.settings.server
        if is_held(self._folder.lock):
            return f"the service runs, at port {server.port}"
        return network.free_port(server.listen, server.port)

    def audit_log(self) -> str:
        """Whether the audit log is whole."""
        return machine.audit_log(self._folder.audit_log, self._key.public)


def diagnosis(path: Path, *, passphrase: str | None = None) -> ServerDiagnosis:
    """The checks of the server in a folder.

    Raises:
        StateError: it is no consortium's folder.
    """
    return ServerDiagnosis(ConsortiumFolder.open(path), passphrase=passphrase)
