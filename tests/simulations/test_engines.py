"""Every engine gives what the `loop` engine gives: the same models, refusals, drift and charges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedward.client.site import Site
from fedward.common.study import Study
from fedward.server.checkpoints import NoCheckpoints
from fedward.server.flower_app import build_server_app
from fedward.server.rounds import Outcome
from fedward.simulations.engines.carrier import EngineGrid, MakeExecutor
from fedward.simulations.engines.executors import Looped, Stacked
from fedward.simulations.engines.loop import run_in_loop, run_over
from fedward.simulations.fakes import Quiet, make_cohort, make_sites, small_study

CLOSE = 1e-5
ENGINES: dict[str, tuple[MakeExecutor, int]] = {
    "looped": (Looped, 0),
    "stacked": (Stacked, 0),
    "stacked in workers": (Stacked, 2),
    "looped in workers": (Looped, 2),
}
ALGORITHMS: tuple[dict[str, Any], ...] = (
    {"name": "fedavg"},
    {"name": "fedprox", "mu": 0.3},
    {"name": "fedadam", "server_learning_rate": 0.1},
    {"name": "fedyogi", "server_learning_rate": 0.1},
    {"name": "fedadagrad", "server_learning_rate": 0.1},
    {"name": "fedavgm", "server_learning_rate": 0.1},
    {"name": "fedmedian"},
    {"name": "fedtrimmedavg", "cut": 0.2},
)
MODELS: tuple[dict[str, Any], ...] = ({"name": "logistic"}, {"name": "mlp", "hidden": [7, 5]})
PATIENTS = (40, 17, 9, 25, 60)


def by_loop(study: Study, sites: Mapping[str, Site]) -> Outcome:
    """Of the reference."""
    found: list[Outcome] = []
    run_in_loop(app_of(study, found), sites.values())
    return found[0]


def by_engine(study: Study, sites: Mapping[str, Site], engine: str) -> Outcome:
    """Of another."""
    found: list[Outcome] = []
    make, workers = ENGINES[engine]
    grid = EngineGrid(sites.values(), make=make, workers=workers)
    try:
        run_over(app_of(study, found), grid)
    finally:
        grid.close()
    return found[0]


def app_of(study: Study, found: list[Outcome]) -> Any:
    return build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Quiet(), on_outcome=found.append
    )


def hospitals(study: Study) -> dict[str, Site]:
    """Of different sizes."""
    cohorts = [
        make_cohort(study, f"site-{index}", patients=patients, shift=0.2 * index)
        for index, patients in enumerate(PATIENTS)
    ]
    return {site.name: site for site in make_sites(study, cohorts)}


def assert_same(one: Outcome, other: Outcome, close: float = CLOSE) -> None:
    for name, value in one.weights.items():
        np.testing.assert_allclose(other.weights[name], value, atol=close, rtol=0)
    for mine, yours in zip(one.history, other.history, strict=True):
        assert mine.participants == yours.participants
        assert mine.refused == yours.refused
        assert mine.evaluation.keys() == yours.evaluation.keys()
        for site, drift in mine.drift.items():
            assert yours.drift[site].norm == pytest.approx(drift.norm, abs=1e-4)
            assert yours.drift[site].cosine == pytest.approx(drift.cosine, abs=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model["name"]))
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: str(algorithm["name"]))
def test_every_algorithm_and_model(
    algorithm: dict[str, Any], model: dict[str, Any], engine: str
) -> None:
    study = small_study(algorithm=algorithm, model=model, training={"rounds": 3})
    assert_same(by_loop(study, hospitals(study)), by_engine(study, hospitals(study), engine))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "training",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.01, "local_epochs": 3},
        {"optimiser": "adam", "learning_rate": 0.02},
        {"local_steps": 11, "local_epochs": None},
        {"batch_size": 64},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_every_way_to_train(training: dict[str, Any], engine: str) -> None:
    study = small_study(training={"learning_rate": 0.2, **training}, model=MODELS[1])
    assert_same(by_loop(study, hospitals(study)), by_engine(study, hospitals(study), engine))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_every_task(kind: str, engine: str) -> None:
    labels = {"labels": ["a", "b", "c"]} if kind == "multiclass" else {"labels": []}
    bounds = {"bounds": [-20.0, 20.0]} if kind == "regression" else {}
    metric = {"metric": "accuracy"} if kind == "multiclass" else {"metric": "r2"}
    study = small_study(
        task={"kind": kind, **labels, **bounds},
        evaluation=metric,
        training={"learning_rate": 0.05},
        model=MODELS[1],
    )
    assert_same(by_loop(study, hospitals(study)), by_engine(study, hospitals(study), engine))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_private_training(optimiser: str, rows: int, engine: str) -> None:
    """The same patients are drawn, the same noise is added, the same is charged."""
    study = small_study(
        model=MODELS[1],
        training={"optimiser": optimiser, "learning_rate": 0.05, "rounds": 3, "batch_size": 6},
        privacy={"mode": "dp", "epsilon": 20.0, "delta": 1e-3, "max_rows_per_patient": 3},
        algorithm={"name": "fedprox", "mu": 0.1},
    )
    cohorts = [
        make_cohort(study, f"site-{index}", patients=patients, rows_per_patient=rows)
        for index, patients in enumerate(PATIENTS[:2] + PATIENTS[3:])
    ]
    one, other = ({site.name: site for site in make_sites(study, cohorts)} for _ in range(2))
    assert_same(by_loop(study, one), by_engine(study, other, engine))
    assert [s.spending.charges for s in one.values()] == [
        s.spending.charges for s in other.values()
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_who_diverges_or_moves_too_far_is_refused_and_the_others_are_not(engine: str) -> None:
    study = small_study(
        model=MODELS[1],
        task={"kind": "regression", "labels": [], "bounds": [-20.0, 20.0]},
        evaluation={"metric": "r2"},
        training={"learning_rate": 0.05, "rounds": 1},
        aggregation={"max_update_norm": 2.0},
    )
    sites = [hospitals(study) for _ in range(2)]
    for known in sites:
        far, broken = (known[name]._rows._cohorts[0] for name in ("site-1", "site-3"))
        far.target[:] *= 60.0
        broken.target[np.flatnonzero(~broken.test)[0]] = np.float32(3e38)
    one, other = by_loop(study, sites[0]), by_engine(study, sites[1], engine)
    assert one.history[0].participants == ("site-0", "site-2", "site-4")
    assert_same(one, other)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_sites(count: int, engine: str) -> None:
    """So that a worker has one site, or none."""
    study = small_study(model=MODELS[1], training={"rounds": 3})

    def some() -> dict[str, Site]:
        return dict(list(hospitals(study).items())[:count])

    assert_same(by_loop(study, some()), by_engine(study, some(), engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_drift_is_that_of_the_site_whatever_their_order(engine: str) -> None:
    study = small_study(model=MODELS[1], training={"rounds": 1})
    backwards = dict(reversed(hospitals(study).items()))
    assert_same(by_loop(study, hospitals(study)), by_engine(study, backwards, engine))
