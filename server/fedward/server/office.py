"""What the coordinator's commands do to studies and runs; the running service notices it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedward.common.errors import StateError
from fedward.common.identity import Roster
from fedward.common.lock import is_held
from fedward.common.statements import OFFER, state
from fedward.common.study import Study, canonical_json, study_hash
from fedward.common.wire import kinds
from fedward.server.home import ConsortiumFolder
from fedward.server.registry import Offer, Registry, Run
from fedward.server.status import read_status


class Office:
    """A consortium's registry and folder, in the hands of a command.

    Args:
        folder: of the consortium.
        registry: open.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        folder: ConsortiumFolder,
        registry: Registry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.registry = registry
        self._clock = clock

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Office]:
        """The office of a folder.

        Raises:
            StateError: it is no consortium's folder, or its registry cannot be opened.
        """
        folder = ConsortiumFolder.open(path)
        with Registry.open(folder.database) as registry:
            yield cls(folder, registry)

    @property
    def serving(self) -> bool:
        """Whether the service runs."""
        return is_held(self.folder.lock)

    def service(self) -> dict[str, Any]:
        """What the service says of itself, and whether it runs."""
        return {**read_status(self.folder.status), "running": self.serving}

    def submit(
        self, study: Study, sites: Collection[str] | None, passphrase: str | None = None
    ) -> Offer:
        """Sign a study and offer it.

        Args:
            study: the protocol.
            sites: whom to invite; None for all that are active.
            passphrase: of the server's key.

        Raises:
            StateError: a site is not an active one of the roster, or the study is over or too
                large to travel.
            IdentityError: the key cannot be read.
        """
        roster = self.folder.load_roster().current
        invited = _sites(roster, sites)
        identity = self.folder.load_identity(passphrase)
        digest = study_hash(study)
        content = {
            "study": digest,
            "document": canonical_json(study),
            "consortium": roster.consortium,
            "at_ms": int(self._clock() * 1000),
        }
        evidence = state(OFFER, identity.name, content, identity.key)
        if len(json.dumps(evidence.decode())) > kinds.LARGEST_OFFER:
            raise StateError(
                "the study is too large for a message to hospitals",
                hint="give it fewer features, or shorter texts",
            )
        with self.folder.open_audit_log(passphrase) as log:
            if self.registry.offer(study, evidence, invited):
                log.append("offer", study=digest, name=study.study.name, sites=sorted(invited))
        return self.registry.study(digest)

    def start(self, study: str, passphrase: str | None = None) -> Run:
        """Begin a run with those who approved.

        Raises:
            StateError: it cannot begin.
        """
        active = _sites(self.folder.load_roster().current, None)
        with self.folder.open_audit_log(passphrase) as log:
            run = self.registry.start(self._find(study).study, active, forced=True)
            log.append("run started", run=run.id, study=run.study, sites=list(run.sites))
        return run

    def stop(self, what: str, passphrase: str | None = None) -> str:
        """Ask for a run to be stopped, or take back an offer; says which.

        Raises:
            StateError: there is nothing to stop.
        """
        with self.folder.open_audit_log(passphrase) as log:
            if any(run.id == what for run in self.registry.runs()):
                self.registry.ask_to_stop(what)
                log.append("stop asked for", run=what)
                return "will stop after its round" if self.serving else "will be stopped"
            study = self._find(what)
            self.registry.close_offer(study.study)
            log.append("offer taken back", study=study.study)
            return "the offer is taken back"

    def resume(self, run: str, passphrase: str | None = None) -> Run:
        """Let a run go on.

        Raises:
            StateError: it was not stopped and has not failed.
        """
        with self.folder.open_audit_log(passphrase) as log:
            found = self.registry.resume(run)
            log.append("resume asked for", run=run, after=found.round)
        return found

    def _find(self, study: str) -> Offer:
        """A study by its name, or by the beginning of its hash."""
        found = [o for o in self.registry.studies() if study and o.study.startswith(study)]
        found = found or [o for o in self.registry.studies() if o.name == study]
        if len(found) != 1:
            problem = "several studies are called so" if found else "there is no such study"
            raise StateError(problem, hint="give its hash; see `fedward server status`")
        return found[0]


def _sites(roster: Roster, wanted: Collection[str] | None) -> list[str]:
    active = [m.name for m in roster.members if m.active and m.role == "site"]
    unknown = sorted(set(wanted or ()) - set(active))
    if unknown:
        raise StateError(
            f"{unknown[0]} is no active site of the roster", hint=f"active: {', '.join(active)}"
        )
    return active if wanted is None else sorted(set(wanted))
