"""One run in a thread of its own: wait for sites, do the rounds, release; or say why not.

A run does not fail because sites are away: it waits for the study's quorum, and tries a round that
too few answered again. Nor because a disk is full: it goes on when there is room. Nor because of a
defect of ours that does not come again: it goes on from its last checkpoint, as it would if the
service had been killed there. It fails, with its reason on record, when the sites that are there
refuse, when training diverges, when nobody came for as long as `Patience` says, or when a defect
keeps it from getting further. Whatever happens, the last checkpoint stays, and the run can be
resumed.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fedward.common.audit import AuditLog
from fedward.common.errors import (
    FedwardError,
    Interrupted,
    LinkError,
    OutputError,
    RoundError,
    place_of,
)
from fedward.common.files import remove_leftovers
from fedward.common.study import Study
from fedward.server.carrier import TASKS, Carrier, Order
from fedward.server.checkpoints import CheckpointFolder, RunState
from fedward.server.empty_rounds import NothingTrained, Progress, check_trained
from fedward.server.first_weights import first_weights_in_subprocess
from fedward.server.flower_app import build_server_app
from fedward.server.history import CheckpointUnavailable
from fedward.server.journal import Journal, Receipts
from fedward.server.patience import Patience
from fedward.server.preparation import FirstWeights
from fedward.server.registry import Registry, RegistryUnavailable, Run, State
from fedward.server.replies import TooFew

logger = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
SPOOL = "spool"
"""Folder of a run where replies arrive."""
Release = Callable[[Run, Study, RunState], None]
"""Writes what a finished run gives to the world."""


class Halted(Interrupted):
    """The service ends; the run stays as it is and goes on when the service is back."""


class Execution:
    """A run, being done.

    Args:
        run: which.
        study: its protocol.
        folder: of the run.
        registry: where it stands.
        audit: the coordinator's log.
        carrier: reaches the sites.
        nodes: sites that take part now, by node id.
        release: is called once, when the last round is done.
        journal: follows the rounds.
        receipts: signed replies.
        patience: with sites that are away.
        make_weights: makes the weights that training starts from.
        on_defect: is called when the run met a defect of fedward, whatever follows.
    """

    def __init__(
        self,
        run: Run,
        study: Study,
        *,
        folder: Path,
        registry: Registry,
        audit: AuditLog,
        carrier: Carrier,
        nodes: Callable[[], Mapping[int, str]],
        release: Release,
        journal: Journal,
        receipts: Receipts,
        patience: Patience | None = None,
        make_weights: FirstWeights = first_weights_in_subprocess,
        on_defect: Callable[[], None] = lambda: None,
    ) -> None:
        self.run = run
        self._study = study
        self._folder = folder
        self._checkpoints = CheckpointFolder(folder / _CHECKPOINTS, journal)
        self._registry = registry
        self._audit = audit
        self._carrier = carrier
        self._nodes = nodes
        self._release = release
        self._journal = journal
        self._receipts = receipts
        self._patience = patience or Patience()
        self._make_weights = make_weights
        self._on_defect = on_defect
        self._wake = threading.Event()
        self._stop = self._halt = False
        self._spent: frozenset[str] = frozenset()
        """Sites that will never answer the round that is tried; others are waited for."""
        self.waiting_for = ""
        """What the run waits for, in words; empty while it works."""
        self.recorded = False
        """Whether its end is on record; else it has to be taken up again."""
        self._thread = threading.Thread(target=self._work, name=f"run {run.id}", daemon=True)

    # --- from outside -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on from the last checkpoint."""
        self._thread.start()

    def stop(self) -> None:
        """End between rounds or while waiting; the run is then stopped."""
        self._stop = True
        self._wake.set()

    def halt(self) -> None:
        """End between rounds or while waiting; the run goes on with the next service."""
        self._halt = True
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether it is still being done."""
        return self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        self._thread.join(timeout_s)
        return not self.alive

    # --- in the thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        facts = {"run": self.run.id}
        try:
            self._do()
        except (Halted, RegistryUnavailable):
            logger.info("a run pauses", extra={"facts": facts})
        except (OutputError, CheckpointUnavailable) as error:
            # A full disk, most likely: somebody will make room.
            self.waiting_for = str(error)
            facts["reason"] = str(error)
            verb = "write" if isinstance(error, OutputError) else "read"
            logger.error("a run pauses until it can %s", verb, extra={"facts": facts})
        except FedwardError as error:
            stopped = isinstance(error, Interrupted)
            self._end(State.STOPPED if stopped else State.FAILED, str(error))
        except BaseException as error:  # noqa: BLE001  (entry point of a thread)
            # Not its text: it may quote what it was working on.
            kind = f"{type(error).__name__} {place_of(error)}"
            logger.critical("a run met a defect", extra={"facts": {**facts, "error": kind}})
            self._on_defect()
            self._go_on_or_fail(f"this is a defect in fedward: {kind}")

    def _tidy(self) -> None:
        """Remove what a killed service left half-written: now nobody writes for this run."""
        for folder in (self._folder, self._folder / _CHECKPOINTS):
            remove_leftovers(folder)
        shutil.rmtree(self._folder / TASKS, ignore_errors=True)

    def _do(self) -> None:
        self._tidy()
        state = self._rounds()
        if self._registry.run(self.run.id).state is State.RUNNING:
            self._registry.transition(self.run.id, State.EVALUATING)
        self._release(self._registry.run(self.run.id), self._study, state)
        self._end(State.RELEASED, "")
        # The last round's replies: what they prove is in their receipts, which are released.
        for name in (SPOOL, TASKS):
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _end(self, state: State, reason: str) -> None:
        try:
            self._audit.append(f"run {state}", run=self.run.id, reason=reason)
            self._registry.transition(self.run.id, state, reason=reason)
        except FedwardError as error:
            # The registry cannot be written: the run stays active and is taken up again.
            facts = {"run": self.run.id, "error": str(error)}
            logger.error("the end of a run could not be put on record", extra={"facts": facts})
            return
        self.recorded = True
        facts = {"run": self.run.id, "state": state.value, "reason": reason}
        logger.info("a run ended", extra={"facts": facts})

    def _go_on_or_fail(self, reason: str) -> None:
        """Leave the run to be taken up again, unless a defect stopped it here before."""
        try:
            goes_on = self._registry.go_on(self.run.id, reason)
            if goes_on:
                self._audit.append("run goes on", run=self.run.id, reason=reason)
        except FedwardError as error:
            # It stays active and is taken up again, as above.
            facts = {"run": self.run.id, "error": str(error)}
            logger.error("a defect could not be put on record", extra={"facts": facts})
            return
        if goes_on:
            self.waiting_for = f"{reason}; the run goes on by itself"
        else:
            self._end(State.FAILED, reason)

    def _rounds(self) -> RunState:
        try:
            state = self._all_rounds()
            check_trained(state.history)
        except (Interrupted, OutputError, RegistryUnavailable, CheckpointUnavailable):
            raise
        except FedwardError:
            self._journal.round_failed()
            raise
        return state

    def _all_rounds(self) -> RunState:
        fruitless = 0
        state = self._checkpoints.newest()
        if state is not None and self._finished(state):
            self._journal.on_resumed(state)
        while state is None or not self._finished(state):
            resumed_after = self._check_progress(state)
            self._wait_for_quorum(state)
            try:
                self._carry(resumed_after)
            except NothingTrained:
                raise
            except (RoundError, LinkError) as error:
                newest = self._checkpoints.newest()
                further = (newest and newest.round) != (state and state.round)
                fruitless = 0 if further else fruitless + 1
                spent = error.spent if isinstance(error, TooFew) else frozenset()
                self._spent = spent if further else self._spent | spent
                self._give_up_or_try_again(error, newest, fruitless)
            except Interrupted:
                self._check()
                raise
            else:
                self._spent = frozenset()
            state = self._checkpoints.newest()
        return state

    def _finished(self, state: RunState) -> bool:
        return state.round >= self._study.training.rounds

    def _check_progress(self, state: RunState | None) -> int:
        """Fail a run that was to fail when the service was killed, before it waits for sites.

        Returns:
            The last round that was done when a person let the run go on.

        Raises:
            NothingTrained: too many rounds since then were empty.
        """
        since = self._registry.resumed_after(self.run.id)
        if state is not None:
            Progress.of(state.history, since=since).check(self._study.training.rounds)
        return since

    def _carry(self, resumed_after: int) -> None:
        app = build_server_app(
            self._study,
            checkpoints=self._checkpoints,
            observer=self._journal,
            on_outcome=lambda _outcome: None,
            make_weights=self._make_weights,
            should_stop=lambda: self._stop or self._halt,
            resumed_after=resumed_after,
        )
        order = Order(self.run, self._study, self._nodes, self._receipts, self._check)
        self._carrier.carry(app, order)

    def _give_up_or_try_again(
        self, error: FedwardError, state: RunState | None, fruitless: int
    ) -> None:
        self._check()
        enough = not self._missing(state)
        if enough and fruitless >= self._patience.attempts:
            raise error
        facts = {"run": self.run.id, "reason": str(error)}
        logger.warning("a round is tried again", extra={"facts": facts})
        self._registry.note("round tried again", **facts)
        self._journal.round_failed()
        if enough:
            self._pause(self._patience.pause_s)

    def _wait_for_quorum(self, state: RunState | None) -> None:
        deadline = time.monotonic() + self._patience.quorum_s
        while missing := self._missing(state):
            self.waiting_for = missing
            if time.monotonic() > deadline:
                raise RoundError("nobody came", hint=missing)
            self._pause(min(0.2, self._patience.pause_s))
        self.waiting_for = ""

    def _missing(self, state: RunState | None) -> str:
        """What is missing before a round makes sense; empty if nothing is."""
        willing = set(self._nodes().values())
        if state is not None:
            willing &= set(state.site_weights)
        minimum = max(1, self._study.aggregation.min_sites)
        if len(willing) < minimum:
            raise RoundError(
                f"{len(willing)} of {minimum} needed sites still take part",
                hint="sites withdrew or were revoked; offer a new version of the study",
            )
        if len(willing - self._spent) >= minimum:  # else the round is lost: no use to wait
            willing -= self._spent
        there = willing & self._carrier.connected()
        if len(there) >= minimum:
            return ""
        return f"{len(there)} of {minimum} needed sites are connected; connect " + ", ".join(
            sorted(willing - there)
        )

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._check()

    def _check(self) -> None:
        """End what is being done, if that was asked for.

        Raises:
            Halted: the service ends.
            Interrupted: the coordinator stopped the run.
        """
        if self._halt:
            raise Halted("the service ends", hint="start it again")
        if self._stop:
            raise Interrupted("stopped by the coordinator", hint="resume it to go on")
