"""Runs from offer to release: they start, wait, fail for a reason, stop, and go on after a kill."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.serverapp import ServerApp

from fedward.common import records
from fedward.common.audit import AuditLog, verify_log
from fedward.common.errors import DataError, StateError
from fedward.common.identity import (
    Authority,
    Member,
    PrivateKey,
    Roster,
    RosterFile,
    make_issuer,
    make_root,
    sign_roster,
)
from fedward.common.models.bundle import load_bundle
from fedward.common.statements import OFFER, state
from fedward.common.study import Study, canonical_json, study_hash
from fedward.common.tensors import Weights
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head, Header
from fedward.common.wire.message import seal
from fedward.server.authority import utc_now
from fedward.server.carrier import Order, run_app
from fedward.server.checkpoints import CheckpointFolder, RunState
from fedward.server.conductor import Conductor
from fedward.server.execution import Patience
from fedward.server.first_weights import first_weights
from fedward.server.registry import Choice, Registry, Run, State
from fedward.server.release import Releaser
from fedward.simulations.engines.flaky import Fault, FlakyGrid, refused, run_flaky
from fedward.simulations.engines.loop import LoopGrid, loop_grid
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

SITES = ("site-1", "site-2", "site-3")
LONG_S = 60.0


def a_study(**changes: Any) -> Study:
    section = {"weights": "equal", "min_sites": 2, **changes.pop("aggregation", {})}
    return small_study(aggregation=section, **changes)


class Consortium:
    """A coordinator's folder with a root, a roster and the keys of three sites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = PrivateKey.generate()
        self.keys = {site: PrivateKey.generate() for site in SITES}
        now = utc_now()
        root_key, issuer_key = PrivateKey.generate(), PrivateKey.generate()
        self.root = make_root(root_key, "Test", now=now)
        root = Authority(root_key, self.root)
        self.issuer = Authority(issuer_key, make_issuer(issuer_key.public, root, now=now))
        self.version = 0
        self.publish()

    def publish(self, *, without: Iterable[str] = ()) -> None:
        """A new version of the roster."""
        self.version += 1
        since = "2026-01-01"
        members = [Member.make("coordinator", "coordinator", self.key.public, since=since)]
        for site in SITES:
            member = Member.make(site, "site", self.keys[site].public, since=since)
            members.append(member.revoked("left", since=since) if site in without else member)
        roster = Roster(
            consortium="Test",
            version=self.version,
            issued_at="2026-01-01T00:00:00+00:00",
            host="localhost",
            port=8440,
            members=tuple(members),
        )
        data = sign_roster(roster, self.issuer.key, self.issuer.certificate)
        (self.folder / "roster.json").write_bytes(data)

    @property
    def root_pem(self) -> bytes:
        return self.root.pem.encode()

    def folder_for_run(self, run: str) -> Path:
        return self.folder / "runs" / run


class SiteGrid(LoopGrid):
    """Only the sites that take part; their replies are signed."""

    order: Order
    keys: Mapping[str, PrivateKey]
    answered: Callable[[str], None]

    def get_node_ids(self) -> Iterable[int]:
        wanted = set(self.order.nodes().values())
        return [node for node in self._contexts if self.site(node) in wanted]

    def _deliver(self, message: Message) -> Message:
        self.order.check()
        answer = super()._deliver(message)
        site = self.site(message.metadata.dst_node_id)
        number = int(message.content.config_records["config"].get(records.ROUND, 0))  # type: ignore[arg-type]
        header = Header(
            protocol=kinds.PROTOCOL,
            sender=site,
            recipient="coordinator",
            kind=kinds.REPLY,
            study=self.order.run.study,
            run=self.order.run.id,
            round=number,
            action=message.metadata.message_type,
            body_sha256=b"\1" * 32,
            body_size=1,
            plain_size=1,
            ledger=Head(length=number + 1, hash=bytes([number + 1]) * 32),
        )
        self.order.receipts.add(seal(header, self.keys[site]).SerializeToString())
        self.answered(site)
        return answer


class LoopCarrier:
    """Carries runs to sites in this process."""

    proves = True

    def __init__(self, consortium: Consortium, study: Study, faults: Sequence[Fault] = ()) -> None:
        self.sites = make_sites(study, make_cohorts(study, len(SITES), patients=24))
        self.there = set(SITES)
        self.faults = faults
        self.keys = consortium.keys
        self.answered: Callable[[str], None] = lambda _site: None
        self.carried = 0

    def connected(self) -> frozenset[str]:
        return frozenset(self.there)

    def carry(self, app: ServerApp, order: Order) -> None:
        self.carried += 1
        grid = loop_grid(self.sites)
        grid.__class__ = SiteGrid
        assert isinstance(grid, SiteGrid)
        grid.order, grid.keys, grid.answered = order, self.keys, self.answered
        run_app(app, FlakyGrid(grid, self.faults))


class Service:
    """What `fedward server run` holds, without its sockets."""

    def __init__(
        self, consortium: Consortium, carrier: LoopCarrier, patience: Patience | None = None
    ) -> None:
        self.consortium = consortium
        folder = consortium.folder
        self.registry = Registry.open(folder / "registry.sqlite")
        self.roster = RosterFile(folder / "roster.json", consortium.root_pem)
        self.audit = AuditLog.open(folder / "audit.log", consortium.key)
        self.conductor = Conductor(
            self.registry,
            roster=self.roster,
            audit=self.audit,
            carrier=carrier,
            folder_for_run=consortium.folder_for_run,
            release=Releaser(
                self.registry,
                self.roster,
                self.audit,
                "coordinator",
                consortium.key,
                consortium.folder_for_run,
            ),
            patience=patience or Patience(quorum_s=LONG_S, pause_s=0.01),
            make_weights=first_weights,
        )

    def offer(self, study: Study) -> str:
        content = {"study": study_hash(study), "document": canonical_json(study), "at_ms": 1}
        evidence = state(OFFER, "coordinator", content, self.consortium.key)
        self.registry.offer(study, evidence, SITES)
        return study_hash(study)

    def approve(self, study: str, *sites: str) -> None:
        for site in sites or SITES:
            self.registry.decide(site, study, Choice.APPROVE, b"yes")

    def until(self, *states: State, run: str | None = None) -> Run:
        """Look until the run is in one of these states."""
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            self.conductor.look()
            runs = [r for r in self.registry.runs() if run in (None, r.id)]
            if runs and runs[-1].state in states:
                return runs[-1]
            threading.Event().wait(0.01)
        raise AssertionError(f"{[(r.state, r.reason) for r in self.registry.runs()]}")

    def close(self) -> None:
        assert self.conductor.close(LONG_S)
        self.audit.close()
        self.registry.close()


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


@pytest.fixture
def serve(consortium: Consortium) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(carrier: LoopCarrier, patience: Patience | None = None) -> Service:
        services.append(Service(consortium, carrier, patience))
        return services[-1]

    yield make
    for service in services:
        service.close()


def final(consortium: Consortium, run: str) -> RunState:
    found = CheckpointFolder(consortium.folder_for_run(run) / "checkpoints").newest()
    assert found is not None
    return found


def same(left: Weights, right: Weights) -> bool:
    return all(left[name].tobytes() == right[name].tobytes() for name in right)


def expected(study: Study) -> Weights:
    sites = make_sites(study, make_cohorts(study, len(SITES), patients=24))
    return run_flaky(study, sites).weights


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


def test_a_service_that_ended_is_continued_by_the_next(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    """Closed while a site is asked in round 2, at once, as often as there are sites."""
    study = a_study(
        training={"rounds": 4}, algorithm={"name": "fedadam", "server_learning_rate": 0.1}
    )
    offered = ""
    for attempt in range(4):
        carrier = LoopCarrier(consortium, study)
        service = serve(carrier)
        asked = threading.Semaphore(0)
        carrier.answered = lambda _site, asked=asked: asked.release()  # type: ignore[misc]
        if not offered:
            offered = service.offer(study)
            service.approve(offered)
        service.conductor.look()
        for _ in range(6 + attempt):
            assert asked.acquire(timeout=LONG_S)
        assert service.conductor.close(LONG_S)
    service = serve(LoopCarrier(consortium, study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round, run.number) == (State.RELEASED, 4, 1)
    assert same(final(consortium, run.id).weights, expected(study))
    assert [r.round for r in service.registry.rounds(run.id)] == [1, 2, 3, 4]


def test_a_round_counted_but_not_kept_is_done_again(
    consortium: Consortium, serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes out between the registry and the checkpoint."""
    study = a_study(training={"rounds": 3})
    save = CheckpointFolder.save

    def fail(self: CheckpointFolder, state_: RunState) -> None:
        if state_.round == 2:
            raise StateError("the power went out", hint="")
        save(self, state_)

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


def test_a_defect_fails_the_run_without_its_words(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study()
    carrier = LoopCarrier(consortium, study)

    def fail(_site: str) -> None:
        raise KeyError("patient 17")

    carrier.answered = fail
    service = serve(carrier)
    service.approve(service.offer(study))
    assert service.until(State.FAILED).reason == "this is a defect in fedward: KeyError"
