"""results.json: exact format, whole or not at all."""

from __future__ import annotations

import json
import resource
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedward.common.errors import OutputError
from fedward.common.study import parse_study
from fedward.common.study.load import EXAMPLE
from fedward.simulations.report.results import Estimate, Results, StudyInfo

sample_results = runpy.run_path(str(Path(__file__).with_name("report_sample.py")))["sample_results"]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    results = sample_results()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_the_promised_places_hold_the_promised_keys(tmp_path: Path) -> None:
    sample_results().save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content["metrics"]["federated"]["north"]["auroc"]) == {"value", "low", "high"}
    assert set(content["metrics"]) == {"local", "federated", "federated_no_dp", "pooled"}
    assert {"epsilon", "delta", "unit", "events"} <= set(content["privacy"]["north"])
    assert content["simulated"] is True
    assert "not for release" in content["notice"]


@given(st.sampled_from([float("nan"), float("inf"), float("-inf"), None]))
def test_undefined_is_null(value: float | None) -> None:
    assert json.loads(Estimate(value=value).model_dump_json())["value"] is None


def test_unknown_keys_and_real_runs_are_refused() -> None:
    content = sample_results().model_dump()
    with pytest.raises(ValidationError):
        Results(**(content | {"surprise": 1}))
    with pytest.raises(ValidationError):
        Results(**(content | {"simulated": False}))


def test_results_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        sample_results().seed = 3


def test_full_disk_is_one_error() -> None:
    with pytest.raises(OutputError, match="cannot write full: the disk is full"):
        sample_results().save(Path("/dev/full"))
    assert Path("/dev/full").is_char_device()  # it was not replaced by a file


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError):
            sample_results().save(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_missing_folder_and_strange_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        sample_results().save(tmp_path / "none" / "results.json")
    with pytest.raises(OutputError, match="cannot read"):
        Results.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"schema_version": 2}')
    with pytest.raises(OutputError, match="not a results file"):
        Results.load(tmp_path / "other.json")


def test_arms_come_in_a_fixed_order_and_unmeasured_is_null() -> None:
    results = sample_results()
    shuffled = dict(reversed(results.metrics.items()))
    assert sample_results(metrics=shuffled).arms == results.arms
    assert results.estimate("federated", "nowhere") == Estimate(value=None)


def test_study_info_comes_from_the_study() -> None:
    private = EXAMPLE.replace('mode = "none"', 'mode = "dp"\nepsilon = 3.0\ndelta = 1e-5')
    info = StudyInfo.of(parse_study(private), study_hash="a", simulation_hash="b")
    assert (info.epsilon, info.delta, info.private, info.metric) == (3.0, 1e-5, True, "auroc")
    info = StudyInfo.of(parse_study(EXAMPLE), study_hash="a", simulation_hash="b")
    assert (info.epsilon, info.private, info.rounds) == (None, False, 3)
