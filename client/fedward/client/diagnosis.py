"""What can be wrong at a hospital, looked at in the order in which one thing needs another.

Nothing is changed, nothing about data is sent: the server is greeted, as by the daemon.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from fedward.client.daemon.status import read_status
from fedward.client.home import SiteFolder
from fedward.client.ledger.opened import OpenLedger
from fedward.client.offers import kept_offers, kept_study
from fedward.client.policy import load_policy
from fedward.client.site_config import load_site_config
from fedward.common.diagnosis import Advice, Check, machine, network
from fedward.common.diagnosis.passphrase import passphrase
from fedward.common.errors import DataError, IdentityError, LinkError
from fedward.common.identity.keys import PrivateKey
from fedward.common.identity.own import Identity
from fedward.common.identity.roster import Roster
from fedward.common.lock import is_held

_UP = ("up", "connected")
_ASK = "ask the coordinator for a new one, then `fedward client install`"


class SiteDiagnosis:
    """The checks of one site.

    Args:
        folder: the site's.
        passphrase: of its key.
        now: the time, with its zone.
        timeout_s: for each step on the network.
    """

    def __init__(
        self,
        folder: SiteFolder,
        *,
        passphrase: str | None = None,
        now: datetime | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._folder = folder
        self._passphrase = passphrase
        self._now = now or datetime.now(UTC)
        self._timeout_s = timeout_s
        self._skew_s = 0.0

    def checks(self) -> tuple[Check, ...]:
        """All of them, in order."""
        return (
            Check("settings", self.settings),
            Check("keys", self.keys, needs=("settings",)),
            Check("passphrase", self.passphrase, needs=("keys",)),
            Check("certificate", self.certificate, needs=("keys",)),
            Check("roster", self.roster, needs=("certificate",)),
            Check("name", self.name, needs=("roster",)),
            Check("port", self.port, needs=("name",)),
            Check("tls", self.tls, needs=("port",)),
            Check("greeting", self.greeting, needs=("tls",)),
            Check("clock", self.clock, needs=("greeting",)),
            Check("disk", self.disk, needs=("settings",)),
            Check("limits", self.limits, needs=("settings",)),
            Check("daemon", self.daemon, needs=("settings",)),
            Check("ledger", self.ledger, needs=("settings",)),
            Check("audit log", self.audit_log, needs=("keys",)),
            Check("policy", self.policy),
            Check("site.toml", self.site_toml),
            Check("data", self.data, needs=("keys", "site.toml")),
        )

    @cached_property
    def _key(self) -> PrivateKey:
        return self._folder.load_key(self._passphrase)

    @cached_property
    def _identity(self) -> Identity:
        return self._folder.load_identity(self._passphrase)

    @cached_property
    def _roster(self) -> Roster:
        return self._folder.load_roster().current

    def settings(self) -> str:
        """`client.toml`."""
        return f"site {self._folder.settings.site.name}"

    def keys(self) -> str:
        """Both secret files: there, and nobody else's."""
        spoken = self._key.public.fingerprint[:16]
        self._folder.load_patients_key(self._passphrase)
        return f"only their owner may read them; fingerprint {spoken}…"

    def passphrase(self) -> str | Advice:
        """Whether both files need one."""
        return passphrase(self._folder.keys, "fedward client encrypt-keys")

    def certificate(self) -> str | Advice:
        """Whether it is this site's, and for how long."""
        leaf = self._identity.certificate
        return machine.dates(
            leaf,
            self._now,
            # The daemon renews in the last third: in the last quarter, it has not run.
            early=(leaf.not_after - leaf.not_before) / 4,
            todo="let the daemon run: it renews the certificate by itself",
            renew=_ASK,
        )

    def roster(self) -> str:
        """Whether this site is an active member, with this key."""
        roster, name = self._roster, self._folder.settings.site.name
        member = roster.by_fingerprint(self._key.public.fingerprint)
        if member is None:
            raise IdentityError(
                f"site {name} is not in the roster with this key", hint="ask the coordinator"
            )
        if not member.active:
            raise IdentityError(f"site {name} was revoked", hint="ask the coordinator why")
        return f"version {roster.version} of {roster.consortium}"

    def name(self) -> str:
        """Whether the server's name has an address."""
        address = self._folder.server()
        return network.resolve(address.host, address.port)

    def port(self) -> str:
        """Whether the server's port can be reached."""
        address = self._folder.server()
        return network.connect(address.host, address.port, self._timeout_s)

    def tls(self) -> str:
        """Whether both sides accept each other's certificates, and who answers."""
        address = self._folder.server()
        shown = network.handshake(
            address.host,
            address.port,
            address.name,
            certificate=self._folder.certificate,
            key=self._folder.key,
            passphrase=self._passphrase,
            root_pem=self._identity.root_pem,
            timeout_s=self._timeout_s,
        )
        member = self._roster.member(address.coordinator)
        if member is None or shown.fingerprint != member.fingerprint:
            raise IdentityError(
                "who answers is not the coordinator of this site's roster",
                hint="ask the coordinator, over the telephone, whether its key has changed",
            )
        return f"TLS 1.3 with {shown.name}"

    def greeting(self) -> str:
        """Whether the server greets this site."""
        if is_held(self._folder.lock):  # a greeting would end the daemon's session
            return self._greeting_of_daemon()
        release, self._skew_s = asyncio.run(self._greet())
        return f"the server runs fedward {release}"

    def _greeting_of_daemon(self) -> str:
        said = read_status(self._folder.status)
        skew_s = said.get("skew_s")
        self._skew_s = float(skew_s) if isinstance(skew_s, int | float) else 0.0
        if said.get("link") not in _UP:
            raise LinkError(
                f"the running daemon has no connection: {said.get('link', 'it does not say why')}",
                hint="look at its log",
            )
        return "left to the running daemon, which is connected"

    async def _greet(self) -> tuple[str, float]:
        # Loads gRPC: only here, so that everything before it can be looked at without.
        from fedward.client.link.connection import Endpoint, open_channel, stub_of
        from fedward.client.link.greeting import greet

        address = self._folder.server()
        channel = open_channel(Endpoint(address.host, address.port), self._identity)
        try:
            greeting = await greet(
                stub_of(channel), self._identity, self._roster, patience_s=self._timeout_s
            )
        finally:
            await channel.close()
        return str(greeting.answer.get("software", "of unknown version"))[:32], greeting.skew_s

    def clock(self) -> str | Advice:
        """Whether both clocks agree."""
        return machine.clock(self._skew_s)

    def disk(self) -> str | Advice:
        """Whether the folder has room."""
        return machine.disk(self._folder.path)

    def limits(self) -> str | Advice:
        """Whether training may use what the settings allow it."""
        worker = self._folder.settings.worker
        return machine.limits(worker.memory_mb * worker.runs)

    def daemon(self) -> str | Advice:
        """Whether it runs."""
        if is_held(self._folder.lock):
            return "it runs"
        return Advice("it does not run", "start it: `fedward client run`, or systemctl start")

    def ledger(self) -> str:
        """Whether the privacy ledger is whole."""
        if not self._folder.ledger.is_file():
            return "there is none yet"
        with OpenLedger(self._folder.ledger) as ledger:
            ledger.cohorts()
            return f"whole, {ledger.head.length} entries"

    def audit_log(self) -> str:
        """Whether the audit log is whole."""
        return machine.audit_log(self._folder.audit_log, self._key.public)

    def policy(self) -> str:
        """`policy.toml`."""
        load_policy(self._folder.policy_file)
        return "it can be read"

    def site_toml(self) -> str:
        """`site.toml`."""
        config = load_site_config(self._folder.site_file)
        return f"data of kind {config.source.kind}"

    def data(self) -> str:
        """Whether the data fit every study that was offered."""
        from fedward.client.quality import check_quality

        config = load_site_config(self._folder.site_file)
        offers = kept_offers(self._folder.studies)
        for name in offers:
            study = kept_study(self._folder.studies, name)
            report = check_quality(
                study, config, key=self._folder.load_patients_key(self._passphrase)
            )
            if not report.usable:
                raise DataError(
                    f"study {study.study.name} refuses these data: {report.problems[0]}",
                    hint="see `fedward client check-data`",
                )
        return f"fit {len(offers)} offered studies" if offers else "no study was offered yet"


def diagnosis(path: Path, *, passphrase: str | None = None) -> SiteDiagnosis:
    """The checks of the site in a folder.

    Raises:
        StateError: it is no site's folder.
    """
    return SiteDiagnosis(SiteFolder.open(path), passphrase=passphrase)
