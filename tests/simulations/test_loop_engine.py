"""The loop engine carries messages faithfully; the fakes do what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedward.common import records
from fedward.common.errors import DataError
from fedward.common.metrics import evaluate, exact_counts
from fedward.common.study import Study
from fedward.common.table import MISSING, FeatureTable
from fedward.server.checkpoints import NoCheckpoints
from fedward.server.flower_app import build_server_app
from fedward.server.flower_internals import Run
from fedward.server.replies import SelectedGrid
from fedward.server.rounds import Outcome
from fedward.simulations.engines.flaky import Fault, FlakyGrid, lost, run_flaky
from fedward.simulations.engines.loop import LoopGrid, loop_grid, run_in_loop
from fedward.simulations.fakes import Quiet, make_cohort, make_cohorts, make_sites, small_study


def a_grid(sites: int = 3) -> LoopGrid:
    study = small_study()
    return loop_grid(make_sites(study, make_cohorts(study, sites)))


def hello(node: int) -> Message:
    return Message(RecordDict(), node, records.INTRODUCE)


def test_every_site_is_a_node() -> None:
    grid = a_grid()
    assert [grid.site(node) for node in grid.get_node_ids()] == ["site-1", "site-2", "site-3"]
    assert [info.node_id for info in grid.get_nodes()] == list(grid.get_node_ids())


def test_a_run_over_a_server_app_is_a_run() -> None:
    study = small_study()
    cohorts = make_cohorts(study, 3)
    found: list[Outcome] = []
    app = build_server_app(
        study, checkpoints=NoCheckpoints(), observer=Quiet(), on_outcome=found.append
    )
    run_in_loop(app, make_sites(study, cohorts))
    expected = run_flaky(study, make_sites(study, cohorts))
    for name, value in expected.weights.items():
        assert (found[0].weights[name] == value).all()


def test_errors_of_a_run_come_through_the_app_as_they_are() -> None:
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        raise DataError("no", hint="x")

    with pytest.raises(DataError):
        run_in_loop(app, [])


def test_pushed_messages_are_answered_when_they_are_pulled_each_by_its_own() -> None:
    grid = a_grid()
    nodes = list(grid.get_node_ids())
    first, second = grid.push_messages([hello(nodes[0]), hello(nodes[1])])
    (answer,) = grid.pull_messages([first])
    assert answer.metadata.src_node_id == nodes[0]
    (third,) = grid.push_messages([hello(nodes[1])])
    assert len({first, second, third}) == 3
    sources = [a.metadata.src_node_id for a in grid.pull_messages([third, second])]
    assert sources == [nodes[1], nodes[1]]


@pytest.mark.parametrize("wrap", [lambda g: g, FlakyGrid, lambda g: SelectedGrid(g, [2])])
def test_grids_pass_on_what_they_do_not_change(wrap: Any) -> None:
    grid = wrap(a_grid())
    grid.set_run(Run.create_empty(42))
    assert grid.run.run_id == 42
    message = grid.create_message(RecordDict(), records.INTRODUCE, 2, "group", 5.0)
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (2, "group")
    (answer,) = grid.pull_messages(grid.push_messages([message]))
    assert answer.metadata.src_node_id == 2


def test_a_reply_exists_only_while_it_is_looked_at() -> None:
    grid = a_grid()
    asked: list[int] = []

    def messages() -> Any:
        for node in grid.get_node_ids():
            asked.append(node)
            yield hello(node)

    replies = iter(grid.send_and_receive(messages()))
    next(replies)
    assert asked == [2]


def test_a_selected_grid_shows_the_chosen_nodes_in_order() -> None:
    assert list(SelectedGrid(a_grid(), [4, 2]).get_node_ids()) == [2, 4]


def test_faults_happen_where_they_should_and_are_remembered() -> None:
    study = small_study(training={"rounds": 3})
    sites = make_sites(study, make_cohorts(study, 2))
    grid = FlakyGrid(loop_grid(sites), [Fault("site-1", lost, round=2)])
    from fedward.server.rounds import Rounds

    outcome = Rounds(study, grid, checkpoints=NoCheckpoints(), observer=Quiet()).run()
    assert [len(record.refused) for record in outcome.history] == [0, 1, 0]
    assert grid.asked[:2] == [("query.introduce", f"site-{i}", None) for i in (1, 2)]
    assert ("train", "site-1", 2) in grid.asked
    assert grid.asked[-1] == ("evaluate", "site-2", 3)


# --- fakes --------------------------------------------------------------------------------------


def kinds() -> list[Study]:
    return [
        small_study(),
        small_study(numeric=0, categorical=2),
        small_study(
            task={"kind": "multiclass", "target": "y", "labels": ["a", "b", "c"]}, categorical=1
        ),
        small_study(
            task={"kind": "regression", "target": "y", "labels": []},
            evaluation={"metric": "rmse"},
        ),
    ]


@pytest.mark.parametrize(
    "study", kinds(), ids=["binary", "categorical", "multiclass", "regression"]
)
def test_fake_patients_fit_their_study_and_can_be_learnt(study: Study) -> None:
    cohort = make_cohort(study, "a", patients=200, rows_per_patient=2)
    table = cohort.features
    assert isinstance(table, FeatureTable)
    assert table.numeric.shape == (len(cohort), len(study.data.numeric))
    assert np.abs(table.numeric).max(initial=0.0) <= 4.0
    assert cohort.patients == 200
    assert cohort.testing().patients == 50
    if study.task.labels:
        assert set(cohort.target) == set(range(len(study.task.labels)))
    trained = study.model_copy(
        update={"training": study.training.model_copy(update={"rounds": 12})}
    )
    outcome = run_flaky(trained, make_sites(trained, [cohort]))
    site = make_sites(trained, [cohort])[0]
    test = site.testing(outcome.transform)
    metrics = evaluate(
        exact_counts(study.task.kind, test.target.numpy(), site.scores(outcome.weights, test))
    )
    name = "r2" if study.task.kind == "regression" else "auroc"
    found = metrics.get(name) or metrics.get("macro_auroc")
    assert found is not None
    assert found > 0.7


def test_fake_patients_repeat_and_differ_by_site_and_seed() -> None:
    study = small_study()

    def bytes_of(site: str, seed: int) -> bytes:
        table = make_cohort(study, site, seed=seed).features
        assert isinstance(table, FeatureTable)
        return table.numeric.tobytes()

    assert bytes_of("a", 1) == bytes_of("a", 1)
    assert len({bytes_of("a", 1), bytes_of("b", 1), bytes_of("a", 2)}) == 3


def test_fake_values_can_be_missing() -> None:
    study = small_study(categorical=1)
    table = make_cohort(study, "a", patients=200, missing=0.3).features
    assert isinstance(table, FeatureTable)
    assert 0.2 < np.isnan(table.numeric).mean() < 0.4
    assert 0.2 < (table.codes == MISSING).mean() < 0.4
