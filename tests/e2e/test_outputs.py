"""What a simulation writes can be recomputed, agrees with itself, and is the same every time."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)

from fedward.client.loading import load_cohort
from fedward.client.site_config import load_site_config
from fedward.common.privacy.accounting import spent
from fedward.common.privacy.events import event_from_dict
from fedward.common.study import load_study

ROUNDS = 4
ARMS = {"local", "federated", "federated_no_dp", "pooled"}


@dataclass(frozen=True)
class Twice:
    """The breast-cancer example with fewer rounds, run twice in processes of their own."""

    example: Path
    first: Path
    second: Path

    @property
    def results(self) -> dict[str, Any]:
        return dict(json.loads((self.first / "results.json").read_text()))

    @property
    def predictions(self) -> pl.DataFrame:
        return pl.read_parquet(self.first / "predictions.parquet")


@pytest.fixture(scope="module")
def twice(repository: Path, tmp_path_factory: pytest.TempPathFactory, fedward: Any) -> Twice:
    folder = tmp_path_factory.mktemp("breast-cancer")
    for name in ("study.toml", "site.toml"):
        text = (repository / "examples" / "breast-cancer" / name).read_text()
        text = re.sub(r"^rounds = \d+", f"rounds = {ROUNDS}", text, flags=re.MULTILINE)
        text = text.replace("[evaluation]", "[evaluation]\nbootstrap = 100")
        (folder / name).write_text(text)
    for name, env in (("first", {"PYTHONHASHSEED": "1"}), ("second", {"PYTHONHASHSEED": "2"})):
        done = fedward("simulate", "study.toml", "--out", name, cwd=folder, env=env)
        assert (done.code, done.errors) == (0, [])
    return Twice(folder, folder / "first", folder / "second")


def test_two_processes_give_the_same_bytes(twice: Twice) -> None:
    contents = []
    for out in (twice.first, twice.second):
        results = json.loads((out / "results.json").read_text())
        assert results.pop("timing")["seconds"] > 0
        files = [out / "predictions.parquet", *sorted((out / "model").iterdir())]
        contents.append((results, {path.name: path.read_bytes() for path in files}))
    assert contents[0] == contents[1]


def test_another_seed_gives_other_noise(twice: Twice, warm: Any) -> None:
    done = warm("simulate", "study.toml", "--out", "other", "--seed", 8, cwd=twice.example)
    assert done.code == 0
    other = pl.read_parquet(twice.example / "other" / "predictions.parquet")
    assert not other["score"].equals(twice.predictions["score"])


def test_every_metric_can_be_recomputed(twice: Twice) -> None:
    metrics, table = twice.results["metrics"], twice.predictions
    assert set(metrics) == ARMS == set(table["arm"].unique())
    checked = 0
    for arm, places in metrics.items():
        for place, found in places.items():
            rows = table.filter(pl.col("arm") == arm)
            if place != "overall":
                rows = rows.filter(pl.col("site") == place)
            truth, score = rows["truth"].to_numpy(), rows["score"].to_numpy().astype(np.float64)
            said = score >= 0.5
            wanted = {
                "auroc": roc_auc_score(truth, score),
                "auprc": average_precision_score(truth, score),
                "accuracy": accuracy_score(truth, said),
                "balanced_accuracy": balanced_accuracy_score(truth, said),
                "sensitivity": recall_score(truth, said),
                "specificity": recall_score(truth, said, pos_label=0),
                "f1": f1_score(truth, said),
                "brier": brier_score_loss(truth, score),
            }
            for name, value in wanted.items():
                assert found[name]["value"] == pytest.approx(value, abs=1e-6), (arm, place, name)
                assert found[name]["low"] <= found[name]["value"] + 1e-9
                checked += 1
    assert checked == len(ARMS) * 5 * 8


def test_test_patients_are_counted_once_in_every_arm(twice: Twice) -> None:
    table, results = twice.predictions, twice.results
    keys = table.select("site", "row", "patient", "truth", "arm")
    by_arm = [part.drop("arm") for part in keys.partition_by("arm", maintain_order=True)]
    assert all(part.equals(by_arm[0]) for part in by_arm)
    for site in results["sites"]:
        assert (by_arm[0]["site"] == site["name"]).sum() == site["test_rows"]
        assert sum(site["classes"].values()) == site["train_rows"] + site["test_rows"]
    assert sum(s["train_rows"] + s["test_rows"] for s in results["sites"]) == 569


def test_predict_gives_the_scores_of_the_simulation(twice: Twice, fedward: Any) -> None:
    """The bundle, applied to the raw table, against the scores of the federated arm."""
    study = load_study(twice.example / "study.toml")
    config = load_site_config(twice.example / "site.toml")
    key = f"fedward simulation, seed {study.training.seed}".encode()
    test = load_cohort(study, config, key=key).test
    raw = load_breast_cancer()
    table = pl.DataFrame({str(n): raw.data[:, i] for i, n in enumerate(raw.feature_names)})
    table = table.with_columns(pl.Series("malignant", raw.target == 0)).filter(test)
    table.drop("malignant").write_csv(twice.example / "patients.csv")
    done = fedward("predict", "first/model", "patients.csv", cwd=twice.example)
    assert done.code == 0, done.err
    assert "simulated" in done.err
    scores = pl.read_csv(done.out.encode())["probability_malignant"].to_numpy()
    federated = twice.predictions.filter(pl.col("arm") == "federated")
    order, expected = np.argsort(scores, kind="stable"), np.sort(federated["score"].to_numpy())
    np.testing.assert_allclose(scores[order], expected, atol=1e-6)
    # The same patients are ill, whatever the order of sites.
    auroc = roc_auc_score(table["malignant"].to_numpy(), scores)
    found = twice.results["metrics"]["federated"]["overall"]["auroc"]["value"]
    assert found == pytest.approx(auroc, abs=1e-6)


def test_the_bundle_alone_gives_the_scores(twice: Twice) -> None:
    """Weights and frozen preprocessing by hand: no torch, none of fedward's code."""
    weights = load_file(twice.first / "model" / "weights.safetensors")
    columns = json.loads((twice.first / "model" / "preprocessing.json").read_text())["numeric"]
    features = json.loads((twice.first / "model" / "study.json").read_text())["data"]["features"]
    raw = np.clip(
        load_breast_cancer().data, [f["min"] for f in features], [f["max"] for f in features]
    )
    mean, deviation = ([column[key] for column in columns] for key in ("mean", "deviation"))
    inputs = (raw - mean) / deviation
    scores = expit(inputs @ weights["weight"][0] + weights["bias"][0])
    federated = twice.predictions.filter(pl.col("arm") == "federated")["score"].to_numpy()
    distance = np.abs(scores[:, None] - federated[None, :]).min(axis=0)
    assert distance.max() < 1e-5


def test_privacy_spent_is_what_the_events_cost(twice: Twice) -> None:
    results, study = twice.results, load_study(twice.example / "study.toml")
    assert set(results["privacy"]) == {site["name"] for site in results["sites"]}
    for name, site in results["privacy"].items():
        by_group: dict[str, list[Any]] = {"training": [], "testing": []}
        for charge in site["events"]:
            by_group[charge["group"]].append(charge["event"])
        assert len(by_group["training"]) >= ROUNDS
        costs = []
        for group, events in by_group.items():
            ours = spent([event_from_dict(event) for event in events], site["delta"])
            costs.append(ours.epsilon)
            assert site[group] == pytest.approx(ours.epsilon, abs=1e-9), (name, group)
            assert ours.epsilon == pytest.approx(directly(events, site["delta"]), rel=0.01)
        assert site["epsilon"] == pytest.approx(max(costs), abs=1e-9), name
        assert 0 < site["epsilon"] <= study.privacy.epsilon
        assert site["epsilon"] > 0.9 * study.privacy.epsilon, "the budget is for spending"
        assert site["delta"] == study.privacy.delta
        assert site["unit"] == "patient"
        assert list(site["per_round"]) == sorted(site["per_round"])
        assert site["per_round"][-1] == pytest.approx(site["training"], rel=1e-6)
        # What ran is what was planned: expected batch over patients, steps times rounds.
        patients = next(s["train_patients"] for s in results["sites"] if s["name"] == name)
        sampled = [e for e in by_group["training"] if "steps" in e]
        q = study.training.batch_size / patients
        assert [e["sampling_probability"] for e in sampled] == pytest.approx([q] * len(sampled))
        assert sum(e["steps"] for e in sampled) == ROUNDS * study.training.local_steps


def directly(events: list[dict[str, Any]], delta: float) -> float:
    """Epsilon by dp-accounting alone, from the numbers in results.json."""
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for event in events:
        release = GaussianDpEvent(event["noise_multiplier"])
        if "steps" in event:
            sampled = PoissonSampledDpEvent(event["sampling_probability"], release)
            accountant.compose(SelfComposedDpEvent(sampled, event["steps"]))
        else:
            accountant.compose(SelfComposedDpEvent(release, event.get("count", 1)))
    return float(accountant.get_epsilon(delta))


def test_the_bundle_says_that_it_is_not_for_release(twice: Twice) -> None:
    provenance = json.loads((twice.first / "model" / "provenance.json").read_text())
    assert provenance["simulated"] is True
    assert "not for release" in provenance["notice"]
    card = (twice.first / "model" / "MODEL_CARD.md").read_text()
    assert "not for release" in card
    assert "not for release" in twice.results["notice"]
    assert twice.results["study"]["hash"] in card or twice.results["study"]["hash"][:12] in card


def test_the_report_opens_without_a_network_and_names_everybody(twice: Twice) -> None:
    page = (twice.first / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    loaded = re.findall(r"""(?:src|href|data|action)\s*=\s*["']([^"']+)""", page)
    assert [target for target in loaded if not target.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!['\"]?(?:data:|#))|@import|<script|<iframe|<link", page) == []
    for site in twice.results["sites"]:
        assert site["name"] in page
    for word in ("Malignancy of breast masses", "not for release", "AUROC"):
        assert word in page
