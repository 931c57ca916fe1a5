"""The registry keeps what it is told, once, on both databases; what does not fit is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from fedward.common.errors import OutputError, StateError
from fedward.common.study import Study, canonical_json, parse_study, study_hash
from fedward.common.study.load import EXAMPLE
from fedward.server.registry import (
    Choice,
    Countersignature,
    LogHead,
    Receipt,
    Registry,
    Round,
    State,
)

SITES = ("north", "south", "west")


def a_study(min_sites: int = 2) -> Study:
    return parse_study(EXAMPLE + f"[aggregation]\nmin_sites = {min_sites}\n")


@pytest.fixture
def url(database: Callable[[], str]) -> str:
    return database()


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    with Registry.open(url) as found:
        yield found


def offered(registry: Registry, study: Study | None = None) -> str:
    study = study or a_study()
    assert registry.offer(study, b"signed", SITES)
    return study_hash(study)


def started(registry: Registry) -> str:
    study = offered(registry)
    for site in SITES:
        registry.decide(site, study, Choice.APPROVE, b"yes")
    return registry.start(study, SITES).id


def a_round(number: int = 1, **changes: Any) -> Round:
    values: dict[str, Any] = {
        "round": number,
        "participants": ("north", "south"),
        "refused": {"west": "no answer before the deadline"},
        "evaluation": {"overall": {"auroc": 0.5, "f1": None}},
        "model_sha256": f"{number:064x}",
        "heads": {"audit": [3, "ab"]},
    }
    return Round(**{**values, **changes})


# --- sites and offers ---------------------------------------------------------------------------


def test_a_site_keeps_its_node_for_ever(registry: Registry, url: str) -> None:
    assert [registry.enrol(site) for site in ("b", "a", "b")] == [2, 3, 2]
    with Registry.open(url) as again:
        assert again.enrol("a") == 3
        assert again.enrol("c") == 4
        assert [(site.name, site.node) for site in again.sites()] == [("b", 2), ("a", 3), ("c", 4)]


def test_many_threads_enrol_each_site_once(registry: Registry) -> None:
    found: list[int] = []
    names = [f"site-{n % 5}" for n in range(20)]
    threads = [threading.Thread(target=lambda n=n: found.append(registry.enrol(n))) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert set(found) == {2, 3, 4, 5, 6}


def test_an_offer_comes_back_as_it_was(registry: Registry, url: str) -> None:
    study = a_study()
    digest = offered(registry, study)
    with Registry.open(url) as again:
        (offer,) = again.studies()
        assert offer == again.study(digest)
    assert (offer.name, offer.document) == ("example", canonical_json(study))
    assert (offer.evidence, offer.state, offer.min_sites) == (b"signed", State.OFFERED, 2)
    assert set(offer.answers) == set(SITES)
    assert all(answer.choice is None for answer in offer.answers.values())


def test_an_offer_is_seen_by_those_who_are_invited(registry: Registry) -> None:
    study = offered(registry)
    assert [o.study for o in registry.offered("north")] == [study]
    assert registry.offered("east") == ()
    assert registry.offer(a_study(), b"signed", ["east"]) is True
    assert [o.study for o in registry.offered("east")] == [study]
    assert registry.offer(a_study(), b"signed", ["east"]) is False


def test_too_few_invited_are_refused(registry: Registry) -> None:
    with pytest.raises(StateError, match="needs 2 sites, 1 would be invited"):
        registry.offer(a_study(), b"", ["north"])
    assert registry.studies() == ()
    assert registry.sites() == ()


def test_an_offer_is_approved_by_enough_and_falls_back(registry: Registry) -> None:
    study = offered(registry)

    def state() -> State:
        return registry.study(study).state

    assert registry.decide("north", study, Choice.APPROVE, b"n1") is True
    assert registry.decide("north", study, Choice.APPROVE, b"n2") is False
    assert registry.study(study).answers["north"].evidence == b"n1"
    assert state() is State.OFFERED
    registry.decide("south", study, Choice.APPROVE, b"s")
    assert state() is State.APPROVED
    assert registry.study(study).approved == ("north", "south")
    nodes = {site.name: site.node for site in registry.sites()}
    assert registry.approving(study) == {name: nodes[name] for name in ("north", "south")}
    assert registry.approving("no such study") == {}
    registry.decide("north", study, Choice.WITHDRAW, b"n3")
    assert state() is State.OFFERED
    said = [(answer.site, answer.choice, answer.evidence) for answer in registry.decisions(study)]
    assert said == [
        ("north", Choice.APPROVE, b"n1"),
        ("south", Choice.APPROVE, b"s"),
        ("north", Choice.WITHDRAW, b"n3"),
    ]


def test_who_is_not_invited_cannot_answer(registry: Registry) -> None:
    study = offered(registry)
    with pytest.raises(StateError, match="was not invited"):
        registry.decide("east", study, Choice.APPROVE, b"")
    with pytest.raises(StateError, match="no such study"):
        registry.decide("north", "0" * 64, Choice.APPROVE, b"")
    assert registry.decisions(study) == ()


def test_an_answer_must_follow_on_the_earlier_one(registry: Registry) -> None:
    study = offered(registry)
    with pytest.raises(StateError, match="has not answered cannot withdraw"):
        registry.decide("north", study, Choice.WITHDRAW, b"")
    registry.decide("north", study, Choice.APPROVE, b"")
    with pytest.raises(StateError, match="approved cannot refuse"):
        registry.decide("north", study, Choice.REFUSE, b"")


# --- starting -----------------------------------------------------------------------------------


def test_a_run_starts_when_all_active_sites_have_answered(registry: Registry) -> None:
    study = offered(registry)
    registry.decide("north", study, Choice.APPROVE, b"")
    registry.decide("south", study, Choice.APPROVE, b"")
    assert registry.startable(SITES) == ()
    with pytest.raises(StateError, match="wait for west"):
        registry.start(study, SITES)
    assert registry.startable(["north", "south"]) == (study,)
    registry.decide("west", study, Choice.REFUSE, b"")
    assert registry.startable(SITES) == (study,)
    run = registry.start(study, SITES)
    assert (run.state, run.sites, run.round, run.rounds) == (
        State.RUNNING,
        ("north", "south"),
        0,
        3,
    )
    assert registry.startable(SITES) == ()
    assert registry.study(study).state is State.RUNNING


STEPS: tuple[Callable[[Registry, str], object], ...] = (
    lambda registry, _study: registry.enrol("east"),
    lambda registry, _study: registry.offer(a_study(), b"signed", [*SITES, "east"]),
    lambda registry, _study: registry.offer(a_study(3), b"x", SITES),
    *(
        lambda registry, study, site=site, choice=choice: registry.decide(site, study, choice, b"")
        for site in SITES
        for choice in Choice
    ),
    lambda registry, study: registry.start(study, SITES),
    lambda registry, study: registry.start(study, SITES, forced=True),
    lambda registry, study: registry.close_offer(study),
    *(
        lambda registry, _study, state=state: registry.transition(registry.runs()[-1].id, state)
        for state in State
    ),
    lambda registry, _study: registry.resume(registry.runs()[-1].id),
    lambda registry, _study: registry.record_round(registry.runs()[-1].id, a_round(1)),
    lambda registry, _study: registry.witness("north", "audit", length=1, hash_="a" * 64),
)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.sampled_from(range(len(STEPS))), max_size=25))
def test_whoever_waits_for_a_change_misses_none(steps: list[int]) -> None:
    """Where studies stand, without what they say, is what the studies themselves say."""
    with Registry.open("sqlite://") as registry:
        study = offered(registry)

        def everything() -> tuple[Any, ...]:
            standings = registry.standings()
            assert [(s.study, s.state, s.min_sites, s.run) for s in standings] == [
                (o.study, o.state, o.min_sites, o.runs[-1] if o.runs else "")
                for o in registry.studies()
            ]
            choices = [dict(s.choices) for s in standings]
            assert choices == [
                {site: a.choice for site, a in o.answers.items()} for o in registry.studies()
            ]
            for site in (*SITES, "east"):
                invited = [s for s in standings if site in s.choices]
                assert list(registry.standings(site)) == invited
            return standings, registry.sites()

        before, seen = everything(), registry.changes()
        for step in steps:
            with suppress(StateError, IndexError):
                STEPS[step](registry, study)
            after, now = everything(), registry.changes()
            assert now > seen or (now == seen and after == before)
            before, seen = after, now


def test_a_forced_start_takes_those_who_approved(registry: Registry) -> None:
    study = offered(registry)
    registry.decide("north", study, Choice.APPROVE, b"")
    with pytest.raises(StateError, match="1 of 2 needed sites approved"):
        registry.start(study, SITES, forced=True)
    registry.decide("west", study, Choice.APPROVE, b"")
    with pytest.raises(StateError, match="1 of 2 needed sites approved"):
        registry.start(study, ["north", "south"], forced=True)
    assert registry.start(study, SITES, forced=True).sites == ("north", "west")


def test_a_study_runs_once_at_a_time(registry: Registry) -> None:
    run = started(registry)
    study = registry.run(run).study
    for forced in (False, True):
        with pytest.raises(StateError, match="has a run that is running"):
            registry.start(study, SITES, forced=forced)
    registry.transition(run, State.FAILED, reason="too\nfew")
    assert registry.run(run).reason == "too few"
    with pytest.raises(StateError, match="failed: resume it"):
        registry.start(study, SITES)
    second = registry.start(study, SITES, forced=True)
    assert (second.number, second.id) == (2, run[:-1] + "2")
    with pytest.raises(StateError, match="successor"):
        registry.resume(run)
    assert [r.id for r in registry.runs()] == [run, second.id]
    assert [r.id for r in registry.runs(State.RUNNING)] == [second.id]


def test_a_released_study_is_over(registry: Registry) -> None:
    run = started(registry)
    study = registry.run(run).study
    registry.transition(run, State.EVALUATING)
    registry.transition(run, State.RELEASED)
    assert registry.run(run).ended_ms > 0
    assert registry.offered("north") == ()
    for attempt in (
        lambda: registry.start(study, SITES, forced=True),
        lambda: registry.resume(run),
        lambda: registry.ask_to_stop(run),
        lambda: registry.offer(a_study(), b"", ["east"]),
    ):
        with pytest.raises(StateError):
            attempt()
    assert registry.decide("north", study, Choice.WITHDRAW, b"") is True
    with pytest.raises(StateError, match="nothing is left to approve"):
        registry.decide("north", study, Choice.APPROVE, b"")


def test_an_offer_can_be_taken_back_until_it_runs(registry: Registry) -> None:
    study = offered(registry)
    registry.close_offer(study)
    assert registry.study(study).state is State.STOPPED
    for attempt in (
        lambda: registry.start(study, SITES, forced=True),
        lambda: registry.close_offer(study),
        lambda: registry.decide("north", study, Choice.APPROVE, b""),
    ):
        with pytest.raises(StateError):
            attempt()


def test_a_running_study_cannot_be_taken_back(registry: Registry) -> None:
    run = started(registry)
    with pytest.raises(StateError, match="stop the run"):
        registry.close_offer(registry.run(run).study)


def test_stopping_is_asked_for_then_done_then_undone(registry: Registry) -> None:
    run = started(registry)
    assert not registry.run(run).stop
    registry.ask_to_stop(run)
    assert registry.run(run).stop
    registry.transition(run, State.STOPPED, reason="by the coordinator")
    with pytest.raises(StateError):
        registry.ask_to_stop(run)
    assert registry.resumed_after(run) == 0
    found = registry.resume(run)
    assert registry.resumed_after(run) == 0
    assert (found.state, found.stop, found.reason, found.ended_ms) == (State.RUNNING, False, "", 0)
    assert [event.kind for event in registry.events(run=run)] == [
        "run started",
        "stop asked for",
        "run is stopped",
        "run resumed",
    ]


def test_where_a_person_let_a_run_go_on_is_remembered(registry: Registry, url: str) -> None:
    run = started(registry)
    for number in (1, 2):
        registry.record_round(run, a_round(number))
        registry.transition(run, State.FAILED, reason="x")
        assert registry.resumed_after(run) == number - 1
        registry.resume(run)
        assert registry.resumed_after(run) == number
    with pytest.raises(StateError):
        registry.resume(run)
    registry.note("run resumed", run="another", after=7)
    with Registry.open(url) as again:
        assert again.resumed_after(run) == 2


# --- rounds -------------------------------------------------------------------------------------


def test_a_round_is_counted_once(registry: Registry, url: str) -> None:
    run = started(registry)
    assert registry.record_round(run, a_round()) is True
    assert registry.record_round(run, a_round()) is False
    with pytest.raises(StateError, match="counted with another result"):
        registry.record_round(run, a_round(model_sha256="f" * 64))
    with pytest.raises(StateError, match="counted with another result"):
        registry.record_round(run, a_round(participants=("north",)))
    with Registry.open(url) as again:
        (found,) = again.rounds(run)
        assert again.run(run).round == 1
    assert found.at_ms > 0
    assert (found.participants, found.refused, found.evaluation, found.heads) == (
        a_round().participants,
        a_round().refused,
        a_round().evaluation,
        a_round().heads,
    )


def test_many_threads_count_a_round_once(registry: Registry) -> None:
    run = started(registry)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.record_round(run, a_round())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False] * 7 + [True]
    assert len(registry.rounds(run)) == 1


@pytest.mark.parametrize("number", [0, 2, 3])
def test_rounds_follow_each_other(registry: Registry, number: int) -> None:
    run = started(registry)
    with pytest.raises(StateError, match=f"round {number} does not follow on round 0"):
        registry.record_round(run, a_round(number))
    assert registry.rounds(run) == ()


def test_a_run_that_is_not_active_counts_nothing(registry: Registry) -> None:
    run = started(registry)
    registry.transition(run, State.STOPPED)
    with pytest.raises(StateError, match="is stopped"):
        registry.record_round(run, a_round())


def test_rounds_after_the_checkpoint_are_done_again(registry: Registry) -> None:
    run = started(registry)
    for number in (1, 2, 3):
        registry.record_round(run, a_round(number))
    assert registry.rewind(run, 1) == 2
    assert registry.rewind(run, 1) == 0
    assert registry.rewind(run, 5) == 0
    assert [r.round for r in registry.rounds(run)] == [1]
    assert registry.record_round(run, a_round(2, model_sha256="e" * 64)) is True


def test_a_run_goes_on_after_a_defect_if_it_got_further(registry: Registry, url: str) -> None:
    run = started(registry)
    registry.note("run goes on", run="another", after=7)
    assert registry.go_on(run, "a defect") is True
    assert registry.go_on(run, "a defect") is False
    registry.record_round(run, a_round())
    with Registry.open(url) as again:  # a service that was started anew knows
        assert again.go_on(run, "another") is True
        assert again.go_on(run, "another") is False
    registry.rewind(run, 0)
    assert registry.go_on(run, "another") is False
    noted = [e.facts for e in registry.events(run=run) if e.kind == "run goes on"]
    assert noted == [
        {"run": run, "after": 0, "reason": "a defect"},
        {"run": run, "after": 1, "reason": "another"},
    ]
    with pytest.raises(StateError):
        registry.go_on("nobody", "a defect")


def test_what_is_no_number_is_null(registry: Registry) -> None:
    run = started(registry)
    figures = {"overall": {"auroc": float("nan"), "rmse": float("inf"), "f1": 0.25}}
    registry.record_round(run, a_round(evaluation=figures))
    (found,) = registry.rounds(run)
    assert found.evaluation == {"overall": {"auroc": None, "rmse": None, "f1": 0.25}}


def test_receipts_come_back_and_a_resent_one_replaces(registry: Registry) -> None:
    run = started(registry)
    one = Receipt(run, 1, "train", "south", "ab" * 32, b"evidence")
    two = Receipt(run, 1, "train", "north", "cd" * 32, b"\x00\xff")
    for receipt in (one, two, one):
        registry.keep([receipt])
    assert registry.receipts(run) == (two, one)
    registry.keep([Receipt(run, 1, "train", "south", "ef" * 32, b"new")])
    assert registry.receipts(run)[1].evidence == b"new"
    assert registry.receipts("other") == ()


def test_what_came_with_a_round_is_kept_with_it_or_not_at_all(registry: Registry) -> None:
    run = started(registry)
    receipt = Receipt(run, 1, "train", "south", "ab" * 32, b"evidence")
    head = LogHead("south", "ledger", 4, "a" * 64, b"evidence")
    with pytest.raises(StateError):
        registry.record_round(run, a_round(2), receipts=[receipt], seen=[head])
    assert registry.receipts(run) == ()
    assert registry.heads() == ()
    registry.record_round(run, a_round(1), receipts=[receipt], seen=[head])
    assert registry.receipts(run) == (receipt,)
    older = LogHead("south", "ledger", 3, "b" * 64, b"overtaken")
    registry.record_round(run, a_round(2), seen=[older])
    (found,) = registry.heads()
    assert (found.length, found.evidence) == (4, b"evidence")


# --- heads --------------------------------------------------------------------------------------


def test_a_ledger_that_went_back_is_refused(registry: Registry) -> None:
    assert registry.witness("north", "ledger", length=5, hash_="a" * 64, evidence=b"5") is True
    assert registry.witness("north", "ledger", length=5, hash_="a" * 64) is False
    assert registry.witness("north", "ledger", length=7, hash_="b" * 64, evidence=b"7") is True
    for length, digest in ((5, "a" * 64), (6, "c" * 64), (0, "0" * 64), (7, "c" * 64)):
        with pytest.raises(StateError, match="went back: 7 entries were seen"):
            registry.witness("north", "ledger", length=length, hash_=digest)
    (head,) = registry.heads()
    assert (head.length, head.hash, head.evidence) == (7, "b" * 64, b"7")


def test_logs_and_sites_are_kept_apart(registry: Registry) -> None:
    registry.witness("north", "ledger", length=5, hash_="a" * 64)
    registry.witness("north", "audit", length=2, hash_="b" * 64)
    registry.witness("south", "ledger", length=1, hash_="c" * 64)
    assert [(h.site, h.length) for h in registry.heads("ledger")] == [("north", 5), ("south", 1)]
    assert len(registry.heads()) == 3


def test_countersignatures_only_move_on(registry: Registry) -> None:
    registry.witness("north", "ledger", length=5, hash_="a" * 64)

    def sign(length: int, witness: str = "south", site: str = "north") -> None:
        evidence = b"%d" % length
        registry.countersign([Countersignature(site, length, "a" * 64, witness, evidence)])

    for length in (5, 5, 3):
        sign(length)
    sign(4, "west")
    found = [(s.witness, s.length, s.evidence) for s in registry.countersignatures("north")]
    assert found == [("south", 5, b"5"), ("west", 4, b"4")]
    assert [s.site for s in registry.countersignatures(witness="west")] == ["north"]
    for attempt in (lambda: sign(6), lambda: sign(5, "north"), lambda: sign(1, site="west")):
        with pytest.raises(StateError):
            attempt()


# --- the database itself ------------------------------------------------------------------------


def test_a_newer_registry_is_refused(url: str) -> None:
    Registry.open(url).close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    engine.dispose()
    with pytest.raises(StateError, match="has version 99, this fedward knows 2"):
        Registry.open(url)


def test_a_registry_of_an_older_fedward_is_upgraded(url: str) -> None:
    """As version 1 had it: rounds without the lines of their histories."""
    with Registry.open(url) as registry:
        run = started(registry)
        registry.record_round(run, a_round(1))
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE rounds DROP COLUMN line"))
        connection.execute(text("UPDATE schema_version SET version = 1"))
    for _ in range(2):  # once, and then it is as new
        with Registry.open(url) as registry:
            registry.record_round(run, a_round(2, line='{"cosine": NaN}\n'))
            assert [r.line for r in registry.rounds(run)] == ["", '{"cosine": NaN}\n']
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT version FROM schema_version")) == 2
    engine.dispose()


def test_a_method_that_fails_changes_nothing(registry: Registry) -> None:
    def fail() -> None:
        with registry._changes() as session:
            registry._enrol(session, "north")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert registry.sites() == ()
    assert registry.events() == ()


def test_events_are_found_by_what_they_are_about(registry: Registry) -> None:
    registry.note("a thing", run="r", n=1)
    registry.note("a thing", run="s", n=2)
    first, second = registry.events()
    assert (first.kind, first.facts, second.id > first.id) == (
        "a thing",
        {"run": "r", "n": 1},
        True,
    )
    assert [e.facts["n"] for e in registry.events(run="s")] == [2]
    assert registry.events(after=second.id) == ()
    assert len(registry.events(limit=1)) == 1


def test_two_registries_on_one_database_see_each_other(registry: Registry, url: str) -> None:
    with Registry.open(url) as other:
        study = offered(other)
        registry.decide("north", study, Choice.APPROVE, b"")
        assert other.study(study).approved == ("north",)


@pytest.mark.parametrize(
    "url_",
    ["mysql://h/d", "sqlite:////nonexistent/folder/r.sqlite", "postgresql://u@127.0.0.1:1/none"],
)
def test_what_cannot_be_reached_is_refused(url_: str) -> None:
    with pytest.raises(StateError) as caught:
        Registry.open(url_)
    assert "127.0.0.1" not in str(caught.value)


def test_a_path_is_enough(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r.sqlite") as registry:
        registry.enrol("north")
    assert (tmp_path / "r.sqlite").stat().st_size > 0


def test_sqlite_is_set_to_survive_a_power_cut(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r.sqlite") as registry, registry._reads() as session:
        found = [
            session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "r.sqlite") as registry:
        with registry._changes() as session:
            pages = session.execute(text("PRAGMA page_count")).scalar()
            session.execute(text(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(OutputError, match="full"):
            registry.note("large", text="y" * 100_000)
