"""The daemon as a whole: `serve` runs until it is told to stop.

    folder locked → logs and ledger opened, each checked → link, desk and watch, side by side

What ends one of the three ends the service, and systemd starts it again. Told to stop, it ends
training at once: a private round that is cut off is spent, and the next one is done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from typing import Any

from fedward.client.daemon.account import Account
from fedward.client.daemon.changes import Changes, recorded
from fedward.client.daemon.daemon import Daemon
from fedward.client.daemon.desk import Desk
from fedward.client.daemon.ending import RunOf, Told, settle
from fedward.client.daemon.parts import link_settings, place, pool, watched
from fedward.client.daemon.record import Record
from fedward.client.daemon.remembered import LACKS, check_own, lacking
from fedward.client.daemon.rules import SiteRules
from fedward.client.daemon.seams import Place, Signals
from fedward.client.daemon.shown import Shown
from fedward.client.daemon.status import Status
from fedward.client.daemon.watch import LOOK_S, Watch, stood
from fedward.client.daemon.witness import Witness
from fedward.client.enrolment import install_renewed
from fedward.client.home import SiteFolder
from fedward.client.link.assignments import Assignment
from fedward.client.link.link import Link
from fedward.client.outbox import Outbox
from fedward.common import records
from fedward.common.audit import AuditLog
from fedward.common.audit.chain import Head
from fedward.common.errors import FedwardError, StateError
from fedward.common.files import private_folder
from fedward.common.identity import Identity, RosterFile, read_certificate
from fedward.common.lock import held
from fedward.common.monitoring.endpoint import Endpoint
from fedward.common.notify import Notifier

_LOG = logging.getLogger(__name__)
_MOST_LACKING = 100
"""Ends that the log keeps of those that the ledger lacks: each is one that the site has signed."""
_STOP_S = 8.0
"""How long the end may take; systemd is patient for longer."""


class Service:
    """Everything that runs in a daemon's process.

    Args:
        home: the site's folder.
        identity: the site's key and certificates.
        audit: the site's log, open.
        account: the site's ledger, open.
        passphrase: of the key that hashes patients.

    Raises:
        IdentityError: the passphrase does not open it.
    """

    def __init__(
        self,
        home: SiteFolder,
        identity: Identity,
        *,
        audit: AuditLog,
        account: Account,
        passphrase: str | None = None,
    ) -> None:
        self._home = home
        self._identity = identity
        self._audit = audit
        self._account = account
        self._roster: RosterFile = home.load_roster()
        self._record = Record(audit, on_left_out=lambda kind: self._shown.metrics.left_out(kind))
        self._record.ledger_at(account.head)
        settings = home.settings
        self._status = Status(home.status, site=settings.site.name, pid=os.getpid())
        self._shown = Shown(home, identity.certificate, account)
        self._pool = pool(home)
        self._rules = SiteRules(home, identity.key, now=lambda: datetime.now().astimezone())
        self._outbox = Outbox(home.outbox)
        self._daemon = self._make_daemon(place(home, passphrase))
        self._link = self._make_link()
        self._desk = self._make_desk()
        self._watch = self._make_watch()

    # --- parts ------------------------------------------------------------------------------------

    def _make_daemon(self, where: Place) -> Daemon:
        return Daemon(
            where,
            rules=self._rules,
            pool=self._pool,
            outbox=self._outbox,
            books=self._account,
            record=self._record,
            signals=Signals(
                studies_changed=self._studies_changed,
                roster=self._new_roster,
                answered=self._answered,
            ),
        )

    def _make_link(self) -> Link:
        return Link(
            link_settings(self._home),
            self._identity,
            self._roster.current,
            self._daemon,
            random=random.SystemRandom().random,
            install=self._renewed,
            heads=self._record.heads,
            greeted=self._greeted,
        )

    def _make_desk(self) -> Desk:
        return Desk(
            self._link.ask,
            roster=lambda: self._link.roster,
            studies=self._home.studies,
            decisions=self._rules,
            witness=Witness(
                self._home.settings.site.name,
                self._identity.key,
                account=self._account,
                record=self._record,
                seen=self._home.state / "witnessed.json",
                lacks=self._lacks,
            ),
            record=self._record,
            runs=self._account.runs,
            shown=self._offered,
        )

    def _make_watch(self) -> Watch:
        entries = list(self._audit.entries())
        return Watch(
            Changes(watched(self._home), recorded(entries)),
            states=self._rules.states,
            record=self._record,
            before=stood(entries),
            moved=self._moved,
            changed=self._changed,
            decisions=lambda: self._rules.end,
        )

    # --- what happens -----------------------------------------------------------------------------

    def _studies_changed(self) -> None:
        self._desk.wake()

    def _new_roster(self, data: bytes) -> None:
        if self._roster.accept(data):
            self._record.note_caused("roster", version=self._roster.current.version)

    def _renewed(self, chain_pem: str) -> None:
        if install_renewed(self._home, self._identity.key, chain_pem.encode()):
            self._record.note_caused("certificate-renewed")
            self._shown.renewed(read_certificate(chain_pem))

    def _answered(self, asked: Assignment, error: FedwardError | None) -> None:
        self._status.answered(asked, error)
        if error is not None:
            self._shown.metrics.refused(error)
        elif asked.action == records.TRAIN:
            self._shown.metrics.round_trained()

    def _greeted(self, answer: dict[str, Any]) -> None:
        """A server that has seen more of our ledger, or of our log, than there is: stop here."""
        server = self._roster.current.coordinator.name
        try:
            if self._daemon.halted is not None:
                self._account.reopen()
            self._account.check(answer.get("ledger"), "the server")
            self._check_own()
            seen = answer.get("audit")
            if seen is not None and not self._audit.holds(Head.read(seen)):
                raise StateError(
                    "this site's audit log is older than what the server has seen",
                    hint="restore the newer one",
                )
        except FedwardError as error:
            self._halt(error)
            raise
        self._daemon.halted = None
        self._record.note_caused("connect", server=server)
        self._desk.connected()

    def _check_own(self) -> None:
        check_own(list(self._audit.entries()), self._account, self._rules)

    def _lacks(self, end: Head, error: FedwardError) -> None:
        """The ledger lacks what this site has signed: our own log keeps that, see `remembered`."""
        self._halt(error)
        known = lacking(self._audit.entries())
        if end not in known and len(known) < _MOST_LACKING:
            self._record.note(LACKS, ledger=end.to_dict())

    def _halt(self, error: FedwardError) -> None:
        """Stop all work, and whatever is ready to leave, until the next greeting that is good."""
        new, self._daemon.halted = self._daemon.halted is None, error
        self._link.reconsider()
        if new:
            self._record.note_caused("halted", problem=error.problem)

    async def _offered(self, told: Told, runs: Collection[RunOf]) -> None:
        self._watch.offered()
        self._status.update(studies={name: dict(about) for name, about in told.items()})
        idle = settle(self._account, told, runs)
        if idle:
            await self._pool.end_idle({study for study, _ in idle})
        await self._daemon.over(self._account.over_runs())
        # Only now, when the ledger has it: without these files a round could be done again.
        for name in self._account.names_over():
            self._outbox.forget(name)
        known = {run for _, run in self._account.runs()}
        known |= {about["run"] for about in told.values()}
        self._outbox.forget_strangers(known, now_s=time.time())

    async def _moved(self, states: Mapping[str, str], moved: frozenset[str]) -> None:
        for study in moved:
            if states[study] != "approved":
                self._daemon.withdrawn(study)
                self._link.reconsider(study)
        for study, run in self._account.open_runs():
            if states.get(study) in ("withdrawn", "refused"):
                self._account.end_run(study, run, states[study])
        if moved:
            await self._pool.end_idle(moved)  # what was approved may be other data now
            self._desk.wake()

    async def _changed(self, names: frozenset[str]) -> None:
        if self._home.site_file.name in names:
            await self._pool.end_idle()

    # --- running ----------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, notifier: Notifier) -> None:
        """Work until told to stop.

        Raises:
            FedwardError: something that cannot be repaired by trying again.
        """
        self._record.note("start", pid=os.getpid())
        try:  # a server that has seen more does not even greet: the site's people are told here
            self._check_own()
        except FedwardError as error:
            self._halt(error)
        await self._watch.look()
        parts = {
            asyncio.create_task(part)
            for part in (
                self._link.run(),
                self._desk.run(),
                self._watch.run(),
                self._show(),
                stop.wait(),
            )
        }
        helper = asyncio.create_task(notifier.keep_alive())
        self._status.write()
        notifier.ready("looking for the server")
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            notifier.stopping()
            await self._end({*parts, helper})

    async def _end(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        # Training ends first: nobody may train for nobody, however slow the rest is.
        await self._daemon.stop()
        await self._pool.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(FedwardError):  # a full disk is no reason not to end
            self._record.close()
            self._record.note("stop")
        self._status.update(link="stopped")

    async def _show(self) -> None:
        """Keep the status and the figures true."""
        while True:
            link, halted = self._link.status, self._daemon.halted
            await self._shown.look(link, self._pool.restarts)
            self._status.update(
                skew_s=round(link.skew_s),
                link="connected" if link.connected else f"not connected: {link.problem}",
                halted="" if halted is None else str(halted),
                working=self._daemon.working,
                runs_warm=list(self._pool.running),
                audit=self._audit.head.to_dict(),
            )
            await asyncio.sleep(LOOK_S)

    def monitoring(self) -> Endpoint | None:
        """The port for figures, if the settings ask for one."""
        return self._shown.endpoint(lambda: self._link.status.problem, lambda: self._daemon.halted)


async def serve(
    home: SiteFolder,
    identity: Identity,
    *,
    stop: asyncio.Event,
    notifier: Notifier | None = None,
    passphrase: str | None = None,
) -> None:
    """Run a site's daemon until `stop` is set.

    Args:
        home: the site's folder.
        identity: the site's key and certificates.
        stop: ends it.
        notifier: tells systemd.
        passphrase: of the key that hashes patients, if its file is encrypted.

    Raises:
        StateError: another one runs on this folder, or log or ledger are not what they were.
        IdentityError: this site was revoked, or its files cannot be trusted.
        OutputError: the disk refuses.
    """
    for folder in (home.state, home.studies, home.decisions, home.manifests, home.inbox):
        private_folder(folder)
    async with AsyncExitStack() as stack:
        stack.enter_context(held(home.lock, who="a client"))
        audit = stack.enter_context(home.open_audit_log(identity.key))
        account = Account(home.ledger)
        stack.callback(account.close)
        service = Service(home, identity, audit=audit, account=account, passphrase=passphrase)
        monitoring = service.monitoring()
        if monitoring is not None:
            await monitoring.start()
            stack.push_async_callback(monitoring.stop)
        await service.run(stop, notifier or Notifier())
