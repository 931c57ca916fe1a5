"""The `ray` engine gives what `loop` gives, to the bit, whatever happens to its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.simulations.ray_extra import needs_ray
from tests.simulations.test_engines import MODELS, PATIENTS, app_of, assert_same, by_loop, hospitals

from fedward.client.site import Site
from fedward.common.errors import RoundError, SiteConfigError, StateError
from fedward.common.study import Study
from fedward.server.checkpoints import NoCheckpoints
from fedward.server.flower_app import build_server_app
from fedward.server.rounds import Outcome
from fedward.simulations.arms import seeded
from fedward.simulations.engines.cluster.session import connected
from fedward.simulations.engines.loop import run_over
from fedward.simulations.engines.pool import ATTEMPTS, WorkerDefect
from fedward.simulations.fakes import Quiet, make_cohort, make_sites, small_study

pytestmark = [
    needs_ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves files to the system
]
PRIVATE: dict[str, Any] = {
    "training": {"rounds": 3, "batch_size": 6, "optimiser": "adam", "learning_rate": 0.05},
    "privacy": {"mode": "dp", "epsilon": 20.0, "delta": 1e-3, "max_rows_per_patient": 3},
    "preprocess": {"standardise": "federated"},
}


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with connected(None, processors=2):
        yield


def by_ray(study: Study, sites: Mapping[str, Site], observer: Any = None) -> Outcome:
    from fedward.simulations.engines.cluster.grid import RayGrid

    found: list[Outcome] = []
    app = app_of(study, found)
    grid = RayGrid(sites.values())
    if observer is not None:
        app = build_server_app(
            study,
            checkpoints=NoCheckpoints(),
            observer=observer(grid),
            on_outcome=found.append,
        )
    try:
        run_over(app, grid)
    finally:
        grid.close()
    return found[0]


def private_study(**changes: Any) -> Study:
    return small_study(**{**PRIVATE, "model": MODELS[1], **changes})


def private_hospitals(study: Study) -> dict[str, Site]:
    cohorts = [
        make_cohort(study, f"site-{index}", patients=patients, rows_per_patient=4)
        for index, patients in enumerate(PATIENTS[:2] + PATIENTS[3:])
    ]
    return {site.name: site for site in make_sites(study, cohorts)}


def charges(sites: Mapping[str, Site]) -> list[Any]:
    return [site.spending.charges for site in sites.values()]


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": {"name": "fedprox", "mu": 0.3}, "model": MODELS[1]},
        {"algorithm": {"name": "fedmedian"}, "model": MODELS[0]},
        {
            "task": {"kind": "regression", "labels": [], "bounds": [-20.0, 20.0]},
            "evaluation": {"metric": "r2"},
            "training": {"learning_rate": 0.05, "rounds": 2},
            "aggregation": {"max_update_norm": 0.2},
        },
    ],
    ids=["fedprox mlp", "fedmedian logistic", "refusals"],
)
def test_open_studies(changes: dict[str, Any]) -> None:
    study = small_study(**changes)
    one, other = by_loop(study, hospitals(study)), by_ray(study, hospitals(study))
    assert_same(one, other, close=0.0)
    assert bool(one.history[0].refused) == ("aggregation" in changes)


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    "algorithm", [{"name": "fedavg"}, {"name": "fedadam", "server_learning_rate": 0.1}], ids=str
)
def test_private_studies(algorithm: dict[str, Any]) -> None:
    study = private_study(algorithm=algorithm)
    one, other = private_hospitals(study), private_hospitals(study)
    assert_same(by_loop(study, one), by_ray(study, other), close=0.0)
    assert charges(one) == charges(other)
    assert all(len(spent) == 1 + 3 + 1 for spent in charges(other))


@pytest.mark.usefixtures("_ray")
def test_what_a_budget_does_not_hold_is_refused_in_a_worker_as_here() -> None:
    """A site that was charged before, as after a resume: its worker knows."""
    study = private_study()
    one, other = private_hospitals(study), private_hospitals(study)
    for sites in (one, other):
        site = sites["site-1"]
        assert site.plan is not None
        site.spending.charge(2, "training", site.plan.training_event())
    expected, found = by_loop(study, one), by_ray(study, other)
    assert set(expected.history[1].refused) == {"site-1"}
    assert_same(expected, found, close=0.0)
    assert charges(one) == charges(other)


def dies_in(sites: Mapping[str, Site], site: str, seen_at: Path, times: int) -> None:
    """Have a site kill the process that trains it in round 2, after it was charged there."""
    usual = seeded(sites[site].study.training.seed, site)

    def randomness(purpose: str, number: int) -> Any:
        if (purpose, number) == ("training", 2):
            with seen_at.open("ab") as seen:
                seen.write(b".")
            if seen_at.stat().st_size <= times:
                os.kill(os.getpid(), signal.SIGKILL)
        return usual(purpose, number)

    sites[site]._randomness = randomness


@pytest.mark.usefixtures("_ray")
def test_the_sites_of_a_worker_that_is_killed_are_done_again_and_charged_once(
    tmp_path: Path,
) -> None:
    study = private_study()
    one, other = private_hospitals(study), private_hospitals(study)
    dies_in(other, "site-1", tmp_path / "seen", times=ATTEMPTS - 1)
    assert_same(by_loop(study, one), by_ray(study, other), close=0.0)
    assert charges(one) == charges(other)
    assert (tmp_path / "seen").stat().st_size == ATTEMPTS


@pytest.mark.usefixtures("_ray")
def test_a_worker_that_is_lost_between_rounds_is_replaced() -> None:
    import ray

    class Kills(Quiet):
        def __init__(self, grid: Any) -> None:
            super().__init__()
            self._grid = grid

        def on_round(self, record: Any, weights: Any) -> dict[str, Any]:
            ray.kill(self._grid._workers[0].actor)
            return super().on_round(record, weights)

    study = private_study()
    one, other = private_hospitals(study), private_hospitals(study)
    assert_same(by_loop(study, one), by_ray(study, other, Kills), close=0.0)
    assert charges(one) == charges(other)


@pytest.mark.usefixtures("_ray")
def test_a_worker_that_keeps_dying_ends_the_run_in_words(tmp_path: Path) -> None:
    study = private_study()
    sites = private_hospitals(study)
    dies_in(sites, "site-1", tmp_path / "seen", times=ATTEMPTS)
    with pytest.raises(RoundError, match=f"lost {ATTEMPTS} times"):
        by_ray(study, sites)
    assert [c.round for c in sites["site-1"].spending.charges] == [0, 1]


@pytest.mark.usefixtures("_ray")
def test_a_defect_in_a_worker_is_told() -> None:
    study = small_study()
    sites = hospitals(study)

    def randomness(purpose: str, number: int) -> Any:
        raise ValueError("nobody foresaw this")

    sites["site-0"]._randomness = randomness
    with pytest.raises(WorkerDefect, match="nobody foresaw this"):
        by_ray(study, sites)


@pytest.mark.usefixtures("_ray")
def test_a_machine_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedward.simulations.engines.cluster import grid

    own = grid.versions()
    monkeypatch.setattr(grid, "versions", lambda: {**own, "torch": "0.1"})
    with pytest.raises(SiteConfigError, match="other versions of torch"):
        by_ray(small_study(), hospitals(small_study()))


@pytest.mark.usefixtures("_ray")
def test_a_second_session_is_refused() -> None:
    with pytest.raises(StateError, match="connected to Ray already"), connected(None, processors=1):
        pass
