"""A run that is stopped after any round goes on to the same final model, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedward.client.workspace import Workspace
from fedward.common.errors import RoundError, StudyError
from fedward.common.study import Study
from fedward.common.tensors import Weights
from fedward.server.checkpoints import CheckpointFolder, NoCheckpoints
from fedward.server.rounds import Outcome
from fedward.simulations.arms import ArmResult, make_site, run_arm, study_of_arm
from fedward.simulations.engines.flaky import Fault, lost, refused, run_flaky
from fedward.simulations.fakes import (
    MemoryCheckpoints,
    Quiet,
    Stopped,
    make_cohorts,
    make_sites,
    small_study,
)

ROUNDS = 3
STUDIES: dict[str, dict[str, Any]] = {
    "fedavg": {"algorithm": {"name": "fedavg"}},
    "fedavg, some sites a round": {
        "algorithm": {"name": "fedavg"},
        "aggregation": {"participation": 0.5, "weights": "size"},
    },
    "fedprox": {"algorithm": {"name": "fedprox", "mu": 0.5}},
    "fedadam": {"algorithm": {"name": "fedadam", "server_learning_rate": 0.2}},
    "fedadam, as in the paper": {
        "algorithm": {"name": "fedadam", "server_learning_rate": 0.2, "bias_correction": False}
    },
    "fedyogi": {"algorithm": {"name": "fedyogi", "server_learning_rate": 0.2}},
    "fedadagrad": {"algorithm": {"name": "fedadagrad", "server_learning_rate": 0.2}},
    "fedavgm": {"algorithm": {"name": "fedavgm", "momentum": 0.7, "server_learning_rate": 0.9}},
    "local momentum and adam": {
        "algorithm": {"name": "fedmedian"},
        "training": {"optimiser": "adam", "learning_rate": 0.05},
        "model": {"name": "mlp", "hidden": [4]},
    },
    "private": {
        "algorithm": {"name": "fedavgm"},
        "privacy": {"mode": "dp", "epsilon": 5.0, "delta": 1e-3},
        "aggregation": {"weights": "size"},
    },
}


def a_study(name: str) -> Study:
    changes = STUDIES[name]
    training = {"rounds": ROUNDS, "learning_rate": 2.0, **changes.get("training", {})}
    return small_study(**{**changes, "training": training, "evaluation": {"every": 2}})


def same(left: Weights, right: Weights) -> bool:
    return list(left) == list(right) and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def begin_and_stop(study: Study, folder: Path, after: int, sites: int = 4) -> None:
    """Die after a round is complete, but before it is on disk."""
    with pytest.raises(Stopped):
        run_flaky(
            study,
            make_sites(study, make_cohorts(study, sites)),
            checkpoints=CheckpointFolder(folder),
            observer=Quiet(stop_after=after),
        )


def finish(study: Study, folder: Path, observer: Quiet | None = None, sites: int = 4) -> Outcome:
    return run_flaky(
        study,
        make_sites(study, make_cohorts(study, sites)),
        checkpoints=CheckpointFolder(folder),
        observer=observer,
    )


@pytest.mark.parametrize("name", STUDIES)
def test_resumed_run_is_bit_identical(name: str, tmp_path: Path) -> None:
    study = a_study(name)
    unbroken = finish(study, tmp_path / "unbroken")
    for after in range(ROUNDS + 1):
        folder = tmp_path / str(after)
        begin_and_stop(study, folder, after)
        observer = Quiet()
        outcome = finish(study, folder, observer)
        assert same(outcome.weights, unbroken.weights)
        assert outcome.transform == unbroken.transform
        assert outcome.history == unbroken.history
        # What was on disk is not done again, what was not is.
        redone = [record.round for record in observer.records]
        assert redone == list(range(max(after, 1), ROUNDS + 1))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    study = a_study("fedavg")
    first = finish(study, tmp_path)
    observer = Quiet()
    assert same(finish(study, tmp_path, observer).weights, first.weights)
    assert observer.records == []
    assert [state.round for state in observer.resumed] == [ROUNDS]


def test_damaged_newest_checkpoint_costs_one_round(tmp_path: Path) -> None:
    study = a_study("fedadam")
    unbroken = finish(study, tmp_path / "unbroken")
    folder = tmp_path / "damaged"
    begin_and_stop(study, folder, ROUNDS)
    newest = sorted(folder.glob("*.safetensors"))[-1]
    assert newest.name == f"round-{ROUNDS - 1:06d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    observer = Quiet()
    outcome = finish(study, folder, observer)
    assert [state.round for state in observer.resumed] == [ROUNDS - 2]
    assert same(outcome.weights, unbroken.weights)


def test_no_readable_checkpoint_is_said(tmp_path: Path) -> None:
    study = a_study("fedavg")
    begin_and_stop(study, tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(RoundError, match=r"no checkpoint in .* can be read"):
        finish(study, tmp_path)


def test_another_studys_checkpoint_is_refused(tmp_path: Path) -> None:
    begin_and_stop(a_study("fedavg"), tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StudyError, match="another study"):
        finish(a_study("fedprox"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def arm(study: Study, folder: Path, *, stop_after: int | None = None) -> ArmResult:
    """The federated arm of a simulation; stops when a round is complete, if told to."""
    cohorts = make_cohorts(study, 3)
    workspace = Workspace()
    judges = {
        c.site: make_site(study_of_arm(study, "federated_no_dp"), c.site, [c], workspace)
        for c in cohorts
    }

    def shown(_arm: str, number: int, _metric: float | None) -> None:
        if number == stop_after:
            raise Stopped

    return run_arm(
        study,
        "federated",
        cohorts,
        judges=judges,
        workspace=workspace,
        checkpoints=CheckpointFolder(folder),
        shown=shown,
    )


@pytest.mark.parametrize("name", ["private", "fedadam", "fedavg, some sites a round"])
def test_resumed_simulation_has_the_same_curve_and_the_same_bill(name: str, tmp_path: Path) -> None:
    study = a_study(name)
    unbroken = arm(study, tmp_path / "unbroken")
    for after in range(1, ROUNDS + 1):
        folder = tmp_path / str(after)
        with pytest.raises(Stopped):
            arm(study, folder, stop_after=after)
        found = arm(study, folder)
        assert same(found.outcomes[""].weights, unbroken.outcomes[""].weights)
        assert found.curve == unbroken.curve
        assert found.outcomes[""].history == unbroken.outcomes[""].history
        for site, expected in unbroken.sites.items():
            assert found.sites[site].spending.charges == expected.spending.charges
    charges = unbroken.sites["site-1"].spending.charges
    # Statistics once, training every round, evaluation after rounds 2 and 3.
    assert len(charges) == (1 + ROUNDS + 2 if study.private else 0)


def test_a_site_that_does_not_come_back_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    study = a_study("fedavg")
    begin_and_stop(study, tmp_path, 2)
    outcome = finish(study, tmp_path, sites=3)
    assert outcome.history[1].refused == {"site-4": "not connected"}
    assert outcome.history[1].participants == ("site-1", "site-2", "site-3")
    assert outcome.history[2].refused == {}


def test_a_site_that_was_not_there_at_the_beginning_stays_outside(tmp_path: Path) -> None:
    study = a_study("fedavg")
    begin_and_stop(study, tmp_path, 2, sites=3)
    outcome = finish(study, tmp_path, sites=4)
    assert all("site-4" not in record.participants for record in outcome.history)


def test_too_few_of_those_who_began_end_the_run_at_once(tmp_path: Path) -> None:
    """Flower would wait for them for ever."""
    study = small_study(training={"rounds": 3}, aggregation={"min_sites": 2})
    cohorts = make_cohorts(study, 4)
    with pytest.raises(Stopped):
        run_flaky(
            study,
            make_sites(study, cohorts[:2]),
            checkpoints=CheckpointFolder(tmp_path),
            observer=Quiet(stop_after=2),
        )
    with pytest.raises(RoundError, match=r"1 of 2 needed sites .* connect site-1"):
        run_flaky(study, make_sites(study, cohorts[1:]), checkpoints=CheckpointFolder(tmp_path))


def test_a_failed_round_leaves_the_last_good_state(tmp_path: Path) -> None:
    study = small_study(training={"rounds": 3}, aggregation={"min_sites": 3})
    sites = make_sites(study, make_cohorts(study, 3))
    checkpoints = MemoryCheckpoints()
    with pytest.raises(RoundError, match="round 2 stopped"):
        run_flaky(study, sites, [Fault("site-2", lost, round=2)], checkpoints=checkpoints)
    assert [state.round for state in checkpoints.states] == [0, 1]
    outcome = run_flaky(study, make_sites(study, make_cohorts(study, 3)), checkpoints=checkpoints)
    expected = run_flaky(study, make_sites(study, make_cohorts(study, 3)))
    assert same(outcome.weights, expected.weights)


def test_who_could_not_begin_is_reported_once_and_survives_a_restart(tmp_path: Path) -> None:
    study = small_study(training={"rounds": 2}, aggregation={"weights": "size"})
    fault = Fault("site-2", refused(5, "a feature is empty"), kind="query.statistics")
    folder = CheckpointFolder(tmp_path)
    sites = make_sites(study, make_cohorts(study, 3))
    with pytest.raises(Stopped):
        run_flaky(study, sites, [fault], checkpoints=folder, observer=Quiet(stop_after=1))
    outcome = run_flaky(study, sites, checkpoints=folder)
    assert [record.refused for record in outcome.history] == [
        {"site-2": "a feature is empty"},
        {},
    ]


def test_without_checkpoints_nothing_is_kept() -> None:
    study = small_study()
    sites = make_sites(study, make_cohorts(study, 2))
    run_flaky(study, sites, checkpoints=NoCheckpoints())
    assert NoCheckpoints().newest() is None
