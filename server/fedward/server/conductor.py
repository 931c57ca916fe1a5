"""Supervises runs: starts what can start, continues what was running, stops what shall stop.

It looks at the registry and the roster about once a second, because commands change them without
asking the service, and keeps a thread for every run that is active. A service that was killed finds
its runs active in the registry and goes on with them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward.common.audit import AuditLog
from fedward.common.errors import FedwardError, StateError, place_of
from fedward.common.identity import RosterFile
from fedward.common.study import Study
from fedward.server.carrier import Carrier
from fedward.server.execution import Execution, Release
from fedward.server.first_weights import first_weights_in_subprocess
from fedward.server.journal import Journal, Receipts
from fedward.server.patience import Patience
from fedward.server.preparation import FirstWeights
from fedward.server.registry import LogHead, Registry, Run, State

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often the registry is looked at."""
RETRY_LOOKS = 10
"""After how many looks a run is taken up again whose thread ended without an end on record."""


@dataclass(frozen=True)
class Hooks:
    """Who is told what.

    Attributes:
        roster_changed: the roster is another.
        offers_changed: the registry may have something new for sites.
        heads_seen: ends of sites' logs were put on record with a round.
        round_done: a round of a run was counted.
        round_failed: a round was given up: too few sites, or its model could not be used.
        defect: a run met a defect of fedward.
    """

    roster_changed: Callable[[], None] = lambda: None
    offers_changed: Callable[[], object] = lambda: None
    heads_seen: Callable[[Sequence[LogHead]], None] = lambda _heads: None
    round_done: Callable[[str, int], None] = lambda _run, _number: None
    round_failed: Callable[[], None] = lambda: None
    defect: Callable[[], None] = lambda: None


class Conductor:
    """Supervises runs.

    Args:
        registry: what there is to do.
        roster: who is a member; reloaded here when its file changes.
        audit: the coordinator's log.
        carrier: reaches the sites.
        folder_for_run: where a run keeps its files.
        release: writes what a finished run gives.
        hooks: who is told what.
        patience: with sites that are away.
        make_weights: makes the weights that training starts from.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        roster: RosterFile,
        audit: AuditLog,
        carrier: Carrier,
        folder_for_run: Callable[[str], Path],
        release: Release,
        hooks: Hooks | None = None,
        patience: Patience | None = None,
        make_weights: FirstWeights = first_weights_in_subprocess,
    ) -> None:
        self._registry = registry
        self._roster = roster
        self._audit = audit
        self._carrier = carrier
        self._folder_for_run = folder_for_run
        self._release = release
        self._hooks = hooks or Hooks()
        self._patience = patience or Patience()
        self._make_weights = make_weights
        self._executions: dict[str, Execution] = {}
        self._gone: dict[str, Execution] = {}
        self._ended: dict[str, int] = {}
        self._pauses: dict[str, str] = {}
        self._roster_mark: object = None
        self._looked_at: object = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="conductor", daemon=True)

    def start(self) -> None:
        """Look for the first time, then go on in a thread.

        Raises:
            FedwardError: registry or roster cannot be read.
        """
        self.look()
        self._thread.start()

    def close(self, timeout_s: float = 30.0) -> bool:
        """End all runs where they are; whether all ended in time. They go on with the next service.

        A run that is in the middle of something ends with the process: nothing is lost by that.
        """
        self._closing.set()
        for execution in self._executions.values():
            execution.halt()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        ended = [execution.join(timeout_s) for execution in self._executions.values()]
        return all(ended)

    @property
    def alive(self) -> bool:
        """Whether it still looks."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> Mapping[str, str]:
        """What each run waits for, in words."""
        found = dict(self._pauses)
        found |= {run: execution.waiting_for for run, execution in self._executions.items()}
        return {run: what for run, what in found.items() if what}

    @property
    def active_sites(self) -> frozenset[str]:
        """Sites that the roster has as active."""
        members = self._roster.current.members
        return frozenset(m.name for m in members if m.active and m.role == "site")

    def look(self) -> None:
        """Look at roster and registry once, and do what is due.

        Raises:
            FedwardError: one of them cannot be read; nothing is lost by looking again.
        """
        self._look_at_roster()
        self._begin_what_can()
        self._gone |= self._reap()  # before the registry is read: it then has the ends of these
        runs = {run.id: run for run in self._registry.runs(State.RUNNING, State.EVALUATING)}
        gone, self._gone = self._gone, {}
        for run_id in runs.keys() & gone.keys():
            if not gone[run_id].recorded:
                self._ended[run_id] = RETRY_LOOKS
                self._pauses[run_id] = gone[run_id].waiting_for
        for run in runs.values():
            if run.id not in self._executions and self._due(run.id):
                self._take_up(run)
            if run.stop and run.id in self._executions:
                self._executions[run.id].stop()
        self._hooks.offers_changed()

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_S):
            try:
                self.look()
            except FedwardError as error:
                logger.error("looking failed", extra={"facts": {"error": str(error)}})
            except Exception as error:  # noqa: BLE001  (or no run and no revocation went on)
                kind = f"{type(error).__name__} {place_of(error)}"
                logger.critical("looking met a defect", extra={"facts": {"error": kind}})
                self._hooks.defect()

    def _look_at_roster(self) -> None:
        found = self._roster.path.stat()
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if mark == self._roster_mark:
            return
        roster = self._roster.reload()
        for site in sorted(self.active_sites):
            self._registry.enrol(site)
        self._roster_mark = mark
        logger.info("roster read", extra={"facts": {"version": roster.version}})
        self._hooks.roster_changed()

    def _begin_what_can(self) -> None:
        """Begin the first runs of studies; looks at them only when something has changed."""
        now = (self._registry.changes(), self.active_sites)
        if now != self._looked_at:
            found = self._registry.startable(self.active_sites)
            for study in found:
                self._begin(study)
            self._looked_at = None if found else now  # what could not begin may at the next look

    def _begin(self, study: str) -> None:
        try:
            run = self._registry.start(study, self.active_sites)
        except StateError as error:  # a command was faster
            facts = {"study": study, "error": str(error)}
            logger.info("a study does not start", extra={"facts": facts})
            return
        self._audit.append("run started", run=run.id, study=study, sites=list(run.sites))

    def _reap(self) -> dict[str, Execution]:
        """Take out the executions whose threads have ended, by run."""
        ended = [run for run, execution in self._executions.items() if not execution.alive]
        return {run: self._executions.pop(run) for run in ended}

    def _due(self, run: str) -> bool:
        """Whether a run may be taken up; one whose thread gave up gets a moment first."""
        left = self._ended.get(run, 0)
        if left == 0:
            self._ended.pop(run, None)
            return True
        self._ended[run] = left - 1
        return False

    def _take_up(self, run: Run) -> None:
        if self._closing.is_set():
            return
        study = Study.model_validate_json(self._registry.study(run.study).document)
        receipts = Receipts(run.id)
        journal = Journal(
            run.id,
            registry=self._registry,
            audit=self._audit,
            receipts=receipts,
            on_heads=self._hooks.heads_seen,
            on_counted=lambda number: self._hooks.round_done(run.id, number),
            on_failed=self._hooks.round_failed,
        )
        execution = Execution(
            run,
            study,
            folder=self._folder_for_run(run.id),
            registry=self._registry,
            audit=self._audit,
            carrier=self._carrier,
            nodes=lambda: self._nodes(run),
            release=self._release,
            journal=journal,
            receipts=receipts,
            patience=self._patience,
            make_weights=self._make_weights,
            on_defect=self._hooks.defect,
        )
        self._executions[run.id] = execution
        self._pauses.pop(run.id, None)
        execution.start()
        logger.info("run taken up", extra={"facts": {"run": run.id, "after": run.round}})

    def _nodes(self, run: Run) -> dict[int, str]:
        """Sites that began the run, still approve and are still members, by node id."""
        there = self.active_sites & set(run.sites)
        approving = self._registry.approving(run.study)
        return {node: site for site, node in approving.items() if site in there}
