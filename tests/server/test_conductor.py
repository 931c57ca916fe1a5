"""Runs from offer to release: they start, wait, fail for a reason, stop, and go on after a kill."""

from __future__ import annotations

import re
import runpy
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.serverapp import ServerApp

from fedward.common.audit import AuditLog, verify_log
from fedward.common.errors import DataError, StateError
from fedward.common.models.bundle import load_bundle
from fedward.common.study import study_hash
from fedward.server.carrier import Order
from fedward.server.checkpoints import CheckpointFolder, RunState
from fedward.server.conductor import Hooks
from fedward.server.patience import Patience
from fedward.server.registry import Choice, State
from fedward.simulations.engines.flaky import Fault, refused

_helper = runpy.run_path(str(Path(__file__).with_name("consortium.py")))
Consortium, LoopCarrier, Service = (_helper[n] for n in ("Consortium", "LoopCarrier", "Service"))
SITES, LONG_S = _helper["SITES"], _helper["LONG_S"]
a_study, final, same, expected = (_helper[n] for n in ("a_study", "final", "same", "expected"))
LEFT = ("tasks/task-1", f".release.{'0' * 16}.partial", f"checkpoints/.r.{'0' * 16}.partial")
"""What a service that is killed would leave in a run's folder."""


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


@pytest.fixture
def serve(consortium: Consortium) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(
        carrier: LoopCarrier, patience: Patience | None = None, hooks: Hooks | None = None
    ) -> Service:
        services.append(Service(consortium, carrier, patience, hooks))
        return services[-1]

    yield make
    for service in services:
        service.close()


def test_a_study_goes_from_offer_to_release(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(training={"rounds": 3})
    service = serve(LoopCarrier(consortium, study))
    offered = service.offer(study)
    service.approve(offered)
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round, run.sites, run.reason) == (State.RELEASED, 3, SITES, "")
    assert same(final(consortium, run.id).weights, expected(study))
    rounds = service.registry.rounds(run.id)
    assert [r.participants for r in rounds] == [SITES] * 3
    assert rounds[-1].evaluation["overall"]["auroc"] is not None
    assert rounds[1].heads["site-2"] == {"ledger": {"length": 3, "hash": "03" * 32}}
    assert [h.length for h in service.registry.heads("ledger")] == [4] * 3
    trained = [r for r in service.registry.receipts(run.id) if r.action == "train"]
    assert [(r.round, r.site) for r in trained] == [(n, s) for n in (1, 2, 3) for s in SITES]
    assert load_bundle(consortium.folder_for_run(run.id) / "release" / "model").weights
    kinds_ = [entry.kind for entry in service.audit.entries()]
    assert kinds_[1:] == [
        "run started", "run prepared", "round", "round", "round", "release", "run released",
    ]  # fmt: skip
    assert verify_log(consortium.folder / "audit.log", consortium.key.public).ok


def test_nothing_starts_before_everybody_has_answered(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    service = serve(LoopCarrier(consortium, study))
    offered = service.offer(study)
    service.approve(offered, "site-1", "site-2")
    service.conductor.look()
    assert service.registry.runs() == ()
    service.registry.decide("site-3", offered, Choice.REFUSE, b"no")
    run = service.until(State.RELEASED)
    assert run.sites == ("site-1", "site-2")


def test_a_revoked_site_is_not_waited_for(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    service = serve(LoopCarrier(consortium, study))
    offered = service.offer(study)
    service.approve(offered, "site-1", "site-2")
    service.conductor.look()
    assert service.registry.runs() == ()
    consortium.publish(without=["site-3"])
    assert service.until(State.RELEASED).sites == ("site-1", "site-2")


def test_a_run_waits_for_its_quorum_and_says_so(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    carrier = LoopCarrier(consortium, study)
    carrier.there = {"site-2"}
    service = serve(carrier)
    service.approve(service.offer(study))
    run = service.until(State.RUNNING)
    deadline = time.monotonic() + LONG_S
    while not service.conductor.waiting and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    (said,) = service.conductor.waiting.values()
    assert said == "1 of 2 needed sites are connected; connect site-1, site-3"
    assert carrier.carried == 0
    carrier.there = set(SITES)
    assert service.until(State.RELEASED).id == run.id


def test_a_disk_that_refuses_pauses_a_run_and_says_so(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    service = serve(LoopCarrier(consortium, study))
    digest = service.offer(study)
    run = f"{study.study.name}-{digest[:8]}-1"
    in_the_way = consortium.folder_for_run(run) / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    service.approve(digest)
    deadline = time.monotonic() + LONG_S
    said: list[str] = []
    while len(said) < 3 and time.monotonic() < deadline:  # over several attempts
        service.conductor.look()
        now = service.conductor.waiting.get(run, "")
        if now != (said or [""])[-1]:
            said.append(now)
        threading.Event().wait(0.01)
    assert said[0] == said[2]
    assert "cannot write checkpoints" in said[0]
    assert service.registry.run(run).state is State.RUNNING
    in_the_way.unlink()
    assert service.until(State.RELEASED).id == run
    with AuditLog.open(consortium.folder / "audit.log", consortium.key) as audit:
        assert not [entry for entry in audit.entries() if entry.kind == "run failed"]


def test_patience_ends(consortium: Consortium, serve: Callable[..., Service]) -> None:
    study = a_study()
    carrier = LoopCarrier(consortium, study)
    carrier.there = set()
    service = serve(carrier, Patience(quorum_s=0.05, pause_s=0.01))
    service.approve(service.offer(study))
    run = service.until(State.FAILED)
    assert "nobody came: 0 of 2 needed sites are connected" in run.reason
    carrier.there = set(SITES)
    service.registry.resume(run.id)
    assert service.until(State.RELEASED, run=run.id).reason == ""


def test_a_refusal_of_all_fails_the_run_with_their_words(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    faults = [
        Fault(site, refused(DataError.exit_code, "too few patients"), round=2) for site in SITES
    ]
    carrier = LoopCarrier(consortium, study, faults)
    service = serve(carrier)
    service.approve(service.offer(study))
    run = service.until(State.FAILED)
    assert "too few patients" in run.reason
    assert run.round == 1
    assert carrier.carried == 1
    carrier.faults = ()
    service.registry.resume(run.id)
    assert service.until(State.RELEASED, run=run.id).round == 2
    assert same(final(consortium, run.id).weights, expected(study))


def test_a_round_that_too_few_answered_is_tried_again_and_then_given_up(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    faults = [Fault(site, refused(8, "no answer before the deadline"), round=1) for site in SITES]
    carrier = LoopCarrier(consortium, study, faults)
    service = serve(carrier, Patience(attempts=3, pause_s=0.01))
    service.approve(service.offer(study))
    run = service.until(State.FAILED)
    assert "no answer before the deadline" in run.reason
    assert carrier.carried in (3, 4)  # the first attempt prepared the run: that is progress
    assert len([e for e in service.registry.events() if e.kind == "round tried again"]) >= 2


def test_withdrawal_during_a_run_is_respected_and_recorded(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(training={"rounds": 4})
    carrier = LoopCarrier(consortium, study)
    service = serve(carrier)
    offered = service.offer(study)

    def withdraw(site: str) -> None:
        (run,) = service.registry.runs()
        if run.round == 1 and site == "site-3":
            service.registry.decide("site-2", offered, Choice.WITHDRAW, b"no more")
            carrier.answered = lambda _site: None

    carrier.answered = withdraw
    service.approve(offered)
    run = service.until(State.RELEASED, State.FAILED)
    rounds = service.registry.rounds(run.id)
    assert [r.participants for r in rounds] == [SITES, SITES, *[("site-1", "site-3")] * 2]
    assert "site-2" in rounds[2].refused
    card = (consortium.folder_for_run(run.id) / "release/model/MODEL_CARD.md").read_text()
    assert "site-2: withdrew; what it contributed before is in the model" in card


def test_too_few_left_fail_the_run(consortium: Consortium, serve: Callable[..., Service]) -> None:
    study = a_study(training={"rounds": 50})
    carrier = LoopCarrier(consortium, study)
    service = serve(carrier)
    offered = service.offer(study)

    def withdraw(_site: str) -> None:
        carrier.answered = lambda _site: None
        for site in ("site-2", "site-3"):
            service.registry.decide(site, offered, Choice.WITHDRAW, b"")

    carrier.answered = withdraw
    service.approve(offered)
    assert "1 of 2 needed sites still take part" in service.until(State.FAILED).reason


def test_a_run_is_stopped_and_resumed(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(training={"rounds": 4})
    carrier = LoopCarrier(consortium, study)
    service = serve(carrier)

    def stop(_site: str) -> None:
        (run,) = service.registry.runs()
        if run.round == 2 and not run.stop:
            service.registry.ask_to_stop(run.id)
            service.conductor.look()

    carrier.answered = stop
    service.approve(service.offer(study))
    run = service.until(State.STOPPED, State.RELEASED)
    assert run.state is State.STOPPED
    assert run.round in (2, 3)
    carrier.answered = lambda _site: None
    service.registry.resume(run.id)
    assert service.until(State.RELEASED, run=run.id).round == 4
    assert same(final(consortium, run.id).weights, expected(study))


class Asked:
    """Counts answers up to a number."""

    def __init__(self, number: int) -> None:
        self.reached = threading.Event()
        self._left = number

    def answered(self, _site: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()


def test_a_service_that_ended_is_continued_by_the_next(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    """Closed while a site is asked in round 2, at once, as often as there are sites."""
    study = a_study(
        training={"rounds": 4}, algorithm={"name": "fedadam", "server_learning_rate": 0.1}
    )
    offered = ""
    for attempt in range(4):
        if attempt == 1:
            folder = consortium.folder_for_run(f"{study.study.name}-{offered[:8]}-1")
            (folder / "tasks").mkdir()
            for name in LEFT:
                (folder / name).touch()
        carrier = LoopCarrier(consortium, study)
        service = serve(carrier)
        asked = Asked(6 + attempt)
        carrier.answered, carrier.held = asked.answered, asked.reached.is_set
        if not offered:
            offered = service.offer(study)
            service.approve(offered)
        service.conductor.look()
        assert asked.reached.wait(LONG_S)
        assert service.conductor.close(LONG_S)
    service = serve(LoopCarrier(consortium, study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round, run.number) == (State.RELEASED, 4, 1)
    folder = consortium.folder_for_run(run.id)
    assert not [name for name in LEFT if (folder / name).exists()]
    assert same(final(consortium, run.id).weights, expected(study))
    assert [r.round for r in service.registry.rounds(run.id)] == [1, 2, 3, 4]


def test_a_round_counted_but_not_kept_is_done_again(
    consortium: Consortium, serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes out between the registry and the checkpoint."""
    study = a_study(training={"rounds": 3})
    save = CheckpointFolder.save

    def fail(self: CheckpointFolder, state_: RunState) -> RunState:
        if state_.round == 2:
            raise StateError("the power went out", hint="")
        return save(self, state_)

    monkeypatch.setattr(CheckpointFolder, "save", fail)
    service = serve(LoopCarrier(consortium, study))
    service.approve(service.offer(study))
    run = service.until(State.FAILED)
    assert (run.round, final(consortium, run.id).round) == (2, 1)
    monkeypatch.undo()
    service.registry.resume(run.id)
    assert service.until(State.RELEASED, State.FAILED, run=run.id).state is State.RELEASED
    assert same(final(consortium, run.id).weights, expected(study))
    assert [e.kind for e in service.registry.events(run=run.id)].count(
        "rounds to be done again"
    ) == 1


def test_two_runs_at_once(consortium: Consortium, serve: Callable[..., Service]) -> None:
    studies = [a_study(training={"rounds": n}) for n in (2, 3)]
    carrier = LoopCarrier(consortium, studies[0])
    other = LoopCarrier(consortium, studies[1])
    meeting = threading.Barrier(2, timeout=LONG_S)

    class Both(LoopCarrier):
        def carry(self, app: ServerApp, order: Order) -> None:
            meeting.wait()  # both are being carried
            fitting = carrier if order.run.study == study_hash(studies[0]) else other
            fitting.carry(app, order)

    service = serve(Both(consortium, studies[0]))
    for study in studies:
        service.approve(service.offer(study))
    service.conductor.look()
    for run in service.registry.runs():
        service.until(State.RELEASED, run=run.id)
    for run, study in zip(service.registry.runs(), studies, strict=True):
        assert same(final(consortium, run.id).weights, expected(study))


class Defects:
    """Answers that the server has no words for; how many of them it met.

    Args:
        after: there is one while this many rounds are counted, once for each time it stands here.
    """

    def __init__(self, after: Iterable[int]) -> None:
        self._after = list(after)
        self.met = 0

    def answered(self, service: Service) -> None:
        (run,) = service.registry.runs()
        if run.round in self._after:
            self._after.remove(run.round)
            raise KeyError("patient 17")

    def meet(self) -> None:
        self.met += 1


def is_named(reason: str) -> bool:
    form = r"this is a defect in fedward: KeyError at \w+\.py, line \d+"
    return re.fullmatch(form, reason) is not None


def test_a_run_goes_on_after_defects_as_long_as_it_gets_further(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(training={"rounds": 4})
    carrier = LoopCarrier(consortium, study)
    defects = Defects(after=[0, 1, 3])
    service = serve(carrier, hooks=Hooks(defect=defects.meet))
    carrier.answered = lambda _site: defects.answered(service)
    service.approve(service.offer(study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round, run.reason) == (State.RELEASED, 4, "")
    assert defects.met == 3
    assert same(final(consortium, run.id).weights, expected(study))
    said = [e for e in service.audit.entries() if e.kind == "run goes on"]
    assert len(said) == 3
    assert all(is_named(str(entry.facts["reason"])) for entry in said)


def test_a_defect_that_comes_again_fails_the_run_without_its_words(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(training={"rounds": 3})
    carrier = LoopCarrier(consortium, study)
    defects = Defects(after=[1, 1])
    service = serve(carrier, hooks=Hooks(defect=defects.meet))
    carrier.answered = lambda _site: defects.answered(service)
    service.approve(service.offer(study))
    run = service.until(State.FAILED)
    assert is_named(run.reason)
    assert (run.round, carrier.carried, defects.met) == (1, 2, 2)
    service.registry.resume(run.id)
    assert service.until(State.RELEASED, run=run.id).reason == ""
    kinds_ = [entry.kind for entry in service.audit.entries()]
    assert kinds_.count("run goes on") == kinds_.count("run failed") == 1
