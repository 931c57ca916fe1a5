"""The ways of training that are compared: each is what it says, and nothing else differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fedward.client.cohort import Cohort
from fedward.client.workspace import Workspace
from fedward.common.errors import (
    DataError,
    FedwardError,
    Interrupted,
    OutputError,
    PrivacyError,
    RoundError,
    StudyError,
    TrainingError,
)
from fedward.common.preprocess import fit
from fedward.common.study import Study
from fedward.common.tensors import Weights
from fedward.server.checkpoints import Checkpoints, NoCheckpoints, RunState
from fedward.server.preparation import first_weights
from fedward.server.rounds import Outcome
from fedward.simulations.arms import (
    ArmName,
    ArmResult,
    _run_together,
    arms_of,
    make_site,
    make_sites,
    run_arm,
    seeded,
    study_of_arm,
)
from fedward.simulations.engines.choice import Engine
from fedward.simulations.engines.flaky import run_flaky
from fedward.simulations.fakes import make_cohort, make_cohorts, small_study
from fedward.simulations.fakes import make_sites as fake_sites
from fedward.simulations.health import warnings_of
from fedward.simulations.judging import cross_site, judge_arm, metrics_with_intervals

ALL: dict[str, Any] = {"sites": ["a.toml"], "compare": ["local", "pooled", "federated_no_dp"]}
PRIVATE: dict[str, Any] = {"privacy": {"mode": "dp", "epsilon": 4.0, "delta": 1e-3}}
Shown = list[tuple[str, int, float | None]]


def offered(arm: ArmResult, site: str) -> Outcome | None:
    """The model that an arm offers a site."""
    return next((outcome for outcome, _ in arm.models([site])), None)


def run(
    study: Study,
    arm: ArmName,
    cohorts: Sequence[Cohort],
    shown: Shown | None = None,
    checkpoints: Checkpoints | None = None,
) -> ArmResult:
    workspace = Workspace()
    return run_arm(
        study,
        arm,
        cohorts,
        judges=judges(study, cohorts),
        workspace=workspace,
        checkpoints=checkpoints or NoCheckpoints(),
        shown=lambda *told: (shown if shown is not None else []).append(told),
    )


def judges(study: Study, cohorts: Sequence[Cohort]) -> dict[str, Any]:
    open_study = study_of_arm(study, "federated_no_dp")
    workspace = Workspace()
    return {c.site: make_site(open_study, c.site, [c], workspace) for c in cohorts}


def same(left: Weights, right: Weights) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[k], right[k]) for k in left)


# --- which arms, which study --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "compare", "expected"),
    [
        ({}, [], ["federated"]),
        ({}, ["local", "pooled"], ["federated", "pooled", "local"]),
        ({}, ["federated_no_dp"], ["federated"]),
        (PRIVATE, ["federated_no_dp", "pooled"], ["federated", "federated_no_dp", "pooled"]),
    ],
)
def test_arms_are_those_that_the_study_asks_for(
    changes: dict[str, Any], compare: list[str], expected: list[str]
) -> None:
    study = small_study(**changes, simulation={"sites": ["a.toml"], "compare": compare})
    assert list(arms_of(study)) == expected


def test_without_a_simulation_section_there_is_only_the_study_itself() -> None:
    assert arms_of(small_study()) == ("federated",)
    assert study_of_arm(small_study(), "pooled").privacy.mode == "none"


def test_federated_is_the_study_as_it_stands() -> None:
    study = small_study(**PRIVATE, simulation=ALL)
    assert study_of_arm(study, "federated") is study


def test_without_privacy_nothing_else_changes() -> None:
    study = small_study(**PRIVATE, algorithm={"name": "fedavgm"}, simulation=ALL)
    other = study_of_arm(study, "federated_no_dp")
    assert not other.private
    left, right = study.model_dump(), other.model_dump()
    assert [key for key in left if left[key] != right[key]] == ["privacy"]


@pytest.mark.parametrize("arm", ["pooled", "local"])
def test_baselines_train_without_privacy_and_without_tricks_of_the_server(arm: ArmName) -> None:
    study = small_study(
        **PRIVATE,
        algorithm={"name": "fedadam", "server_learning_rate": 0.1},
        aggregation={"participation": 0.3, "min_sites": 3, "max_update_norm": 0.1},
        training={"momentum": 0.5},
        simulation={
            **ALL,
            "baselines": {
                "epochs": 9,
                "optimiser": "adam",
                "learning_rate": 0.01,
                "batch_size": 3,
            },
        },
    )
    own = study_of_arm(study, arm)
    assert (own.algorithm.name, own.private, own.evaluation.min_cell) == ("fedavg", False, 1)
    assert own.aggregation.participation == 1.0
    assert own.aggregation.min_sites == 1
    assert own.aggregation.max_update_norm is None
    training = own.training
    assert (training.rounds, training.local_epochs, training.local_steps) == (1, 9, None)
    assert (training.optimiser, training.learning_rate) == ("adam", 0.01)
    assert (training.batch_size, training.momentum) == (3, 0.0)
    assert training.seed == study.training.seed
    # Copies are not validated when they are made: what came out must be a study all the same.
    Study.model_validate(own.model_dump(exclude_none=True, serialize_as_any=True))


# --- the same code ------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocess", ["bounds", "site", "federated"])
def test_local_is_each_site_run_alone(preprocess: str) -> None:
    study = small_study(preprocess={"standardise": preprocess}, simulation=ALL)
    cohorts = make_cohorts(study, 3)
    found = run(study, "local", cohorts)
    own = study_of_arm(study, "local")
    assert set(found.outcomes) == set(found.sites) == {"site-1", "site-2", "site-3"}
    for cohort in cohorts:
        alone = run_flaky(own, fake_sites(own, [cohort]))
        outcome = offered(found, cohort.site)
        assert outcome is not None
        assert same(outcome.weights, alone.weights)
        assert outcome.transform == alone.transform


def test_pooled_data_of_one_site_are_that_site_alone() -> None:
    # One batch holds everybody, so that the order in which they are drawn does not matter.
    study = small_study(training={"batch_size": 500, "rounds": 6}, simulation=ALL)
    cohorts = make_cohorts(study, 1)
    pooled = run(study, "pooled", cohorts).outcomes[""].weights
    alone = run(study, "local", cohorts).outcomes["site-1"].weights
    for name, value in pooled.items():
        np.testing.assert_allclose(value, alone[name], atol=1e-6)


def test_pooled_trains_on_everybodys_training_patients() -> None:
    study = small_study(simulation=ALL)
    cohorts = make_cohorts(study, 3)
    found = run(study, "pooled", cohorts)
    (site,) = found.sites.values()
    transform = found.outcomes[""].transform
    train, test = site.training(transform), site.testing(transform)
    assert len(train) == sum(int((~c.test).sum()) for c in cohorts)
    assert len(test) == sum(int(c.test.sum()) for c in cohorts)
    for name in ("site-1", "anything"):
        assert offered(found, name) is found.outcomes[""]


def test_private_study_without_privacy_is_the_open_study() -> None:
    private = small_study(**PRIVATE, simulation=ALL)
    plain = small_study(simulation=ALL)
    cohorts = make_cohorts(private, 3)
    found = run(private, "federated_no_dp", cohorts)
    expected = run(plain, "federated", cohorts)
    assert same(found.outcomes[""].weights, expected.outcomes[""].weights)
    assert found.curve == expected.curve
    noisy = run(private, "federated", cohorts)
    assert not same(noisy.outcomes[""].weights, expected.outcomes[""].weights)
    for site in noisy.sites.values():
        assert len(site.spending.charges) == private.training.rounds + 1
    for site in found.sites.values():
        assert site.spending.charges == ()


@pytest.mark.parametrize("arm", ["federated", "federated_no_dp", "pooled"])
def test_every_round_is_shown_with_the_overall_metric(arm: ArmName) -> None:
    study = small_study(**PRIVATE, training={"rounds": 3}, simulation=ALL)
    shown: Shown = []
    found = run(study, arm, make_cohorts(study, 3), shown)
    assert shown == [(arm, point.round, point.metrics["overall"]) for point in found.curve]
    assert [point.round for point in found.curve] == [1, 2, 3]
    assert found.seconds > 0.0


def test_local_progress_ends_with_the_last_round() -> None:
    study = small_study(training={"rounds": 5}, simulation=ALL)
    shown: Shown = []
    found = run(study, "local", make_cohorts(study, 3), shown)
    assert [number for _, number, _ in shown] == [1, 3, 5]
    assert [point.round for point in found.curve] == [1, 2, 3, 4, 5]
    for point in found.curve:
        assert set(point.metrics) == {"site-1", "site-2", "site-3"}


def test_local_progress_shows_no_round_twice_with_many_sites() -> None:
    study = small_study(training={"rounds": 2}, simulation=ALL)
    shown: Shown = []
    run(study, "local", make_cohorts(study, 5), shown)
    assert [number for _, number, _ in shown] == [1, 2]


# --- what fails ---------------------------------------------------------------------------------


def regression(**changes: Any) -> Study:
    """Squared error without standardisation diverges where features are far from 0."""
    return small_study(
        task={"kind": "regression", "target": "y", "labels": []},
        preprocess={"standardise": "none"},
        training={"learning_rate": 0.15, "rounds": 4, "local_epochs": 40},
        evaluation={"metric": "rmse"},
        simulation=ALL,
        **changes,
    )


def test_a_site_that_diverges_alone_is_reported_and_the_others_stand() -> None:
    study = regression()
    far = make_cohort(study, "far", shift=4.0)
    cohorts = [*make_cohorts(study, 2), far]
    found = run(study, "local", cohorts)
    assert set(found.outcomes) == {"site-1", "site-2"}
    assert list(found.failed) == ["far"]
    assert "diverged" in found.failed["far"]
    assert offered(found, "far") is None
    judged = judge_arm(found, judges(study, cohorts))
    assert set(judged) == {"site-1", "site-2"}
    (warning,) = [w for w in warnings_of(study, [found], {}) if "far" in w]
    assert "local" in warning
    assert "diverged" in warning
    assert set(metrics_with_intervals(study, judged)) == {"site-1", "site-2", "overall"}
    assert set(cross_site(study, [found], judges(study, cohorts))) == {"site-1", "site-2"}


def test_a_baseline_that_diverges_does_not_cost_the_result_beside_it() -> None:
    study = regression()
    cohorts = [make_cohort(study, name, shift=4.0) for name in ("a", "b")]
    found = run(study, "pooled", cohorts)
    assert found.outcomes == {}
    assert offered(found, "a") is None
    assert "diverged" in found.failed[""]
    assert judge_arm(found, judges(study, cohorts)) == {}
    with pytest.raises(TrainingError, match="diverged"):
        run(study, "federated", cohorts)


def test_too_few_sites_end_the_federated_arm() -> None:
    study = small_study(aggregation={"min_sites": 5})
    with pytest.raises(RoundError, match="3 of 5 needed sites"):
        run(study, "federated", make_cohorts(study, 3))


def test_a_site_that_cannot_keep_the_promise_is_named() -> None:
    study = small_study(**PRIVATE)
    cohorts = [*make_cohorts(study, 2), make_cohort(study, "tiny", patients=4)]
    with pytest.raises(PrivacyError, match="site tiny: "):
        run(study, "federated", cohorts)


@pytest.mark.parametrize(
    ("tiny", "names"), [(3, "t0, t1, t2"), (7, "t0, t1, t2, t3, t4 and 2 more")]
)
def test_all_sites_that_cannot_keep_the_promise_are_named_at_once(tiny: int, names: str) -> None:
    study = small_study(**PRIVATE)
    cohorts = [make_cohort(study, f"t{number}", patients=4) for number in range(tiny)]
    cohorts[1:1] = make_cohorts(study, 2)
    with pytest.raises(PrivacyError) as caught:
        make_sites(study, cohorts, Workspace())
    text = str(caught.value)
    assert f"{tiny} of {tiny + 2} sites cannot keep the privacy promise ({names}); " in text
    assert "[training] batch_size is larger than the number of patients" in text
    assert "take a smaller batch_size" in caught.value.hint
    assert "\n" not in text


class Broken(NoCheckpoints):
    """Checkpoints that fail with the given error after the last round."""

    def __init__(self, error: FedwardError) -> None:
        self._error = error

    def save(self, state: RunState) -> RunState:
        if state.round == 2:
            raise self._error
        return state


@pytest.mark.parametrize("kind", [DataError, PrivacyError, StudyError, RoundError])
@pytest.mark.parametrize("arm", ["pooled", "federated_no_dp"])
def test_whatever_a_baseline_fails_of_is_reported(arm: ArmName, kind: type[FedwardError]) -> None:
    study = small_study(**PRIVATE, simulation=ALL)
    cohorts = make_cohorts(study, 2)
    error = kind("it cannot", hint="change it")
    found = run(study, arm, cohorts, checkpoints=Broken(error))
    assert (found.outcomes, found.failed) == ({}, {"": "it cannot: change it"})
    assert [point.round for point in found.curve] == [1, 2]
    (warning,) = warnings_of(study, [found], {})
    assert warning == f"{arm}: could not be trained: it cannot: change it"
    with pytest.raises(kind, match="it cannot"):
        run(study, "federated", cohorts, checkpoints=Broken(error))


def test_a_baseline_with_a_site_that_cannot_even_be_made_is_reported() -> None:
    study = small_study(**PRIVATE)
    cohorts = [*make_cohorts(study, 2), make_cohort(study, "tiny", patients=4)]
    unprotected = judges(study, cohorts)
    with pytest.raises(PrivacyError, match="tiny"):
        _run_together(
            study,
            "federated",
            cohorts,
            None,
            unprotected,
            Workspace(),
            NoCheckpoints(),
            quiet,
            Engine(),
        )
    parts = _run_together(
        study,
        "federated_no_dp",
        cohorts,
        None,
        unprotected,
        Workspace(),
        NoCheckpoints(),
        quiet,
        Engine(),
    )
    assert parts[0] == {}
    assert parts[1][""].startswith("site tiny: ")


def quiet(arm: ArmName, number: int, metric: float | None) -> None:
    del arm, number, metric


@pytest.mark.parametrize("kind", [OutputError, Interrupted])
@pytest.mark.parametrize("arm", ["pooled", "federated_no_dp"])
def test_a_full_disk_or_ctrl_c_ends_every_arm(arm: ArmName, kind: type[FedwardError]) -> None:
    study = small_study(**PRIVATE, simulation=ALL)
    with pytest.raises(kind, match="it cannot"):
        run(study, arm, make_cohorts(study, 2), checkpoints=Broken(kind("it cannot", hint="x")))


def test_every_site_purpose_round_and_seed_has_randomness_of_its_own() -> None:
    """Two hospitals with the same noise would let it be subtracted."""
    streams = [
        seeded(seed, site)(purpose, number).normal(4).tobytes()
        for seed in (1, 2)
        for site in ("a", "b")
        for purpose in ("training", "evaluation")
        for number in (1, 2)
    ]
    assert len(set(streams)) == 16
    assert seeded(1, "a")("training", 1).normal(4).tobytes() == streams[0]


def test_sites_draw_from_streams_of_their_own() -> None:
    study = small_study()
    workspace = Workspace()
    cohort = make_cohort(study, "same")
    first, second = (make_site(study, name, [cohort], workspace) for name in ("a", "b"))
    other = study.model_copy(update={"training": study.training.model_copy(update={"seed": 8})})
    third = make_site(other, "a", [cohort], workspace)
    transform = fit(study)
    start = first_weights(study, transform)
    updates = [
        site.train(start, transform, round_number=1, proximal_mu=0.0)["weight"].tobytes()
        for site in (first, second, third)
    ]
    assert len(set(updates)) == 3
