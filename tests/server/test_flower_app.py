"""The server app of the bundle: what it reads of a run's configuration, and how long it waits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from fedward.common.errors import StudyError
from fedward.common.study.load import EXAMPLE
from fedward.common.tensors import from_safetensors
from fedward.server.flower_app import app, wait_for_nodes, write_outcome
from fedward.simulations.engines.flaky import run_flaky
from fedward.simulations.engines.loop import LoopGrid
from fedward.simulations.fakes import make_cohorts, make_sites, small_study


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({}, "study"),
        ({"study": "", "folder": "/x"}, "study"),
        ({"study": "study.toml", "folder": "/x"}, "study"),
        ({"study": 3, "folder": "/x"}, "study"),
        ({"study": "{study}"}, "folder"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused_by_its_key(
    config: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(EXAMPLE)
    filled = {
        key: str(tmp_path / "study.toml") if value == "{study}" else value
        for key, value in config.items()
    }
    with pytest.raises(StudyError, match=f"names no {missing}"):
        app(LoopGrid(ClientApp(), {}), Context(5, 1, {}, RecordDict(), filled))


class Arriving(LoopGrid):
    """Nodes connect one by one, each time somebody looks."""

    def __init__(self) -> None:
        super().__init__(ClientApp(), {})
        self.looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return range(self.looks)


def test_it_waits_for_nodes_but_no_longer_than_the_deadline() -> None:
    times = iter(range(100))
    grid, slept = Arriving(), []
    wait_for_nodes(grid, 3, deadline_s=50.0, clock=lambda: next(times), sleep=slept.append)
    assert grid.looks == 3
    assert slept == [1.0, 1.0]
    grid = Arriving()
    wait_for_nodes(grid, 1000, deadline_s=5.0, clock=lambda: next(times), sleep=slept.append)
    assert grid.looks == 5


def test_a_finished_run_is_left_in_its_folder(tmp_path: Path) -> None:
    study = small_study()
    outcome = run_flaky(study, make_sites(study, make_cohorts(study, 2)))
    write_outcome(tmp_path, outcome)
    found = from_safetensors((tmp_path / "weights.safetensors").read_bytes())
    for name, value in outcome.weights.items():
        assert found[name].tobytes() == value.tobytes()
    history = json.loads((tmp_path / "history.json").read_text())
    assert [record["round"] for record in history] == [1, 2]
    assert (tmp_path / "preprocessing.json").read_text() == outcome.transform.to_json()
