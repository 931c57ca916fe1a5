"""The daemon as the link sees it: what it does, what it refuses, and what a restart changes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedward.client.daemon.account import Account
from fedward.client.daemon.daemon import Daemon
from fedward.client.daemon.record import Record
from fedward.client.daemon.remembered import LEDGER, lacking, last_end
from fedward.client.daemon.rules import SiteRules
from fedward.client.daemon.seams import Place, Signals
from fedward.client.daemon.service import Service
from fedward.client.decisions import Decisions, Verdict
from fedward.client.ledger import Ledger
from fedward.client.link.assignments import Assignment
from fedward.client.manifest import load_manifest
from fedward.client.offers import keep_offer, read_offer
from fedward.client.outbox import MOST_QUESTIONS, Outbox, write_durably
from fedward.client.policy import load_policy
from fedward.client.worker.process import WorkerDied
from fedward.client.worker.protocol import Do, Done, Load
from fedward.common import records
from fedward.common.audit import AuditLog, caused, verify_log
from fedward.common.audit.chain import Head as LogEnd
from fedward.common.errors import (
    DataError,
    FedwardError,
    LinkError,
    OutputError,
    PrivacyError,
    RoundError,
    StateError,
)
from fedward.common.identity import PrivateKey
from fedward.common.study import Study, study_hash
from fedward.common.wire.body import Body, Content, write_body
from fedward.common.wire.link_pb2 import Head, Header
from fedward.common.wire.message import seal
from fedward.simulations.fake_hospital import Consortium, approve_data, make_hospital
from fedward.simulations.fakes import small_study

SITE = "hospital-1"
KEY = "ab" * 32
POLICY = """require_dp = false
min_cell_at_least = 1
min_sites_at_least = 1
approvers = ["Dr A"]
"""
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
WEIGHTS = {"weight": np.zeros((1, 3), np.float32), "bias": np.zeros(1, np.float32)}


class Trained:
    """Trains nothing: answers as a site does, or as it is told to."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.tasks: list[Do] = []
        self.error: FedwardError | None = None
        self.content = Content(
            {}, {records.WEIGHT: 1.0}, {name: w + 1 for name, w in WEIGHTS.items()}
        )
        self.wait: asyncio.Event | None = None
        self.began = asyncio.Event()
        self.ended = False

    async def do(self, load: Load, task: Do) -> Done:
        self.loads.append(load)
        self.tasks.append(task)
        self.began.set()
        try:
            if self.wait is not None:
                await self.wait.wait()
        finally:
            self.ended = True
        if self.error is not None:
            raise self.error
        written = write_durably(Path(task.out), self.content)
        return Done(written.sha256.hex(), written.size)


class Ward:
    """A hospital with one approved study, and a daemon there."""

    def __init__(self, folder: Path, study: Study | None = None, *, policy: str = POLICY) -> None:
        self.study = study or small_study()
        self.name = study_hash(self.study)
        self.home = make_hospital(folder, self.study, policy=policy)
        self.key = PrivateKey.generate()
        self.server = PrivateKey.generate()
        self.now = NOON
        self.answered: list[FedwardError | None] = []
        self.decide("approve")

    def decide(self, verdict: Verdict) -> None:
        manifest = load_manifest(self.home.manifests, self.name).digest
        Decisions(self.home.decisions, self.key.public).record(
            self.key,
            load_policy(self.home.policy_file),
            study=self.name,
            decision=verdict,
            by="Dr A",
            reason="because",
            manifest=manifest if verdict == "approve" else "",
        )

    def asked(self, number: int = 1, key: str = KEY, **changes: Any) -> Assignment:
        config = {records.STUDY_HASH: self.name, records.ROUND: number}
        body = write_body(self.home.state / f"task-{number}", Content(config, {}, WEIGHTS)).path
        header = Header(kind="task", audit=Head(length=5, hash=b"\7" * 32), body_size=1)
        given: dict[str, Any] = {
            "key": key,
            "study": self.name,
            "run": "run-1",
            "round": number,
            "action": records.TRAIN,
            "body": body,
            "evidence": seal(header, self.server).SerializeToString(),
        }
        return Assignment(**{**given, **changes})

    def run(
        self,
        story: Callable[[Daemon, Any], Awaitable[None]],
        make_pool: Callable[[], Any] = Trained,
    ) -> None:
        async def go() -> None:
            pool = make_pool()
            with AuditLog.open(self.home.audit_log, self.key) as log:
                account = Account(self.home.ledger)
                daemon = Daemon(
                    Place(SITE, self.home.path, self.home.studies),
                    rules=SiteRules(self.home, self.key, now=lambda: self.now),
                    pool=pool,
                    outbox=Outbox(self.home.outbox),
                    books=account,
                    record=Record(log),
                    signals=Signals(answered=lambda _asked, error: self.answered.append(error)),
                )
                try:
                    await story(daemon, pool)
                finally:
                    await daemon.stop()
                    account.close()

        asyncio.run(go())

    def log(self, kind: str) -> list[dict[str, Any]]:
        with AuditLog.open(self.home.audit_log, self.key) as log:
            return [entry.facts for entry in log.entries() if entry.kind == kind]


def read(path: Path) -> Content:
    with Body.open(path) as body:
        return body.content()


def code_and_reason(path: Path) -> tuple[Any, Any]:
    content = read(path)
    assert set(content.config) == {records.ERROR_CODE, records.ERROR_REASON}
    assert not content.arrays
    assert not content.metrics
    return content.config[records.ERROR_CODE], content.config[records.ERROR_REASON]


def test_an_approved_task_is_done_and_put_on_record(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        path = await daemon.do(ward.asked())
        assert (read(path).arrays["weight"] == 1.0).all()
        assert pool.loads == [Load(str(tmp_path), ward.name, "run-1", 1)]

    ward.run(story)
    [entry] = ward.log("release")
    assert entry["round"] == 1
    assert entry["server_log"] == {"length": 5, "hash": "07" * 32}
    assert ward.answered == [None]
    assert verify_log(ward.home.audit_log, ward.key.public).ok


def refused(ward: Ward, code: int, words: str, **changes: Any) -> None:
    """The task is answered by a refusal, and nothing was trained."""

    async def story(daemon: Daemon, pool: Trained) -> None:
        found = code_and_reason(await daemon.do(ward.asked(**changes)))
        assert found[0] == code
        assert words in found[1]
        assert pool.tasks == []

    ward.run(story)
    assert ward.log("release") == []
    assert ward.log("refuse")[-1]["code"] == code


def test_a_study_that_nobody_approved_is_refused(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    (ward.home.decisions / "decisions.log").unlink()
    refused(ward, 14, "has not approved the study")


def test_a_study_that_was_withdrawn_is_refused(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    ward.decide("withdraw")
    refused(ward, 14, "has withdrawn from the study")


def test_a_decision_that_was_forged_is_refused(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    (ward.home.decisions / "decisions.log").unlink()
    own, ward.key = ward.key, PrivateKey.generate()
    ward.decide("approve")
    ward.key = own
    refused(ward, 15, "record of decisions cannot be trusted")


def test_a_study_that_was_never_offered_is_refused(tmp_path: Path) -> None:
    refused(Ward(tmp_path), 3, "", study="0" * 64)


def test_a_study_that_was_changed_is_refused(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    path = ward.home.studies / f"{ward.name}.json"
    path.write_bytes(path.read_bytes().replace(rb"\"rounds\":2", rb"\"rounds\":9"))
    refused(ward, 3, "not the one that its file names")


def test_another_manifest_than_the_approved_one_is_refused(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    path = ward.home.manifests / f"{ward.name}.json"
    path.write_bytes(path.read_bytes() + b" ")
    refused(ward, 15, "manifest is not the one that was approved")


def test_a_policy_that_became_stricter_is_obeyed_and_not_told(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    ward.home.policy_file.write_text(POLICY.replace("min_cell_at_least = 1", ""))
    refused(ward, 14, "policy does not allow the study")
    assert "min_cell_at_least" not in str(ward.log("refuse"))
    [error] = ward.answered  # the site's own people see which rule it was
    assert "min_cell_at_least" in str(error and error.__cause__)


@pytest.mark.parametrize(("hour", "done"), [(12, False), (23, True), (3, True)])
def test_work_is_done_in_the_hours_of_the_policy(hour: int, done: bool, tmp_path: Path) -> None:
    ward = Ward(tmp_path, policy=POLICY + 'hours = "20:00-06:00"\n')
    ward.now = NOON.replace(hour=hour)
    if not done:
        refused(ward, 14, "outside the hours that this site's policy allows")
        return

    async def story(daemon: Daemon, _pool: Trained) -> None:
        assert read(await daemon.do(ward.asked())).arrays

    ward.run(story)


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "train.secret"},
        {"number": 3},
        {"number": 2, "round": 1},
        {"action": records.STATISTICS, "round": 1},
    ],
)
def test_what_the_study_cannot_ask_is_refused(changes: Any, tmp_path: Path) -> None:
    refused(Ward(tmp_path), 8, "", **changes)


def test_a_round_that_is_over_is_refused_and_the_same_task_is_not(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        first = (await daemon.do(ward.asked(1))).read_bytes()
        await daemon.do(ward.asked(2, key="cd" * 32))
        assert (await daemon.do(ward.asked(1))).read_bytes() == first
        assert len(pool.tasks) == 2
        code, reason = code_and_reason(await daemon.do(ward.asked(1, key="ef" * 32)))
        assert (code, len(pool.tasks)) == (8, 2)
        assert "round that is over" in reason

    ward.run(story)


def test_the_log_remembers_the_ledger_and_the_decisions(tmp_path: Path) -> None:
    """An older copy of one of them is noticed without anybody else's word."""
    ward = Ward(tmp_path)
    with Ledger(ward.home.ledger) as ledger:
        ledger.add_cohort(load_manifest(ward.home.manifests, ward.name).members)

    async def story(daemon: Daemon, _pool: Trained) -> None:
        await daemon.do(ward.asked())

    ward.run(story)
    with AuditLog.open(ward.home.audit_log, ward.key) as log:
        seen = last_end(log.entries(), LEDGER)
    account = Account(ward.home.ledger)
    account.check(seen, "its audit log")
    account.close()
    whole = ward.home.ledger.read_bytes()
    ward.home.ledger.unlink()
    account = Account(ward.home.ledger)
    with pytest.raises(StateError, match="older than what its audit log has seen"):
        account.check(seen, "its audit log")
    assert "ledger is older" in greeted(ward, account)
    account.close()

    rules = SiteRules(ward.home, ward.key, now=lambda: ward.now)
    path = ward.home.decisions / "decisions.log"
    before = path.read_bytes()
    ward.decide("withdraw")
    withdrawn = rules.end
    assert withdrawn is not None
    rules.check_holds(withdrawn.to_dict())
    with AuditLog.open(ward.home.audit_log, ward.key) as log:
        log.append("study", study=ward.name, state="withdrawn", decisions=withdrawn.to_dict())
    path.write_bytes(before)
    assert rules.states() == {ward.name: "approved"}
    with pytest.raises(StateError, match="record of decisions is older"):
        rules.check_holds(withdrawn.to_dict())
    ward.home.ledger.write_bytes(whole)
    account = Account(ward.home.ledger)
    assert "decisions is older" in greeted(ward, account)
    account.close()


def greeted(ward: Ward, account: Account) -> str:
    """Why a daemon halts when a server greets that says nothing of what it has seen."""
    service: Any = object.__new__(Service)
    with AuditLog.open(ward.home.audit_log, ward.key) as log:
        service._audit, service._record, service._account = log, Record(log), account
        service._rules = SiteRules(ward.home, ward.key, now=lambda: ward.now)
        service._daemon = SimpleNamespace(halted=None)
        service._desk = SimpleNamespace(connected=lambda: None)
        service._link = SimpleNamespace(reconsider=lambda: None)
        central = SimpleNamespace(coordinator=SimpleNamespace(name="central"))
        service._roster = SimpleNamespace(current=central)
        with pytest.raises(StateError):
            service._greeted({})
        return str(service._daemon.halted)


def test_a_server_that_drops_every_connection_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caused, "MOST", 5)
    ward = Ward(tmp_path)
    left_out: list[str] = []
    service: Any = object.__new__(Service)
    service._daemon = SimpleNamespace(halted=None)
    service._desk = SimpleNamespace(connected=lambda: None)
    service._link = SimpleNamespace(reconsider=lambda: None)
    service._roster = SimpleNamespace(
        current=SimpleNamespace(coordinator=SimpleNamespace(name="central"))
    )
    account = Account(ward.home.ledger)
    with AuditLog.open(ward.home.audit_log, ward.key) as log:
        service._audit, service._account = log, account
        service._record = Record(log, on_left_out=left_out.append)
        service._rules = SiteRules(ward.home, ward.key, now=lambda: ward.now)
        for number in range(20):
            if number % 2:  # and every other time it claims to have seen another log
                with pytest.raises(StateError):
                    service._greeted({"audit": {"length": 9**9, "hash": "0" * 64}})
            else:
                service._greeted({})
        service._record.close()
    account.close()
    assert len(ward.log("connect")) == len(ward.log("halted")) == 5
    assert left_out.count("connect") == left_out.count("halted") == 5
    assert {entry["entries"] for entry in ward.log("left out")} == {"connect", "halted"}


def test_nobody_asks_on_and_on_in_a_round(tmp_path: Path) -> None:
    """Without privacy, each different question about the same patients tells more about them."""
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        answered = 0
        for number in range(10):
            reply = read(await daemon.do(ward.asked(1, key=f"{number:064x}")))
            answered += records.ERROR_CODE not in reply.config
        assert answered == len(pool.tasks) == MOST_QUESTIONS
        assert read(await daemon.do(ward.asked(1, key="0" * 64))).arrays
        assert read(await daemon.do(ward.asked(2, key="cd" * 32))).arrays

    ward.run(story)


def test_an_answer_is_not_given_in_the_name_of_another_study(tmp_path: Path) -> None:
    """What was answered for a study that is withdrawn, asked for under one that is approved."""
    ward = Ward(tmp_path)
    other = small_study(training={"seed": 9})
    consortium = Consortium.make()
    keep_offer(ward.home.studies, read_offer(consortium.offer(other), consortium.roster()))
    first = ward.asked()

    async def story(daemon: Daemon, pool: Trained) -> None:
        path = await daemon.do(first)
        ward.decide("withdraw")
        approve_data(ward.home, other)
        ward.name = study_hash(other)
        ward.decide("approve")
        code, reason = code_and_reason(await daemon.do(replace(first, study=ward.name)))
        assert (code, len(pool.tasks)) == (8, 1)
        assert "names another study" in reason
        assert path.exists()  # or whoever asks could have the site forget what it answered

    ward.run(story)


def test_the_same_task_has_the_same_answer_after_a_restart(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    found: list[bytes] = []

    async def story(daemon: Daemon, pool: Trained) -> None:
        found.append((await daemon.do(ward.asked())).read_bytes())
        assert len(pool.tasks) == (1 if len(found) == 1 else 0)

    ward.run(story)
    ward.run(story)
    assert found[0] == found[1]
    assert len(ward.log("release")) == 1


def test_asking_in_another_name_makes_no_round_new(tmp_path: Path) -> None:
    """A run's questions stay counted, whatever is asked in the name of a study nobody knows."""
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, _pool: Trained) -> None:
        for number in (1, 2):
            asked = ward.asked(number, key=f"{number:064x}")
            assert read(await daemon.do(asked)).arrays
            daemon.receipt(asked.key, b"")
            assert code_and_reason(await daemon.do(replace(asked, study="ab" * 32)))[0] != 0
            daemon.receipt(asked.key, b"")
        outbox = Outbox(ward.home.outbox)
        assert outbox.last_round(ward.asked().run) == 2
        first = await daemon.do(ward.asked(1, key="ee" * 32))
        assert code_and_reason(first)[0] == RoundError.exit_code
        again = ward.asked(2, key=f"{2:064x}")
        assert read(await daemon.do(again)).arrays  # what was answered is still given

    ward.run(story)


def test_an_answer_that_is_there_stays_when_the_study_is_withdrawn(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, _pool: Trained) -> None:
        path = await daemon.do(ward.asked())
        ward.decide("withdraw")
        told = await daemon.do(ward.asked())
        assert code_and_reason(told)[0] == 14
        assert told != path

    ward.run(story)


def test_several_who_ask_the_same_get_one_answer(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        paths = await asyncio.gather(*(daemon.do(ward.asked()) for _ in range(3)))
        assert len(set(paths)) == 1
        assert len(pool.tasks) == 1

    ward.run(story)


def test_what_the_gate_stops_does_not_leave(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.content = Content({"patients": 57}, {records.WEIGHT: 1.0}, WEIGHTS)
        code, reason = code_and_reason(await daemon.do(ward.asked()))
        assert code == 8
        assert "57" not in reason
        assert not list(tmp_path.glob("state/outbox/*/*.work"))

    ward.run(story)
    assert ward.log("release") == []


def test_a_reply_that_was_exchanged_on_the_disk_does_not_leave(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        honest = pool.do

        async def exchanged(load: Load, task: Do) -> Done:
            done = await honest(load, task)
            pool.content = replace(pool.content, arrays={n: w + 2 for n, w in WEIGHTS.items()})
            write_durably(Path(task.out), pool.content)
            return done

        pool.do = exchanged  # type: ignore[method-assign]
        code, reason = code_and_reason(await daemon.do(ward.asked()))
        assert code == 8
        assert "not the one that was trained" in reason

    ward.run(story)


def test_a_private_reply_that_nothing_paid_for_does_not_leave(tmp_path: Path) -> None:
    study = small_study(privacy={"mode": "dp", "epsilon": 3.0, "delta": 1e-3})
    ward = Ward(tmp_path, study)

    async def story(daemon: Daemon, _pool: Trained) -> None:
        code, reason = code_and_reason(await daemon.do(ward.asked()))
        assert code == 6
        assert "the site knows why" in reason

    ward.run(story)


@pytest.mark.parametrize(
    "error",
    [
        DataError("57 patients are missing", hint="look"),
        PrivacyError("epsilon would be 7.04", hint="less"),
        WorkerDied("the training process ended", hint="see the log"),
    ],
)
def test_a_refusal_tells_the_server_nothing_and_the_site_all(
    error: FedwardError, tmp_path: Path
) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.error = error
        code, reason = code_and_reason(await daemon.do(ward.asked()))
        assert code == error.exit_code
        assert not any(digit in reason for digit in "0123456789")

    ward.run(story)
    assert ward.answered == [error]
    assert "57" not in str(ward.log("refuse"))


def test_a_refusal_that_was_received_is_thought_over(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.error = WorkerDied("it ended", hint="x")
        first = (await daemon.do(ward.asked())).read_bytes()
        pool.error = None
        assert (await daemon.do(ward.asked())).read_bytes() == first  # not received yet
        receipt = seal(Header(kind="receipt"), ward.server).SerializeToString()
        daemon.receipt(KEY, receipt)
        assert read(await daemon.do(ward.asked())).arrays

    ward.run(story)
    [entry] = ward.log("receipt")
    assert entry["task"] == KEY


def test_a_server_that_asks_on_and_on_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is refused, or has the answer already."""
    monkeypatch.setattr(caused, "MOST", 5)
    ward = Ward(tmp_path)
    receipt = seal(Header(kind="receipt"), ward.server).SerializeToString()

    async def story(daemon: Daemon, _pool: Trained) -> None:
        await daemon.do(ward.asked())
        for _ in range(10):
            daemon.receipt(KEY, receipt)
        ward.decide("withdraw")
        for number in range(10):
            key = f"{number:064x}"
            assert code_and_reason(await daemon.do(ward.asked(key=key)))[0] == 14
            daemon.receipt(key, receipt)

    ward.run(story)
    assert len(ward.log("refuse")) == 5
    assert len(ward.log("receipt")) == 6
    assert ward.log("release")


def test_a_task_that_nobody_waits_for_is_ended(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.wait = asyncio.Event()
        doing = asyncio.create_task(daemon.do(ward.asked()))
        await pool.began.wait()
        daemon.closed(KEY)
        with pytest.raises(StateError, match="nobody waits"):
            await doing
        assert pool.ended
        assert daemon.working == 0

    ward.run(story)


def test_a_withdrawal_ends_what_is_being_trained(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.wait = asyncio.Event()
        doing = asyncio.create_task(daemon.do(ward.asked()))
        await pool.began.wait()
        daemon.withdrawn(ward.name)
        code, reason = code_and_reason(await doing)
        assert code == 14
        assert "withdrawn" in reason
        assert pool.ended

    ward.run(story)


def test_a_withdrawal_before_a_task_has_begun_is_said_too(tmp_path: Path) -> None:
    """A task that is cancelled before its first step does nothing by itself."""
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        doing = asyncio.create_task(daemon.do(ward.asked()))
        await asyncio.sleep(0)  # it was asked for, nothing more
        assert daemon.working == 1
        daemon.withdrawn(ward.name)
        code, reason = code_and_reason(await doing)
        assert code == 14
        assert "withdrawn" in reason
        assert not pool.began.is_set()
        assert daemon.working == 0

    ward.run(story)


def test_a_withdrawal_just_before_the_end_still_counts(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.wait = asyncio.Event()
        doing = asyncio.create_task(daemon.do(ward.asked()))
        await pool.began.wait()
        ward.decide("withdraw")
        pool.wait.set()
        assert code_and_reason(await doing)[0] == 14

    ward.run(story)


def test_work_goes_on_when_the_one_who_asked_is_gone(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        pool.wait = asyncio.Event()
        first = asyncio.create_task(daemon.do(ward.asked()))
        await pool.began.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert daemon.working == 1
        pool.wait.set()
        assert read(await daemon.do(ward.asked())).arrays
        assert len(pool.tasks) == 1

    ward.run(story)


def test_a_site_that_is_halted_does_nothing(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        daemon.halted = StateError("this site's ledger is older", hint="restore the newer one")
        code, reason = code_and_reason(await daemon.do(ward.asked()))
        assert code == 15
        assert "ledger is older" in reason
        assert pool.tasks == []

    ward.run(story)


@pytest.mark.parametrize("run", ["../../etc", "", "a/b", ".hidden", "x" * 101])
def test_a_run_whose_name_is_a_path_is_refused(run: str, tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, _pool: Trained) -> None:
        told = await daemon.do(ward.asked(run=run))
        assert code_and_reason(told)[0] == LinkError.exit_code

    ward.run(story)
    folders = {path.name for path in ward.home.outbox.iterdir()}
    assert folders == {".refused"}


def test_a_large_task_is_judged_before_its_body_is_here(tmp_path: Path) -> None:
    ward = Ward(tmp_path)

    async def story(daemon: Daemon, pool: Trained) -> None:
        asked = replace(ward.asked(), body=tmp_path / "missing")
        assert await daemon.decline(asked) is None
        for other in (replace(asked, study="ab" * 32), replace(asked, study="x")):
            refusal = await daemon.decline(other)
            assert refusal is not None
            assert code_and_reason(refusal)[0] != 0
        ward.decide("withdraw")
        refusal = await daemon.decline(asked)
        assert refusal is not None
        assert code_and_reason(refusal)[0] == 14
        assert pool.tasks == []

    ward.run(story)


@pytest.mark.parametrize("when", ["gate", "ledger", "release"])
def test_what_was_paid_for_outlives_an_error_that_passes(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say, just when the reply is released; but what the gate stops is deleted."""
    private = {"mode": "dp", "epsilon": 3.0, "delta": 1e-3}
    ward = Ward(tmp_path, small_study(privacy=private) if when == "ledger" else small_study())

    def full(*_: Any, **__: Any) -> Any:
        raise OutputError("the disk is full", hint="make room")

    async def story(daemon: Daemon, pool: Trained) -> None:
        with monkeypatch.context() as patched:
            if when == "gate":
                pool.content = Content({"patients": 57}, {records.WEIGHT: 1.0}, WEIGHTS)
            elif when == "ledger":
                patched.setattr(Account, "paid", full)
            else:
                patched.setattr(Outbox, "release", full)
            assert code_and_reason(await daemon.do(ward.asked()))[0] != 0
        works = list(tmp_path.glob("state/outbox/*/*.work"))
        assert len(works) == (0 if when == "gate" else 1)

    ward.run(story)


def test_nothing_leaves_when_the_ledger_is_found_to_lack_something_meanwhile(
    tmp_path: Path,
) -> None:
    ward = Ward(tmp_path)
    lacks = StateError("this site's ledger is older", hint="restore the newer one")

    async def story(daemon: Daemon, pool: Trained) -> None:
        honest = pool.do

        async def halted(load: Load, task: Do) -> Done:
            done = await honest(load, task)
            daemon.halted = lacks
            return done

        pool.do = halted  # type: ignore[method-assign]
        assert code_and_reason(await daemon.do(ward.asked()))[0] == StateError.exit_code

    ward.run(story)
    assert ward.log("release") == []


def test_a_reply_that_the_ledger_did_not_pay_for_is_not_given_again(tmp_path: Path) -> None:
    """It was paid for by another ledger, in whose place the right one was put since."""
    ward = Ward(tmp_path, small_study(privacy={"mode": "dp", "epsilon": 3.0, "delta": 1e-3}))

    async def story(daemon: Daemon, _pool: Trained) -> None:
        asked = ward.asked()
        outbox = Outbox(ward.home.outbox)
        work = outbox.work(asked.run, asked.round, asked.key)
        outbox.begin(work)
        write_durably(work, Content({}, {records.WEIGHT: 1.0}, WEIGHTS))
        outbox.release(work)
        code, reason = code_and_reason(await daemon.do(asked))
        assert code == PrivacyError.exit_code
        assert "the site knows why" in reason

    ward.run(story)


def test_a_ledger_that_lacks_something_stops_the_site_whatever_the_log_says_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the log cannot be written at that moment."""
    ward = Ward(tmp_path)
    service: Any = object.__new__(Service)
    service._daemon = SimpleNamespace(halted=None)
    service._link = SimpleNamespace(reconsider=lambda: None)
    error = StateError("this site's ledger is older", hint="restore the newer one")
    lost, longer = LogEnd(4, "a" * 64), LogEnd(7, "b" * 64)

    def full(*_: Any, **__: Any) -> None:
        raise OutputError("the disk is full", hint="make room")

    account = Account(ward.home.ledger)
    with AuditLog.open(ward.home.audit_log, ward.key) as log:
        service._audit, service._account, service._record = log, account, Record(log)
        service._rules = SiteRules(ward.home, ward.key, now=lambda: ward.now)
        with monkeypatch.context() as patched:
            patched.setattr(AuditLog, "append", full)
            with pytest.raises(OutputError):
                service._lacks(lost, error)
        assert service._daemon.halted is error
        for end in (lost, longer, lost):
            service._lacks(end, error)
        assert lacking(log.entries()) == {lost, longer}
        log.append("release", ledger=account.head.to_dict())  # of a thread that was not stopped
        with pytest.raises(StateError, match="its audit log has seen"):
            service._check_own()
    account.close()


def test_the_daemon_loads_nothing_that_computes() -> None:
    code = (
        "import sys, fedward.client.daemon.service, fedward.client.commands.daemon\n"
        "heavy = {'torch', 'flwr', 'opacus', 'polars', 'PIL', 'scipy'} & set(sys.modules)\n"
        "print(','.join(heavy), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
