"""Runs, their rounds, and the sites' receipts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, load_only

from fedward.common.errors import StateError
from fedward.server.registry.bulk import put
from fedward.server.registry.facts import LogHead, Receipt, Round, Run
from fedward.server.registry.states import NEXT, Choice, State, follow, ready
from fedward.server.registry.studies import StudyRecords
from fedward.server.registry.tables import EventRow, HeadRow, ReceiptRow, RoundRow, RunRow, StudyRow

_LONGEST_NAME = 40
_LONGEST_REASON = 2000
_RESUMED = "run resumed"


class RunRecords(StudyRecords):
    """The part of the registry about runs."""

    def start(self, study: str, active: Collection[str], *, forced: bool = False) -> Run:
        """Begin a run with the active sites that approved.

        Args:
            study: hash.
            active: sites that the roster has as active.
            forced: do not wait for sites that have not answered; also begin once more after a run
                that failed or was stopped.

        Raises:
            StateError: it cannot start: too few approve, somebody has not answered, it runs
                already, or it is over.
        """
        with self._changes() as session:
            row = self._study(session, study)
            runs = self._runs(session, study)
            self._check_start(row, runs, forced=forced)
            answers = {s: a.choice for s, a in self._answers(session, study).items()}
            if forced:
                answers = {s: c or Choice.REFUSE for s, c in answers.items()}
            sites = ready(answers, active, row.min_sites)
            if not sites:
                raise StateError(
                    f"study {row.name} cannot start", hint=_why_not(answers, active, row.min_sites)
                )
            if not runs:
                follow(State(row.state), State.RUNNING)
            run = RunRow(
                id=f"{row.name[:_LONGEST_NAME]}-{study[:8]}-{len(runs) + 1}",
                study=study,
                number=len(runs) + 1,
                state=State.RUNNING.value,
                reason="",
                round=0,
                sites=sorted(sites),
                started_ms=self._clock(),
                ended_ms=0,
                stop=False,
            )
            session.add(run)
            session.flush()
            self._note(session, "run started", run=run.id, study=study, sites=sorted(sites))
            return _run(run, row)

    def _check_start(self, row: StudyRow, runs: list[RunRow], *, forced: bool) -> None:
        if State(row.state) is State.STOPPED:
            raise StateError(f"the offer of study {row.name} was taken back", hint="offer another")
        if not runs:
            return
        state = State(runs[-1].state)
        if state in (State.FAILED, State.STOPPED) and forced:
            return
        hint = "resume it" if State.RUNNING in NEXT[state] else "offer a new version of it"
        raise StateError(f"study {row.name} has a run that is {state}", hint=hint)

    def run(self, run: str) -> Run:
        """A run by its id.

        Raises:
            StateError: there is none.
        """
        with self._reads() as session:
            found = self._run(session, run)
            return _run(found, self._study(session, found.study))

    def runs(self, *states: State) -> tuple[Run, ...]:
        """Runs in some states, or all; oldest first."""
        query = (
            select(RunRow, StudyRow)
            .options(load_only(StudyRow.name, StudyRow.rounds))
            .join(StudyRow, StudyRow.hash == RunRow.study)
            .order_by(RunRow.started_ms, RunRow.id)
        )
        if states:
            query = query.where(RunRow.state.in_([state.value for state in states]))
        with self._reads() as session:
            return tuple(_run(run, study) for run, study in session.execute(query).all())

    def runs_by_state(self) -> dict[State, int]:
        """How many runs there are in each state."""
        query = select(RunRow.state, func.count()).group_by(RunRow.state)
        with self._reads() as session:
            return {State(state): count for state, count in session.execute(query)}

    def transition(self, run: str, state: State, *, reason: str = "") -> Run:
        """Take a run one step further.

        Args:
            run: which.
            state: where to.
            reason: why, in one line, without anything private.

        Raises:
            StateError: there is no such step from where the run is.
        """
        with self._changes() as session:
            row = self._run(session, run)
            row.state = follow(State(row.state), state).value
            row.reason = "" if state.active else " ".join(reason.split())[:_LONGEST_REASON]
            row.ended_ms = 0 if state.active else self._clock()
            row.stop = row.stop and state.active
            self._note(session, f"run is {state}", run=run, reason=row.reason)
            return _run(row, self._study(session, row.study))

    def ask_to_stop(self, run: str) -> None:
        """Ask for a run to be stopped; the service does it between rounds or while it waits.

        Raises:
            StateError: it is not active.
        """
        with self._changes() as session:
            row = self._run(session, run)
            follow(State(row.state), State.STOPPED)
            row.stop = True
            self._note(session, "stop asked for", run=run)

    def resume(self, run: str) -> Run:
        """Let a run that was stopped or failed go on from its last checkpoint.

        Raises:
            StateError: it is in no such state, or a newer run of its study exists.
        """
        with self._changes() as session:
            row = self._run(session, run)
            if self._runs(session, row.study)[-1].id != run:
                raise StateError(f"run {run} has a successor", hint="resume the newest run")
            row.state = follow(State(row.state), State.RUNNING).value
            row.reason, row.ended_ms, row.stop = "", 0, False
            self._note(session, _RESUMED, run=run, after=row.round)
            return _run(row, self._study(session, row.study))

    def resumed_after(self, run: str) -> int:
        """The last round that was recorded when a person last let a run go on; 0 if nobody did."""
        query = (
            select(EventRow.facts)
            .where(EventRow.kind == _RESUMED, EventRow.facts["run"].as_string() == run)
            .order_by(EventRow.id.desc())
            .limit(1)
        )
        with self._reads() as session:
            facts = session.scalar(query) or {}
        # Events of before this was written down do not say when: then all rounds count.
        return int(facts.get("after", 0))

    def record_round(
        self,
        run: str,
        round_: Round,
        *,
        receipts: Collection[Receipt] = (),
        seen: Collection[LogHead] = (),
    ) -> bool:
        """Count a completed round, once, and keep what came with it.

        Args:
            run: which run.
            round_: what happened in it.
            receipts: signed replies, of this round or before.
            seen: ends of the sites' logs that they carried; only those further than on record.

        Returns:
            Whether it is new.

        Raises:
            StateError: the run is not active; the round does not follow on the last one; or it was
                counted with another result.
        """
        with self._changes() as session:
            row = self._run(session, run)
            self._keep(session, receipts, seen)
            found = session.get(RoundRow, (run, round_.round))
            if found is not None:
                if _result(found) != _result(round_):
                    raise StateError(
                        f"round {round_.round} of run {run} was counted with another result",
                        hint="a round is counted once; see the audit log",
                    )
                return False
            if not State(row.state).active:
                raise StateError(f"run {run} is {row.state}", hint="resume it first")
            if round_.round != row.round + 1:
                raise StateError(
                    f"round {round_.round} does not follow on round {row.round} of run {run}",
                    hint="continue from the last checkpoint",
                )
            session.add(
                RoundRow(
                    run=run,
                    round=round_.round,
                    participants=list(round_.participants),
                    refused=dict(round_.refused),
                    evaluation=_finite(round_.evaluation),
                    model_sha256=round_.model_sha256,
                    heads=dict(round_.heads),
                    at_ms=self._clock(),
                    line=round_.line,
                )
            )
            row.round = round_.round
            return True

    def rewind(self, run: str, round_: int) -> int:
        """Forget rounds after the one that the run's checkpoint holds: they are done again.

        Returns:
            How many were forgotten.
        """
        with self._changes() as session:
            row = self._run(session, run)
            gone = max(0, row.round - round_)
            if gone:
                session.execute(
                    delete(RoundRow).where(RoundRow.run == run, RoundRow.round > round_)
                )
                row.round = round_
                self._note(session, "rounds to be done again", run=run, after=round_)
            return gone

    def rounds(self, run: str) -> tuple[Round, ...]:
        """Completed rounds of a run, in order."""
        with self._reads() as session:
            rows = session.scalars(
                select(RoundRow).where(RoundRow.run == run).order_by(RoundRow.round)
            )
            return tuple(_round(row) for row in rows)

    def keep(self, receipts: Collection[Receipt], seen: Collection[LogHead] = ()) -> None:
        """Keep sites' signed answers; a newer one to the same task replaces an older one."""
        with self._changes() as session:
            self._keep(session, receipts, seen)

    def _keep(
        self, session: Session, receipts: Collection[Receipt], seen: Collection[LogHead]
    ) -> None:
        now = self._clock()
        put(session, ReceiptRow, [{**vars(receipt), "at_ms": now} for receipt in receipts])
        known = select(HeadRow.site, HeadRow.log, HeadRow.length)
        known = known.where(HeadRow.site.in_({head.site for head in seen}))
        lengths = {(site, log): length for site, log, length in session.execute(known)}
        further = [head for head in seen if lengths.get((head.site, head.log), -1) < head.length]
        put(session, HeadRow, [{**vars(head), "at_ms": now} for head in further])

    def receipts(self, run: str) -> tuple[Receipt, ...]:
        """Receipts of a run, by round, action and site."""
        query = (
            select(ReceiptRow)
            .where(ReceiptRow.run == run)
            .order_by(ReceiptRow.round, ReceiptRow.action, ReceiptRow.site)
        )
        with self._reads() as session:
            return tuple(
                Receipt(r.run, r.round, r.action, r.site, r.body_sha256, r.evidence)
                for r in session.scalars(query)
            )

    def _run(self, session: Session, run: str) -> RunRow:
        row = session.get(RunRow, run)
        if row is None:
            raise StateError("there is no such run", hint="see `fedward server runs`")
        return row


def _why_not(answers: Mapping[str, Choice | None], active: Collection[str], min_sites: int) -> str:
    waiting = sorted(s for s, choice in answers.items() if choice is None and s in active)
    if waiting:
        return f"wait for {', '.join(waiting)}, or start with those who approved"
    there = [s for s, choice in answers.items() if choice is Choice.APPROVE and s in active]
    return f"{len(there)} of {max(1, min_sites)} needed sites approved and are active"


def _run(row: RunRow, study: StudyRow) -> Run:
    return Run(
        id=row.id,
        study=row.study,
        name=study.name,
        number=row.number,
        state=State(row.state),
        reason=row.reason,
        round=row.round,
        rounds=study.rounds,
        sites=tuple(row.sites),
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        stop=row.stop,
    )


def _round(row: RoundRow) -> Round:
    return Round(
        round=row.round,
        participants=tuple(row.participants),
        refused=row.refused,
        evaluation=row.evaluation,
        model_sha256=row.model_sha256,
        heads=row.heads,
        at_ms=row.at_ms,
        line=row.line,
    )


def _result(found: RoundRow | Round) -> tuple[tuple[str, ...], str]:
    """What makes two counts of a round the same: who is in the model, and the model."""
    return tuple(found.participants), found.model_sha256


def _finite(
    evaluation: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """As JSON allows: what is not a number is null."""
    return {
        place: {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in metrics.items()
        }
        for place, metrics in evaluation.items()
    }
