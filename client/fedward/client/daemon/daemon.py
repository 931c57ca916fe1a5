"""Answers tasks: allowed? → train, in another process → the gate → the outbox.

Guarantee:
    Nothing is computed for a study that the site's stewards and policy do not allow at that moment,
    nor in a run that the ledger has as over. What was computed leaves only through the gate. The
    same task has the same answer, also after this process was killed. Whatever goes wrong becomes a
    refusal in words that tell nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from fedward.client.daemon.record import Record
from fedward.client.daemon.seams import Books, Place, Rules, Signals, Trains
from fedward.client.gate import Gate, Question, refusal
from fedward.client.link.assignments import Assignment
from fedward.client.offers import kept_study
from fedward.client.outbox import REPLY, Outbox
from fedward.client.worker.protocol import Do, Done, Load
from fedward.common import records
from fedward.common.errors import (
    FedwardError,
    LinkError,
    PolicyError,
    PrivacyError,
    RoundError,
    StateError,
)
from fedward.common.study import Study
from fedward.common.wire.digest import file_sha256

_LOG = logging.getLogger(__name__)
_REMEMBERED = 256
"""Keys of tasks to which the server has the answer: more than one round of all runs has."""
_DEFECT = "report this as a defect; see the site's log"


class Daemon:
    """Does what the server asks, as far as the site allows; a `link.assignments.Work`.

    Args:
        place: where.
        rules: what is allowed.
        pool: trains.
        outbox: keeps replies.
        books: the ledger.
        record: the audit log.
        signals: whom to wake.
    """

    def __init__(
        self,
        place: Place,
        *,
        rules: Rules,
        pool: Trains,
        outbox: Outbox,
        books: Books,
        record: Record,
        signals: Signals | None = None,
    ) -> None:
        self._place = place
        self._rules = rules
        self._pool = pool
        self._outbox = outbox
        self._books = books
        self._record = record
        self._signals = signals or Signals()
        self._jobs: dict[str, asyncio.Task[Path]] = {}
        self._runs: dict[str, tuple[str, str]] = {}
        """Study and run of each of them."""
        self._received: deque[str] = deque(maxlen=_REMEMBERED)
        self._withdrawn: WeakSet[asyncio.Task[Path]] = WeakSet()
        self.halted: FedwardError | None = None
        """Why nothing is done at all, whatever is asked; None if work goes on."""

    # --- what the link calls ----------------------------------------------------------------------

    async def decline(self, assignment: Assignment) -> Path | None:
        """Refuse a task whose body is not here yet; see `Work.decline`.

        Raises:
            OutputError: not even a refusal can be written.
        """
        try:
            self._allowed(assignment)
        except FedwardError as error:
            return await asyncio.to_thread(self._refuse, assignment, error)
        return None

    async def do(self, assignment: Assignment) -> Path:
        """Answer a task by a file that is durable; see `Work.do`.

        Raises:
            StateError: nobody waits for the answer any more.
            OutputError: not even a refusal can be written.
        """
        key = assignment.key
        job = self._jobs.get(key)
        if job is not None and job.cancelling():  # closed, and now asked again
            await asyncio.wait([job])
            job = self._jobs.get(key)
        if job is None:
            job = asyncio.create_task(self._answer(assignment))
            self._jobs[key], self._runs[key] = job, (assignment.study, assignment.run)
            job.add_done_callback(lambda job: self._forget(key, job))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            if not job.cancelled():  # who waited here left; the work goes on
                raise
            if job in self._withdrawn:  # before it had begun
                return await self._left(assignment)
            raise StateError(
                "nobody waits for this task any more", hint="the round goes on without it"
            ) from None

    def closed(self, key: str) -> None:
        """Nobody waits for a task any more: whatever is done for it ends now."""
        job = self._jobs.get(key)
        if job is not None:
            job.cancel()

    def receipt(self, key: str, evidence: bytes) -> None:
        """The server has the answer to a task; its signature under that is put on record."""
        received = self._outbox.receipt(key)
        digest = hashlib.sha256(evidence).hexdigest()
        # A reply was paid for; what was refused, or received before, may be asked for at will.
        new = received is not None and received.suffix == REPLY and key not in self._received
        self._received.append(key)
        self._record.note_task("receipt", evidence, at_will=not new, task=key, receipt=digest)

    def roster(self, data: bytes) -> None:
        """There is a newer roster."""
        self._signals.roster(data)

    def studies_changed(self) -> None:
        """What is offered may have changed."""
        self._signals.studies_changed()

    # --- what the watch calls ---------------------------------------------------------------------

    def withdrawn(self, study: str) -> None:
        """A study is allowed no more: all work for it ends now."""
        for key in [key for key, (name, _) in self._runs.items() if name == study]:
            self._withdrawn.add(self._jobs[key])
            self.closed(key)

    async def over(self, runs: Collection[tuple[str, str]]) -> None:
        """Runs, by study and name, are over: all work for them ends, and nobody waits for it."""
        jobs = [self._jobs[key] for key, run in self._runs.items() if run in runs]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def stop(self) -> None:
        """End all work; what was not answered is answered after the next start."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    @property
    def working(self) -> int:
        """Tasks that are being answered."""
        return len(self._jobs)

    # --- details ----------------------------------------------------------------------------------

    def _forget(self, key: str, job: asyncio.Task[Path]) -> None:
        self._jobs.pop(key, None)
        self._runs.pop(key, None)
        error = None if job.cancelled() else job.exception()
        if error is not None:
            _LOG.error("a task failed", extra={"facts": {"error": type(error).__name__}})

    async def _answer(self, asked: Assignment) -> Path:
        try:
            study = self._allowed(asked)
            # What was answered may be asked for again, but not in the name of another study.
            await asyncio.to_thread(Gate.check_named, _question(asked))
            found = self._outbox.find(asked.run, asked.key)
            if found is not None:
                await asyncio.to_thread(self._check_again, asked, study, found)
                return found
            self._rules.check_hours(study)
            reply = await self._train(asked, study)
            self._check_goes_on()
        except FedwardError as error:
            return await asyncio.to_thread(self._refuse, asked, error)
        except asyncio.CancelledError:
            if asyncio.current_task() not in self._withdrawn:
                raise
            return await self._left(asked)
        self._signals.answered(asked, None)
        return reply

    async def _left(self, asked: Assignment) -> Path:
        """The answer to what was asked before the site withdrew."""
        over = PolicyError("this site has withdrawn from the study", hint="go on without it")
        return await asyncio.to_thread(self._refuse, asked, over)

    def _check_goes_on(self) -> None:
        if self.halted is not None:
            raise self.halted

    def _check_again(self, asked: Assignment, study: Study, found: Path) -> None:
        """A reply passes the gate again: its ledger may have been another one, put back since."""
        if found.suffix == REPLY:
            self._gate(asked, study, _digest(found)).check(_question(asked), found)

    def _gate(self, asked: Assignment, study: Study, digest: str) -> Gate:
        """The gate for the reply with this digest."""

        def paid(run: str, number: int, group: str) -> bool:
            return self._books.paid(asked.study, run, number, group, digest)

        return Gate(study, site=self._place.site, paid=paid)

    def _allowed(self, asked: Assignment) -> Study:
        self._check_goes_on()
        study = kept_study(self._place.studies, asked.study)
        self._rules.check_study(asked.study, study)
        # A training process that is warm does not ask the ledger again where nothing is charged.
        self._books.check_goes_on(asked.study, asked.run)
        return study

    async def _train(self, asked: Assignment, study: Study) -> Path:
        question, work = _question(asked), self._outbox.work(asked.run, asked.round, asked.key)
        # Before anything is paid for, the gate looks at what is asked.
        await asyncio.to_thread(self._check_task, study, question)
        self._outbox.begin(work)
        if not study.private:  # what is asked of patients is bounded by the ledger there
            self._outbox.ask(work, asked.action)
        place = self._place
        load = Load(str(place.folder), asked.study, asked.run, place.threads, place.patients_key)
        task = Do(asked.key, str(asked.body), asked.action, asked.round, str(work))
        done = await self._pool.do(load, task)
        self._allowed(asked)  # it may have been withdrawn meanwhile
        return await asyncio.to_thread(self._release, asked, study, question, work, done)

    def _check_task(self, study: Study, question: Question) -> None:
        def paid(run: str, number: int, group: str) -> bool:
            return self._books.paid(question.study, run, number, group)

        gate = Gate(study, site=self._place.site, paid=paid)
        gate.check_task(question, last_round=self._outbox.last_round(question.run))

    def _release(
        self, asked: Assignment, study: Study, question: Question, work: Path, done: Done
    ) -> Path:
        digest = _digest(work)
        try:
            if digest != done.sha256:
                raise RoundError("a reply is not the one that was trained", hint=_DEFECT)
            self._gate(asked, study, digest).check(question, work)
        except (RoundError, PrivacyError, LinkError):
            with suppress(OSError):
                work.unlink()  # it may never leave; what else is refused stays, for it was paid for
            raise
        self._check_goes_on()
        self._record.note_task(
            "release",
            asked.evidence,
            study=asked.study,
            run=asked.run,
            round=asked.round,
            action=asked.action,
            body=digest,
            size=done.size,
            ledger=(head := self._books.head).to_dict(),
        )
        self._record.ledger_at(head)
        return self._outbox.release(work)

    def _refuse(self, asked: Assignment, error: FedwardError) -> Path:
        """The log has what the server is told; the site's own words stay with `answered`."""
        content = refusal(error)
        _LOG.warning(
            "refused a task",
            extra={
                "facts": {"round": asked.round, "action": asked.action, "code": error.exit_code}
            },
        )
        self._record.note_task(
            "refuse",
            asked.evidence,
            at_will=True,
            study=asked.study,
            run=asked.run,
            round=asked.round,
            action=asked.action,
            code=error.exit_code,
            reason=content.config[records.ERROR_REASON],
        )
        self._record.ledger_at(self._books.head)
        path = self._outbox.refuse(asked.key, content)
        self._signals.answered(asked, error)
        return path


def _question(asked: Assignment) -> Question:
    return Question(asked.study, asked.run, asked.round, asked.action, asked.body)


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)[0].hex()
    except OSError as error:
        raise RoundError("a reply cannot be read", hint=_DEFECT) from error
