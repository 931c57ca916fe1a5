"""The curve and the tables against scikit-learn on scores that are computed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedward.client.workspace import Workspace
from fedward.common.errors import TrainingError
from fedward.common.models.state import build_module, set_weights
from fedward.common.preprocess import Transform, fit
from fedward.common.tensors import Weights
from fedward.server.checkpoints import RunState
from fedward.server.history import RoundRecord
from fedward.simulations import judging, watcher
from fedward.simulations.arms import make_site, run_arm
from fedward.simulations.engines.flaky import run_flaky
from fedward.simulations.fakes import MemoryCheckpoints, make_cohorts, make_sites, small_study
from fedward.simulations.judging import cross_site, judge_arm, metrics_with_intervals
from fedward.simulations.watcher import Watcher

STUDY = small_study(training={"rounds": 3, "learning_rate": 2.0})
COHORTS = make_cohorts(STUDY, 3, patients=60, rows_per_patient=2)


def scores(weights: Weights, transform: Transform, site: int) -> tuple[Any, NDArray[np.float64]]:
    """Truth and scores of a site's test rows, by the formula of logistic regression."""
    test = COHORTS[site].testing()
    inputs = transform.apply(test.features).astype(np.float64)  # type: ignore[arg-type]
    raw = inputs @ weights["weight"][0].astype(np.float64) + float(weights["bias"][0])
    return test.target, 1.0 / (1.0 + np.exp(-raw))


@pytest.fixture(scope="module")
def ran() -> tuple[Watcher, MemoryCheckpoints]:
    sites = make_sites(STUDY, COHORTS)
    judges = {site.name: site for site in make_sites(STUDY, COHORTS)}
    shown: list[tuple[int, float | None]] = []
    checkpoints = MemoryCheckpoints()
    found = Watcher(STUDY, judges, {}, shown=lambda *told: shown.append(told))
    run_flaky(STUDY, sites, checkpoints=checkpoints, observer=found)
    assert shown == [(point.round, point.metrics["overall"]) for point in found.curve]
    return found, checkpoints


def test_the_curve_is_what_scikit_learn_finds(ran: tuple[Watcher, MemoryCheckpoints]) -> None:
    found, checkpoints = ran
    assert [point.round for point in found.curve] == [1, 2, 3]
    for point, state in zip(found.curve, checkpoints.states[1:], strict=True):
        transform = Transform.from_json(state.transform)
        parts = [scores(state.weights, transform, site) for site in range(3)]
        for index, (truth, score) in enumerate(parts):
            expected = roc_auc_score(truth, score)
            assert point.metrics[f"site-{index + 1}"] == pytest.approx(expected, abs=1e-9)
        truth, score = (np.concatenate(part) for part in zip(*parts, strict=True))
        assert point.metrics["overall"] == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
    assert len({point.metrics["overall"] for point in found.curve}) > 1


def test_the_curve_is_in_the_notes_of_every_round(ran: tuple[Watcher, MemoryCheckpoints]) -> None:
    found, checkpoints = ran
    history = checkpoints.states[-1].history
    assert [record.notes["metrics"] for record in history] == [p.metrics for p in found.curve]


def test_a_round_before_preparation_is_a_defect() -> None:
    watching = Watcher(STUDY, {}, {}, shown=lambda _n, _m: None)
    with pytest.raises(TrainingError, match="before preparation"):
        watching.on_round(RoundRecord(round=1, participants=()), {})


def test_with_many_sites_the_curve_is_overall_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "MOST_SITES", 2)
    judges = {site.name: site for site in make_sites(STUDY, COHORTS)}
    watching = Watcher(STUDY, judges, {}, shown=lambda _n, _m: None)
    run_flaky(STUDY, make_sites(STUDY, COHORTS), observer=watching)
    assert all(set(point.metrics) == {"overall"} for point in watching.curve)


def test_charges_of_a_resumed_run_are_taken_back_once() -> None:
    study = small_study(privacy={"mode": "dp", "epsilon": 4.0, "delta": 1e-3})
    cohorts = make_cohorts(study, 2)
    sites = {site.name: site for site in make_sites(study, cohorts)}
    judges = {c.site: make_site(STUDY, c.site, [c], Workspace()) for c in cohorts}
    checkpoints = MemoryCheckpoints()
    run_flaky(
        study,
        sites.values(),
        checkpoints=checkpoints,
        observer=Watcher(study, judges, sites, shown=lambda _n, _m: None),
    )
    again = {site.name: site for site in make_sites(study, cohorts)}
    resumed = Watcher(study, judges, again, shown=lambda _n, _m: None)
    resumed.on_resumed(checkpoints.states[-1])
    for name, site in sites.items():
        assert again[name].spending.charges == site.spending.charges
    # Nothing of that is new to the next round's notes.
    weights = checkpoints.states[-1].weights
    record = RoundRecord(round=3, participants=())
    assert resumed.on_round(record, weights)["charges"] == {}


def test_a_state_without_notes_has_no_charges() -> None:
    sites = {site.name: site for site in make_sites(STUDY, COHORTS)}
    watching = Watcher(STUDY, {}, sites, shown=lambda _n, _m: None)
    watching.on_resumed(RunState("x", 0, {}, fit(STUDY).to_json(), {}))
    assert watching.curve == ()
    assert all(site.spending.charges == () for site in sites.values())


# --- judging ------------------------------------------------------------------------------------


def test_tables_are_what_scikit_learn_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(
        training={"rounds": 2, "learning_rate": 2.0},
        simulation={"sites": ["a"], "compare": ["local"]},
    )
    judges = {site.name: site for site in make_sites(study, COHORTS)}
    arms = [
        run_arm(
            study,
            arm,
            COHORTS,
            judges=judges,
            workspace=Workspace(),
            checkpoints=MemoryCheckpoints(),
            shown=lambda _a, _n, _m: None,
        )
        for arm in ("federated", "local")
    ]
    federated, local = (judge_arm(arm, judges) for arm in arms)
    outcome = arms[0].outcomes[""]
    parts = [scores(outcome.weights, outcome.transform, site) for site in range(3)]
    found = metrics_with_intervals(study, federated)
    for index, (truth, score) in enumerate(parts):
        name = f"site-{index + 1}"
        np.testing.assert_allclose(federated[name].scores[:, 0], score, atol=1e-6)
        assert found[name]["auroc"].value == pytest.approx(roc_auc_score(truth, score))
        assert (federated[name].patient == COHORTS[index].testing().patient).all()
    truth, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert found["overall"]["auroc"].value == pytest.approx(roc_auc_score(truth, score))
    low, high = found["overall"]["auroc"].low, found["overall"]["auroc"].high
    assert low is not None
    assert high is not None
    assert low < high

    table = cross_site(study, arms, judges)
    assert list(table) == ["federated", "site-1", "site-2", "site-3"]
    for model, row in table.items():
        used = outcome if model == "federated" else arms[1].outcomes[model]
        for index, name in enumerate(row):
            expected = roc_auc_score(*scores(used.weights, used.transform, index))
            assert row[name] == pytest.approx(expected)
    assert set(local) == set(federated)

    monkeypatch.setattr(judging, "MOST_SITES", 2)
    coarse = metrics_with_intervals(study, federated)
    assert coarse["site-1"]["auroc"].low is None
    assert coarse["overall"]["auroc"].low == low
    assert metrics_with_intervals(study, {}) == {}


def test_the_oracle_is_the_module() -> None:
    """The hand-written formula above is the study's model."""
    transform = fit(STUDY)
    module = build_module(STUDY.model, (3,), 1, seed=0)
    weights = {"weight": np.full((1, 3), 0.5, np.float32), "bias": np.zeros(1, np.float32)}
    set_weights(module, weights)
    site = make_sites(STUDY, COHORTS)[0]
    expected = site.scores(weights, site.testing(transform))[:, 0]
    np.testing.assert_allclose(scores(weights, transform, 0)[1], expected, atol=1e-6)
