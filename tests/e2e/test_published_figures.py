"""The acceptance figures on real data, by fedward's own study files; see benchmarks/flamby.py."""

from __future__ import annotations

import runpy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.data]


@pytest.fixture(scope="module")
def flamby(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "benchmarks" / "flamby.py"))


@pytest.fixture(autouse=True)
def _real_data(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_DATA", str(data_dir))


def rows(flamby: dict[str, Any], study: str, seeds: int = 5) -> dict[str, Any]:
    return {row.row: row for row in flamby["measure"](study, flamby["SEEDS"][:seeds])}


def test_fedavg_with_its_baselines(flamby: dict[str, Any]) -> None:
    found = rows(flamby, "heart-disease/fedavg")
    assert 0.66 <= found["federated"].accuracy <= 0.71
    baselines = [row for name, row in found.items() if name != "federated"]
    assert len(baselines) == 5
    for row in baselines:
        assert abs(row.accuracy - row.published) <= 0.02, row


def test_fedprox_is_fedavg_here(flamby: dict[str, Any]) -> None:
    prox = rows(flamby, "heart-disease/fedprox")["federated"].accuracy
    average = rows(flamby, "heart-disease/fedavg")["federated"].accuracy
    assert abs(prox - average) <= 0.005


@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi"])
def test_adaptive_servers(flamby: dict[str, Any], algorithm: str) -> None:
    assert rows(flamby, f"heart-disease/{algorithm}")["federated"].accuracy >= 0.71


def test_heart_disease_with_settings_of_our_own(flamby: dict[str, Any]) -> None:
    found = rows(flamby, "heart-disease/free")["federated"]
    assert found.accuracy >= 0.72
    assert found.auroc >= 0.87


def test_heart_disease_with_patient_level_privacy(flamby: dict[str, Any]) -> None:
    found = rows(flamby, "heart-disease/private")["federated"]
    assert found.accuracy >= 0.71
    assert found.epsilon <= 3.0


def test_diabetes(flamby: dict[str, Any]) -> None:
    assert rows(flamby, "diabetes/open", 1)["federated"].auroc >= 0.63


def test_diabetes_with_patient_level_privacy(flamby: dict[str, Any]) -> None:
    found = rows(flamby, "diabetes/private", 1)["federated"]
    assert found.auroc >= 0.60
    assert found.epsilon <= 8.0


def test_breast_cancer(flamby: dict[str, Any]) -> None:
    """Over five seeds: each draws other test patients, and other noise."""
    accuracies: dict[str, list[float]] = {"federated": [], "federated_no_dp": []}
    for seed in (7, 1, 2, 3, 4):
        result = flamby["run"]("breast-cancer/study", seed)
        assert max(p.epsilon for p in result.privacy.values()) <= 1.9
        for arm, found in accuracies.items():
            found.append(result.metrics[arm]["overall"]["accuracy"].value)
    assert fmean(accuracies["federated_no_dp"]) >= 0.96
    assert fmean(accuracies["federated"]) >= 0.95
