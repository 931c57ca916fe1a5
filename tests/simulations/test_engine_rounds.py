"""Rounds that do not go smoothly, and pictures: every engine does what the `loop` engine does."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest

from fedward.client.cohort import Cohort
from fedward.client.site import Site
from fedward.common.errors import FedwardError, PrivacyError, RoundError
from fedward.common.study import Study
from fedward.common.table import ImageStack
from fedward.server.checkpoints import NoCheckpoints
from fedward.server.flower_app import build_server_app
from fedward.server.rounds import Outcome
from fedward.server.together import AskedToEvaluate
from fedward.simulations.engines.carrier import EngineGrid, MakeExecutor
from fedward.simulations.engines.executors import Looped, Stacked
from fedward.simulations.engines.loop import LoopGrid, loop_grid, run_over
from fedward.simulations.engines.pool import can_fork
from fedward.simulations.fakes import Quiet, make_cohort, make_sites, small_study

SIDE = 10
ENGINES: dict[str, tuple[MakeExecutor, int]] = {
    "looped": (Looped, 0),
    "stacked": (Stacked, 0),
    "stacked in workers": (Stacked, 3),
    "looped in workers": (Looped, 3),
}
PRIVATE = {"mode": "dp", "epsilon": 20.0, "delta": 1e-3, "max_rows_per_patient": 2}
PATIENTS = (20, 31, 16, 24, 40)
each_engine = pytest.mark.parametrize("engine", ENGINES)


def run(study: Study, grid: LoopGrid) -> Outcome:
    found: list[Outcome] = []
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Quiet(), on_outcome=found.append
    )
    run_over(app, grid)
    return found[0]


def by_engine(study: Study, sites: list[Site], engine: str) -> Outcome:
    make, workers = ENGINES[engine]
    grid = EngineGrid(sites, make=make, workers=workers)
    try:
        return run(study, grid)
    finally:
        grid.close()


def assert_same(study: Study, one: list[Site], other: list[Site], engine: str) -> Outcome:
    """Models, who took part, who was refused and why, figures, and what was paid."""
    mine, yours = run(study, loop_grid(one)), by_engine(study, other, engine)
    for name, value in mine.weights.items():
        np.testing.assert_allclose(yours.weights[name], value, atol=2e-5, rtol=0)
    for wanted, found in zip(mine.history, yours.history, strict=True):
        assert found.participants == wanted.participants
        assert found.refused == wanted.refused
        assert found.drift.keys() == wanted.drift.keys()
        assert found.evaluation.keys() == wanted.evaluation.keys()
        for site, metrics in wanted.evaluation.items():
            assert found.evaluation[site] == pytest.approx(metrics, abs=1e-4)
    assert [s.spending.charges for s in one] == [s.spending.charges for s in other]
    return yours


def a_study(**changes: Any) -> Study:
    return small_study(**{"model": {"name": "mlp", "hidden": [5]}, **changes})


def hospitals(study: Study) -> list[Site]:
    return make_sites(
        study,
        [
            make_cohort(study, f"site-{index}", patients=patients, shift=0.3 * index)
            for index, patients in enumerate(PATIENTS)
        ],
    )


def pictures(study: Study, rows: int) -> list[Site]:
    """Half of the patients have a bright corner."""
    cohorts = []
    for number, patients in enumerate((24, 17, 30)):
        draw = np.random.default_rng(number)
        patient = np.repeat(np.arange(patients), draw.integers(1, rows + 1, patients))
        target = (patient % 2).astype(np.float32)
        pixels = draw.integers(0, 120, (len(patient), SIDE, SIDE, 1), dtype=np.uint8)
        pixels[target == 1, :4, :4] += 100
        stack = ImageStack(pixels, np.arange(len(patient)))
        cohorts.append(Cohort(f"site-{number}", stack, target, patient, patient % 4 >= 2))
    return make_sites(study, cohorts)


@each_engine
@pytest.mark.parametrize("privacy", [{}, PRIVATE], ids=["open", "private"])
@pytest.mark.parametrize("rows", [1, 3])
def test_pictures(rows: int, privacy: dict[str, Any], engine: str) -> None:
    study = a_study(
        data={"modality": "image", "features": []},
        preprocess={"image": {"height": SIDE, "width": SIDE}, "standardise": "federated"},
        model={"name": "cnn", "channels": [8], "pool": 2, "hidden": [6]},
        training={"rounds": 2, "momentum": 0.5, "learning_rate": 0.1, "batch_size": 5},
        privacy=privacy,
    )
    first = assert_same(study, pictures(study, rows), pictures(study, rows), engine)
    assert all(len(record.participants) == 3 for record in first.history)


@each_engine
@pytest.mark.parametrize("privacy", [{}, PRIVATE], ids=["open", "private"])
def test_a_share_of_the_sites_takes_part(privacy: dict[str, Any], engine: str) -> None:
    """Another one in each round; some workers have nothing to do."""
    study = a_study(
        aggregation={"participation": 0.4, "min_sites": 2},
        training={"rounds": 4},
        privacy=privacy,
    )
    first = assert_same(study, hospitals(study), hospitals(study), engine)
    assert all(len(record.participants) == 2 for record in first.history)
    assert len({record.participants for record in first.history}) > 1


def spend(site: Site, rounds: int) -> None:
    """The budget of the last rounds is gone before they begin."""
    assert site.plan is not None
    for number in range(1, rounds + 1):
        site.spending.charge(100 + number, "training", site.plan.training_event())


@each_engine
def test_a_site_without_budget_refuses_and_pays_nothing(engine: str) -> None:
    study = a_study(privacy=PRIVATE, training={"rounds": 3})
    both = [hospitals(study), hospitals(study)]
    for sites in both:
        spend(sites[1], 2)
        spend(sites[3], 3)
    first = assert_same(study, *both, engine)
    assert [len(record.participants) for record in first.history] == [4, 3, 3]
    assert "site-3" in first.history[0].refused


@each_engine
@pytest.mark.parametrize("all_of_them", [True, False])
def test_too_few_that_can_pay_end_the_run_with_the_same_words(
    all_of_them: bool, engine: str
) -> None:
    study = a_study(
        privacy=PRIVATE, training={"rounds": 2}, aggregation={"min_sites": 3, "weights": "equal"}
    )
    words = []
    for number in range(2):
        sites = hospitals(study)
        for site in sites if all_of_them else sites[:3]:
            spend(site, 2)
        with pytest.raises(PrivacyError) as caught:
            run(study, loop_grid(sites)) if number == 0 else by_engine(study, sites, engine)
        words.append((str(caught.value), caught.value.hint))
    assert words[0] == words[1]
    assert "needed sites answered" in words[0][0]


@each_engine
def test_when_all_move_too_far_the_run_ends_with_the_same_words(engine: str) -> None:
    study = a_study(aggregation={"max_update_norm": 1e-6})
    words = []
    for number in range(2):
        sites = hospitals(study)
        with pytest.raises(RoundError) as caught:
            run(study, loop_grid(sites)) if number == 0 else by_engine(study, sites, engine)
        words.append((str(caught.value), caught.value.hint))
    assert words[0] == words[1]


@each_engine
def test_a_round_twice_is_refused_as_by_a_message(engine: str) -> None:
    """A grid that is used for a second run of the same sites: their budget is gone."""
    study = a_study(privacy=PRIVATE, training={"rounds": 2})
    sites = hospitals(study)
    make, workers = ENGINES[engine]
    grid = EngineGrid(sites, make=make, workers=workers)
    try:
        run(study, grid)
        with pytest.raises(FedwardError):
            run(study, grid)
    finally:
        grid.close()


@each_engine
@pytest.mark.parametrize("privacy", [{"mode": "none"}, PRIVATE], ids=["open", "private"])
def test_evaluations_release_what_a_message_would(privacy: dict[str, Any], engine: str) -> None:
    """Small sites release nothing; who has paid for that evaluation before refuses, by name."""
    study = a_study(privacy=privacy, training={"rounds": 3}, evaluation={"every": 1, "min_cell": 3})
    both = [hospitals(study), hospitals(study)]
    for sites in both:
        if study.private:
            plan = sites[2].plan
            assert plan is not None
            sites[2].spending.charge(2, "testing", plan.evaluation_event())
    found = assert_same(study, *both, engine)
    released = [record.evaluation.keys() - {"overall"} for record in found.history]
    if study.private:
        assert [len(names) for names in released] == [5, 4, 5]
        assert "evaluation: " in found.history[1].refused["site-2"]
    else:
        assert 0 < len(released[0]) < len(PATIENTS)
    assert all(record.evaluation["overall"] for record in found.history)


@each_engine
def test_weights_that_are_none_are_refused_by_all_in_an_evaluation(engine: str) -> None:
    study = a_study()
    make, workers = ENGINES[engine]
    sites = hospitals(study)
    grid = EngineGrid(sites, make=make, workers=workers)
    last = run(study, loop_grid(hospitals(study)))
    bad = {name: np.full_like(value, np.nan) for name, value in last.weights.items()}
    names = tuple(site.name for site in sites)
    found = grid.evaluate_together(AskedToEvaluate(1, bad, last.transform.to_json(), names))
    assert not found.released
    assert found.refused.keys() == set(names)
    assert found.replies() == []


@pytest.mark.skipif(not can_fork(), reason="needs processes that fork")
def test_workers_give_way_to_the_last_evaluation_and_to_no_other() -> None:
    study = a_study(training={"rounds": 2}, evaluation={"every": 1})
    counted: list[int] = []

    class Counting(Quiet):
        def on_evaluating(self, number: int) -> None:
            counted.append(len(set(multiprocessing.active_children()) - before))

    before = set(multiprocessing.active_children())
    grid = EngineGrid(hospitals(study), make=Stacked, workers=2)
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Counting(), on_outcome=lambda _: None
    )
    try:
        run_over(app, grid)
    finally:
        grid.close()
    assert counted == [2, 0]
