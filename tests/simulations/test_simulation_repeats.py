"""The same seed gives the same results, byte for byte, privacy included; another seed does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fedward.client.cohort import Cohort
from fedward.common.errors import Interrupted, OutputError, StudyError
from fedward.common.study import Study
from fedward.common.table import FeatureTable
from fedward.simulations.fakes import make_cohorts, small_study
from fedward.simulations.simulate import Simulation

PRIVATE: dict[str, Any] = {
    "privacy": {"mode": "dp", "epsilon": 6.0, "delta": 1e-3},
    "preprocess": {"standardise": "federated"},
}


def write_site(folder: Path, study: Study, cohort: Cohort) -> str:
    """A hospital's table and its site.toml."""
    table = cohort.features
    assert isinstance(table, FeatureTable)
    columns: dict[str, Any] = {"patient": [f"{cohort.site}-{p}" for p in cohort.patient]}
    columns |= {f.name: table.numeric[:, i] for i, f in enumerate(study.data.numeric)}
    columns["ill"] = np.array(study.task.labels)[cohort.target.astype(int)]
    pl.DataFrame(columns).write_csv(folder / f"{cohort.site}.csv")
    name = f"{cohort.site}.toml"
    (folder / name).write_text(
        f'[site]\nname = "{cohort.site}"\n[source]\nkind = "csv"\npath = "{cohort.site}.csv"\n'
        '[patients]\ncolumn = "patient"\n[target]\ncolumn = "ill"\n'
    )
    return name


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    for cohort in make_cohorts(small_study(), 3, patients=60):
        write_site(folder, small_study(), cohort)
    return folder


def a_study(seed: int = 3, **changes: Any) -> Study:
    names = [f"site-{index}.toml" for index in (1, 2, 3)]
    compare = ["local", "pooled", "federated_no_dp"]
    training = {"rounds": 2, "learning_rate": 1.0, "seed": seed}
    section = {"sites": names, "compare": compare, "cross_site": True}
    return small_study(training=training, simulation=section, **changes)


def run(hospitals: Path, out: Path, study: Study, **options: Any) -> dict[str, Any]:
    Simulation(study, hospitals, out, **options).run()
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return {key: value for key, value in results.items() if key != "timing"}


@pytest.mark.parametrize("changes", [{}, PRIVATE], ids=["open", "private"])
def test_same_seed_same_results(hospitals: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    study = a_study(**changes)
    first, second = (run(hospitals, tmp_path / name, study) for name in ("one", "two"))
    assert first == second
    for name in ("predictions.parquet", "model/weights.safetensors"):
        found = [tmp_path / run_name / name for run_name in ("one", "two")]
        if found[0].exists():
            assert found[0].read_bytes() == found[1].read_bytes()
    other = run(hospitals, tmp_path / "three", a_study(seed=4, **changes))
    for arm in first["curves"]:
        assert other["metrics"][arm] != first["metrics"][arm]


def test_the_results_are_those_of_the_predictions(hospitals: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    results = run(hospitals, tmp_path, a_study(**PRIVATE))
    table = pl.read_parquet(tmp_path / "predictions.parquet")
    assert set(table["arm"]) == {"federated", "federated_no_dp", "pooled", "local"}
    for (arm, site), part in table.group_by("arm", "site"):
        expected = roc_auc_score(part["truth"], part["score"])
        found = results["metrics"][arm][site]["auroc"]["value"]
        assert found == pytest.approx(expected), (arm, site)
    for site, spent in results["privacy"].items():
        assert site in {"site-1", "site-2", "site-3"}
        assert 0.0 < spent["epsilon"] <= 6.0
        assert len(spent["events"]) == 1 + 2 + 1


class Stops:
    """A listener who presses Ctrl-C after a round."""

    def __init__(self, arm: str, number: int) -> None:
        self._where = (arm, number)
        self.heard: list[tuple[str, int]] = []

    def on_round(self, arm: str, round_number: int, metric: float | None) -> None:
        self.heard.append((arm, round_number))
        if (arm, round_number) == self._where:
            raise KeyboardInterrupt


@pytest.mark.parametrize("arm", ["federated", "federated_no_dp", "pooled", "local"])
def test_interrupted_and_resumed_is_unbroken(hospitals: Path, tmp_path: Path, arm: str) -> None:
    study = a_study(**PRIVATE)
    expected = run(hospitals, tmp_path / "unbroken", study)
    out = tmp_path / "broken"
    with pytest.raises(Interrupted, match="--resume"):
        Simulation(study, hospitals, out).run(Stops(arm, 2))
    assert not (out / "results.json").exists()
    assert run(hospitals, out, study, resume=True) == expected


def test_rounds_are_announced_in_the_order_in_which_they_come(
    hospitals: Path, tmp_path: Path
) -> None:
    simulation = Simulation(a_study(**PRIVATE), hospitals, tmp_path)
    listener = Stops("nobody", 0)
    simulation.run(listener)
    announced = [arm for arm, rounds in simulation.rounds() for _ in range(rounds)]
    heard = [arm for arm, _ in listener.heard]
    assert list(dict.fromkeys(announced)) == list(dict.fromkeys(heard))
    for arm, rounds in simulation.rounds():
        assert max(number for name, number in listener.heard if name == arm) == rounds


def test_another_experiment_is_not_continued(hospitals: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing to continue"):
        run(hospitals, tmp_path / "new", a_study(), resume=True)
    with pytest.raises(Interrupted):
        Simulation(a_study(), hospitals, tmp_path).run(Stops("federated", 1))
    with pytest.raises(StudyError, match="another study or seed"):
        run(hospitals, tmp_path, a_study(seed=4), resume=True)
    # Without --resume the old rounds are not looked at.
    fresh = run(hospitals, tmp_path / "fresh", a_study(seed=4))
    assert run(hospitals, tmp_path, a_study(seed=4)) == fresh


def test_a_seed_on_the_command_line_is_that_of_the_study(tmp_path: Path) -> None:
    from fedward.common.study.load import EXAMPLE

    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE + '[simulation]\nsites = ["a.toml"]\n')
    assert Simulation.of(path, tmp_path).study.training.seed == 0
    simulation = Simulation.of(path, tmp_path / "out", seed=9, resume=True)
    assert simulation.study.training.seed == 9
    assert (simulation.folder, simulation.out, simulation.resume) == (
        tmp_path,
        tmp_path / "out",
        True,
    )


def test_a_fresh_run_is_computed_as_it_is_asked_to_be(hospitals: Path, tmp_path: Path) -> None:
    """Not as the run that was in the folder before."""
    engines = [
        run(hospitals, tmp_path, a_study(), engine=engine)["engine"]["name"]
        for engine in ("stacked", "loop", "pool", "stacked")
    ]
    assert engines == ["stacked", "loop", "pool", "stacked"]


@pytest.mark.parametrize(("begun", "then"), [("loop", "auto"), ("stacked", "loop")])
def test_a_resumed_run_is_computed_as_it_began(
    begun: Any, then: Any, hospitals: Path, tmp_path: Path
) -> None:
    study = a_study(**PRIVATE)
    expected = run(hospitals, tmp_path / "unbroken", study, engine=begun)
    out = tmp_path / "broken"
    with pytest.raises(Interrupted):
        Simulation(study, hospitals, out, engine=begun).run(Stops("federated", 1))
    found = run(hospitals, out, study, resume=True, engine=then)
    assert found["engine"] == expected["engine"]
    assert found["metrics"]["federated"] == expected["metrics"]["federated"]
