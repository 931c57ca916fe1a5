"""Runs in which sites were cut off in the middle of private rounds: they end, and hide nothing."""

from __future__ import annotations

import json
import runpy
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedward.common.errors import PrivacyError, RoundSpentError
from fedward.common.study import Study
from fedward.server.commands.runs import who
from fedward.server.conductor import Hooks
from fedward.server.patience import Patience
from fedward.server.registry import Choice, Round, Run, State
from fedward.server.verification import verify_release
from fedward.simulations.engines.flaky import Fault, lost, refused

_helper = runpy.run_path(str(Path(__file__).with_name("consortium.py")))
Consortium, LoopCarrier, Service = (_helper[n] for n in ("Consortium", "LoopCarrier", "Service"))
SITES, LONG_S, final = _helper["SITES"], _helper["LONG_S"], _helper["final"]
SPENT = refused(RoundSpentError.exit_code, "spent")


def a_study(rounds: int) -> Study:
    study: Study = _helper["a_study"](
        training={"rounds": rounds}, privacy={"mode": "dp", "epsilon": 5.0, "delta": 1e-3}
    )
    return study


def spent(*rounds: int, at: Iterable[str] = SITES[:2]) -> list[Fault]:
    return [Fault(site, SPENT, round=number) for number in rounds for site in at]


class Counts:
    """What the service's figures would be told."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.failed = 0

    def fail(self) -> None:
        self.failed += 1

    @property
    def hooks(self) -> Hooks:
        return Hooks(round_done=lambda _run, n: self.done.append(n), round_failed=self.fail)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


@pytest.fixture
def serve(consortium: Consortium) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(carrier: LoopCarrier, counts: Counts | None = None) -> Service:
        patience = Patience(quorum_s=LONG_S, pause_s=0.01)
        services.append(Service(consortium, carrier, patience, counts and counts.hooks))
        return services[-1]

    yield make
    for service in services:
        service.close()


def test_a_lost_round_is_on_record_everywhere_and_the_release_verifies(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study, counts = a_study(3), Counts()
    service = serve(LoopCarrier(consortium, study, spent(2)), counts)
    service.approve(service.offer(study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round, run.reason) == (State.RELEASED, 3, "")
    rounds = service.registry.rounds(run.id)
    assert [r.participants for r in rounds] == [SITES, (), SITES]
    assert rounds[0].model_sha256 == rounds[1].model_sha256 != rounds[2].model_sha256
    assert set(rounds[1].refused) == set(SITES)
    logged = [dict(e.facts) for e in service.audit.entries() if e.kind == "round"]
    assert [entry["participants"] for entry in logged] == [list(SITES), [], list(SITES)]
    assert logged[1]["refused"] == list(SITES)
    (event,) = [e for e in service.registry.events() if e.kind == "round without participants"]
    assert event.facts["round"] == 2
    assert (counts.done, counts.failed) == ([1, 3], 1)
    release = consortium.folder_for_run(run.id) / "release"
    verified = verify_release(release, root_pem=consortium.root_pem)
    assert (verified.rounds, verified.contributions, verified.proven) == (3, 6, 6)
    assert verified.sites == dict.fromkeys(SITES, 2)
    card = (release / "model/MODEL_CARD.md").read_text()
    assert "In 1 of 3 rounds nobody took part, and the model stayed as it was: round 2." in card
    told = json.loads((release / "participation.json").read_text())["rounds"][1]
    assert told["participants"] == []
    assert told["refused"]["site-1"] == "spent"


def test_run_show_says_so() -> None:
    assert who(Round(2, ("site-1", "site-2"))) == "site-1, site-2"
    assert who(Round(2, ())) == "nobody, so the model is as it was"


@pytest.mark.parametrize("back", [True, False])
def test_others_that_may_still_answer_are_waited_for(
    back: bool, consortium: Consortium, serve: Callable[..., Service]
) -> None:
    """site-1 has spent the round and site-3 is away: it comes back, or withdraws."""
    study = a_study(3)
    carrier = LoopCarrier(
        consortium, study, [*spent(2, at=["site-1"]), Fault("site-3", lost, round=2)]
    )
    service = serve(carrier)
    offered = service.offer(study)

    def leave(_site: str) -> None:
        (run,) = service.registry.runs()
        if run.round == 1:
            carrier.there = {"site-1", "site-2"}
            carrier.answered = lambda _site: None

    carrier.answered = leave
    service.approve(offered)
    deadline = time.monotonic() + LONG_S
    while not service.conductor.waiting and time.monotonic() < deadline:
        service.conductor.look()
        threading.Event().wait(0.01)
    (said,) = service.conductor.waiting.values()
    assert said == "1 of 2 needed sites are connected; connect site-3"
    carrier.faults = spent(2, at=["site-1"])
    carrier.sites = LoopCarrier(consortium, study).sites  # an outbox has what was answered
    if back:
        carrier.there = set(SITES)
    else:
        service.registry.decide("site-3", offered, Choice.WITHDRAW, b"gone")
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.reason) == (State.RELEASED, "")
    _, second, third = service.registry.rounds(run.id)
    assert second.participants == (("site-2", "site-3") if back else ())
    assert second.refused["site-1"] == "spent"
    assert third.participants == (SITES if back else SITES[:2])


def test_an_exhausted_budget_empties_no_round(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study, counts = a_study(3), Counts()
    faults = [Fault(site, refused(PrivacyError.exit_code, "no"), round=2) for site in SITES]
    service = serve(LoopCarrier(consortium, study, faults), counts)
    service.approve(service.offer(study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round) == (State.FAILED, 1)
    assert "round 2 stopped, 0 of 2 needed sites answered" in run.reason
    assert (counts.done, counts.failed) == ([1], 1)


def test_many_empty_rounds_need_a_person(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(6)
    service = serve(LoopCarrier(consortium, study, spent(2, 3, 4)))
    service.approve(service.offer(study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round) == (State.FAILED, 4)
    assert "nobody took part in the last 3 rounds" in run.reason
    service.registry.resume(run.id)
    run = service.until(State.RELEASED, State.FAILED)
    assert run.state is State.RELEASED
    assert [bool(r.participants) for r in service.registry.rounds(run.id)] == [
        True, False, False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("empty", "words"),
    [((2, 3, 4), "the last 3 rounds"), ((1, 2, 4, 5), "nobody took part in 4 rounds")],
)
def test_a_kill_before_the_run_could_fail_grants_nothing(
    empty: tuple[int, ...],
    words: str,
    consortium: Consortium,
    serve: Callable[..., Service],
) -> None:
    study = a_study(7)
    service = serve(LoopCarrier(consortium, study, spent(*empty)))
    service.approve(service.offer(study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round) == (State.FAILED, empty[-1])
    service.close()
    killed_before_it_failed(consortium, run.id)

    carrier = LoopCarrier(consortium, study)
    carrier.there = set()  # nor does it wait for anybody
    service = serve(carrier)
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.round, carrier.carried) == (State.FAILED, empty[-1], 0)
    assert words in run.reason
    service.registry.resume(run.id)
    service.close()  # killed once more, before anything came of that

    service = serve(LoopCarrier(consortium, study))
    run = service.until(State.RELEASED, State.FAILED)
    assert (run.state, run.reason) == (State.RELEASED, "")
    nobody = [r.round for r in service.registry.rounds(run.id) if not r.participants]
    assert tuple(nobody) == empty


def killed_before_it_failed(consortium: Consortium, run: str) -> None:
    """What is on the disk when the round is on record and checkpointed, and no more is."""
    with closing(sqlite3.connect(consortium.folder / "registry.sqlite")) as database, database:
        database.execute(
            "UPDATE runs SET state = 'running', reason = '', ended_ms = 0 WHERE id = ?", (run,)
        )
        database.execute("DELETE FROM events WHERE kind = 'run is failed'")


def test_each_resume_grants_as_many_again_and_no_more(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(14)
    service = serve(LoopCarrier(consortium, study, spent(1, 2, 4, 5, 7, 8, 10, 11)))
    service.approve(service.offer(study))
    for last in (5, 11):
        run = service.until(State.RELEASED, State.FAILED)
        assert (run.state, run.round) == (State.FAILED, last)
        assert "nobody took part in 4 rounds" in run.reason
        service.registry.resume(run.id)
    run = service.until(State.RELEASED, State.FAILED)
    assert run.state is State.RELEASED


def test_a_run_that_ends_while_the_registry_is_looked_at_is_not_taken_up_again(
    consortium: Consortium, serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up again, it failed a second time: right after somebody had resumed it, even."""
    study = a_study(14)
    service = serve(LoopCarrier(consortium, study, spent(1, 2, 4, 5)))
    service.approve(service.offer(study))
    read = service.registry.runs

    def slowly(*states: State) -> list[Run]:
        """What was read is old by the time it is looked at: the run has ended since."""
        found: list[Run] = read(*states)
        for thread in [t for t in threading.enumerate() if t.name.startswith("run ")]:
            thread.join(LONG_S)
        return found

    monkeypatch.setattr(service.registry, "runs", slowly)
    service.conductor.look()
    service.conductor.look()
    service.conductor.look()
    (run,) = read()
    assert run.state is State.FAILED
    ends = [entry for entry in service.audit.entries() if entry.kind == "run failed"]
    assert len(ends) == 1


def test_a_defect_while_looking_does_not_end_the_looking(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no run, and no revocation, would go on, in a service that seems to work."""
    monkeypatch.setattr("fedward.server.conductor.LOOK_S", 0.01)
    defect, looked = threading.Event(), threading.Event()
    hooks = Hooks(defect=defect.set, offers_changed=looked.set)
    service = Service(consortium, LoopCarrier(consortium, a_study(1)), hooks=hooks)
    try:
        service.conductor.start()
        away = service.roster.path.with_suffix(".away")
        service.roster.path.rename(away)
        assert defect.wait(LONG_S)
        away.rename(service.roster.path)
        looked.clear()
        assert looked.wait(LONG_S)
        assert service.conductor.alive
    finally:
        service.close()


def test_a_run_without_a_single_contribution_is_never_released(
    consortium: Consortium, serve: Callable[..., Service]
) -> None:
    study = a_study(2)
    service = serve(LoopCarrier(consortium, study, spent(1, 2)))
    service.approve(service.offer(study))
    for _ in range(2):
        run = service.until(State.RELEASED, State.FAILED)
        assert (run.state, run.round) == (State.FAILED, 2)
        assert "nobody took part in any round" in run.reason
        service.registry.resume(run.id)
    run = service.until(State.RELEASED, State.FAILED)
    assert run.state is State.FAILED
    assert not (consortium.folder_for_run(run.id) / "release").exists()
