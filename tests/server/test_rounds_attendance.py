"""Sites leave, come back and are replaced between rounds; a run can be stopped there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedward.common import records
from fedward.common.errors import Interrupted, RoundError
from fedward.common.study import Study
from fedward.common.tensors import Weights
from fedward.server.checkpoints import CheckpointFolder, Checkpoints, NoCheckpoints
from fedward.server.history import RoundRecord
from fedward.server.rounds import Outcome, Rounds
from fedward.simulations.engines.flaky import Fault, FlakyGrid, lost, refused, renamed, run_flaky
from fedward.simulations.engines.loop import loop_grid
from fedward.simulations.fakes import Quiet, make_cohorts, make_sites, small_study

Change = Callable[["Door"], None]


class Door(FlakyGrid):
    """A grid whose sites leave and come; `away` are not listed, `deaf` do not answer."""

    away: frozenset[str] = frozenset()
    deaf: frozenset[str] = frozenset()

    def get_node_ids(self) -> Iterable[int]:
        return [
            node for node in self._grid.get_node_ids() if self._grid.site(node) not in self.away
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        heard = [m for m in messages if self._grid.site(m.metadata.dst_node_id) not in self.deaf]
        return super().send_and_receive(heard, timeout=timeout)

    def introductions(self) -> list[str]:
        return [site for kind, site, _ in self.asked if kind == records.INTRODUCE]


class Schedule(Quiet):
    """Changes who is there after a round."""

    def __init__(self, door: Door, changes: dict[int, Change]) -> None:
        super().__init__()
        self._door, self._changes = door, changes
        self.evaluating: list[int] = []

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        self._changes.get(record.round, lambda _door: None)(self._door)
        return super().on_round(record, weights)

    def on_evaluating(self, number: int) -> None:
        self.evaluating.append(number)


def away(*sites: str) -> Change:
    return lambda door: setattr(door, "away", frozenset(sites))


def deaf(*sites: str) -> Change:
    return lambda door: setattr(door, "deaf", frozenset(sites))


def run(
    changes: dict[int, Change],
    *,
    study: Study | None = None,
    begin: Change = lambda _door: None,
    faults: list[Fault] | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Outcome, Door, Schedule]:
    study = study or small_study(training={"rounds": 4})
    door = Door(loop_grid(make_sites(study, make_cohorts(study, 4))), faults or ())
    begin(door)
    schedule = Schedule(door, changes)
    rounds = Rounds(study, door, checkpoints=checkpoints or NoCheckpoints(), observer=schedule)
    return rounds.run(), door, schedule


ALL = ("site-1", "site-2", "site-3", "site-4")


def test_a_site_that_leaves_is_named_once_and_the_run_goes_on() -> None:
    outcome, _, _ = run({1: away("site-3")})
    participants = [record.participants for record in outcome.history]
    assert participants == [ALL, *[("site-1", "site-2", "site-4")] * 3]
    refused_in = [record.refused for record in outcome.history]
    assert refused_in == [{}, {"site-3": "left the federation"}, {}, {}]


def test_a_site_that_comes_back_is_asked_for_its_name_and_takes_part_again() -> None:
    outcome, door, _ = run({1: away("site-3"), 2: away()})
    participants = [record.participants for record in outcome.history]
    assert participants == [ALL, ("site-1", "site-2", "site-4"), ALL, ALL]
    # Nobody who is known is asked again.
    assert sorted(door.introductions()) == sorted([*ALL, "site-3"])


def test_a_site_that_leaves_a_second_time_is_named_again() -> None:
    outcome, _, _ = run({1: away("site-3"), 2: away(), 3: away("site-3")})
    assert [list(record.refused) for record in outcome.history] == [[], ["site-3"], [], ["site-3"]]


def test_a_site_that_was_silent_at_the_beginning_of_a_restart_joins_later(tmp_path: Path) -> None:
    study = small_study(training={"rounds": 4})
    unbroken, _, _ = run({}, study=study)
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(Interrupted):
        Rounds(
            study,
            loop_grid(make_sites(study, make_cohorts(study, 4))),
            checkpoints=folder,
            observer=Quiet(),
            should_stop=lambda: bool(list(tmp_path.glob("round-000001*"))),
        ).run()
    outcome, _, _ = run({2: deaf()}, study=study, begin=deaf("site-2"), checkpoints=folder)
    assert [r.participants for r in outcome.history] == [
        ALL,
        ("site-1", "site-3", "site-4"),
        ALL,
        ALL,
    ]
    assert outcome.history[1].refused == {
        "site-2": "not connected",
        "node 3": "no answer before the deadline",
    }
    assert outcome.history[0] == unbroken.history[0]


def test_a_stranger_stays_outside_and_is_told_so_once() -> None:
    outcome, _, _ = run({1: away()}, begin=away("site-4"))
    assert all("site-4" not in record.participants for record in outcome.history)
    assert all("site-4" not in record.evaluation for record in outcome.history)
    assert [record.refused for record in outcome.history] == [
        {},
        {"site-4": "was not there when the run was prepared"},
        {},
        {},
    ]


def test_a_node_that_will_not_say_its_name_is_reported_once_but_asked_again() -> None:
    fault = Fault("site-4", refused(14, "not approved here"), records.INTRODUCE)
    outcome, door, _ = run({}, faults=[fault])
    assert [record.refused for record in outcome.history] == [
        {"node 5": "not approved here"},
        {},
        {},
        {},
    ]
    assert door.introductions().count("site-4") == 5


def test_nobody_can_take_the_name_of_a_site_that_is_there() -> None:
    fault = Fault("site-4", renamed("site-1"), records.INTRODUCE)
    outcome, _, _ = run({1: away()}, begin=away("site-4"), faults=[fault])
    assert outcome.history[1].refused == {"node 5": "another node is the site of that name"}
    assert [record.participants for record in outcome.history] == [ALL[:3]] * 4


def test_a_site_may_return_at_another_node() -> None:
    """After a new enrolment the carrier gives it another node id."""
    fault = Fault("site-4", renamed("site-1"), records.INTRODUCE)
    outcome, _, _ = run({1: away("site-1")}, begin=away("site-4"), faults=[fault])
    assert [record.participants for record in outcome.history] == [ALL[:3]] * 4
    assert all(record.refused == {} for record in outcome.history)


def test_too_few_who_are_left_end_the_run_at_once_with_the_names() -> None:
    study = small_study(training={"rounds": 4}, aggregation={"min_sites": 3})
    with pytest.raises(RoundError, match=r"2 of 3 needed sites are there.*site-3, site-4"):
        run({2: away("site-3", "site-4")}, study=study)


def test_everybody_has_left() -> None:
    """Flower would wait for ever."""
    with pytest.raises(RoundError, match="round 2 stopped, 0 of 1"):
        run({1: away(*ALL)})


def test_who_is_away_for_a_round_is_not_evaluated_in_it() -> None:
    study = small_study(training={"rounds": 3}, evaluation={"every": 1, "min_cell": 1})
    outcome, _, schedule = run({1: away("site-1"), 2: away()}, study=study)
    assert schedule.evaluating == [1, 2, 3]
    assert ["site-1" in record.evaluation for record in outcome.history] == [True, False, True]


def test_the_observer_hears_of_an_evaluation_before_it_and_only_then() -> None:
    study = small_study(training={"rounds": 4}, evaluation={"every": 3})
    _, _, schedule = run({}, study=study)
    assert schedule.evaluating == [3, 4]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_that_is_stopped_goes_on_to_the_same_model(after: int, tmp_path: Path) -> None:
    study = small_study(training={"rounds": 4}, algorithm={"name": "fedavgm", "momentum": 0.5})
    cohorts = make_cohorts(study, 3)
    unbroken = run_flaky(study, make_sites(study, cohorts))
    asked: list[None] = []

    def should_stop() -> bool:
        asked.append(None)
        return len(asked) == after + 1

    with pytest.raises(Interrupted, match=f"stopped after round {after}: resume it"):
        Rounds(
            study,
            loop_grid(make_sites(study, cohorts)),
            checkpoints=CheckpointFolder(tmp_path),
            observer=Quiet(),
            should_stop=should_stop,
        ).run()
    state = CheckpointFolder(tmp_path).newest()
    assert state is not None
    assert state.round == after
    outcome = run_flaky(study, make_sites(study, cohorts), checkpoints=CheckpointFolder(tmp_path))
    for name, value in unbroken.weights.items():
        assert outcome.weights[name].tobytes() == value.tobytes()
    assert outcome.history == unbroken.history


def test_every_question_of_a_run_has_the_studys_deadline() -> None:
    timeouts: list[tuple[str, float | None]] = []

    class Watched(Door):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            asked = list(messages)
            timeouts.extend((m.metadata.message_type, timeout) for m in asked)
            return super().send_and_receive(asked, timeout=timeout)

    study = small_study(
        aggregation={"deadline_s": 77.0, "weights": "size"}, evaluation={"every": 1}
    )
    grid = Watched(loop_grid(make_sites(study, make_cohorts(study, 2))))
    Rounds(study, grid, checkpoints=NoCheckpoints(), observer=Quiet()).run()
    kinds = {records.INTRODUCE, records.STATISTICS, records.TRAIN, records.EVALUATE}
    assert {kind for kind, _ in timeouts} == kinds
    assert {timeout for _, timeout in timeouts} == {77.0}


def test_a_silent_newcomer_costs_nobody_else_the_round() -> None:
    outcome, _, _ = run({1: deaf("site-2")}, faults=[Fault("site-2", lost, round=1)])
    assert [record.participants for record in outcome.history] == [
        ("site-1", "site-3", "site-4")
    ] * 4
