"""Other tasks than two classes, end to end: wines of three kinds, and the progress of diabetes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_diabetes, load_wine
from sklearn.metrics import accuracy_score, mean_squared_error, r2_score, roc_auc_score

STUDY = """
[study]
name = "{name}"
title = "A study of {name}"
purpose = "Show another kind of task"
contact = "nobody@example.org"

[task]
{task}

[data]
modality = "tabular"

[preprocess]
standardise = "federated"

[model]
name = "{model}"

[training]
rounds = 15
local_steps = 10
batch_size = 16
learning_rate = {rate}
seed = 3

[algorithm]
name = "fedprox"
mu = 0.01

[privacy]
mode = "none"

[evaluation]
holdout = 0.3
metric = "{metric}"
bootstrap = 100

[simulation]
source = "site.toml"
compare = ["local", "pooled"]
cross_site = true

[simulation.partition]
kind = "iid"
sites = 3
"""

SITE = """
[site]
name = "all"
[source]
kind = "sklearn"
name = "{name}"
[patients]
one_row_per_patient = true
[target]
column = "target"
"""


def write(folder: Path, name: str, features: list[str], **settings: str) -> None:
    listed = "".join(f'\n[[data.features]]\nname = "{feature}"\n' for feature in features)
    (folder / "study.toml").write_text(STUDY.format(name=name, **settings) + listed)
    (folder / "site.toml").write_text(SITE.format(name=name))


def results(folder: Path) -> tuple[dict[str, Any], pl.DataFrame]:
    out = folder / "OUT"
    table = pl.read_parquet(out / "predictions.parquet").filter(pl.col("arm") == "federated")
    return dict(json.loads((out / "results.json").read_text())), table


def test_three_classes(tmp_path: Path, warm: Any) -> None:
    wine = load_wine()
    labels = [f'"{name}"' for name in wine.target_names]
    write(
        tmp_path,
        "wine",
        list(wine.feature_names),
        task=f'kind = "multiclass"\ntarget = "cultivar"\nlabels = [{", ".join(labels)}]',
        model="logistic",
        rate="0.1",
        metric="auroc",
    )
    done = warm("simulate", "study.toml", cwd=tmp_path)
    assert (done.code, done.errors) == (0, [])
    found, table = results(tmp_path)
    metrics = found["metrics"]["federated"]["overall"]
    scores = table.select(f"score_{name}" for name in wine.target_names).to_numpy()
    truth = table["truth"].to_numpy().astype(int)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)
    assert metrics["accuracy"]["value"] == pytest.approx(
        accuracy_score(truth, scores.argmax(axis=1)), abs=1e-6
    )
    one_against_rest = [roc_auc_score(truth == k, scores[:, k]) for k in range(3)]
    assert metrics["auroc"]["value"] == pytest.approx(np.mean(one_against_rest), abs=1e-6)
    assert metrics["auroc"]["value"] > 0.98
    assert "class_0" in (tmp_path / "OUT" / "report.html").read_text()

    frame = {name: wine.data[:, i] for i, name in enumerate(wine.feature_names)}
    pl.DataFrame(frame).write_csv(tmp_path / "wines.csv")
    done = warm("predict", "OUT/model", "wines.csv", cwd=tmp_path)
    assert done.code == 0, done.err
    predicted = pl.read_csv(done.out.encode())
    truth = np.array([f"class_{k}" for k in wine.target])
    assert (predicted["predicted"].to_numpy() == truth).mean() > 0.93


def test_regression(tmp_path: Path, warm: Any) -> None:
    diabetes = load_diabetes(scaled=False)
    write(
        tmp_path,
        "diabetes",
        list(diabetes.feature_names),
        task='kind = "regression"\ntarget = "progression"\nbounds = [0.0, 400.0]',
        model="logistic",
        rate="0.05",
        metric="rmse",
    )
    done = warm("simulate", "study.toml", cwd=tmp_path)
    assert (done.code, done.errors) == (0, [])
    found, table = results(tmp_path)
    metrics = found["metrics"]["federated"]["overall"]
    truth, value = table["truth"].to_numpy(), table["score"].to_numpy()
    rmse = mean_squared_error(truth, value) ** 0.5
    assert metrics["rmse"]["value"] == pytest.approx(rmse, rel=1e-6)
    assert metrics["r2"]["value"] == pytest.approx(r2_score(truth, value), abs=1e-5)
    assert metrics["r2"]["value"] > 0.3
    assert "Warning" not in done.out

    frame = {name: diabetes.data[:, i] for i, name in enumerate(diabetes.feature_names)}
    pl.DataFrame(frame).write_csv(tmp_path / "patients.csv")
    done = warm("predict", "OUT/model", "patients.csv", cwd=tmp_path)
    assert done.code == 0, done.err
    predicted = pl.read_csv(done.out.encode())["value"].to_numpy()
    assert np.corrcoef(predicted, diabetes.target)[0, 1] > 0.6


@pytest.mark.parametrize(("rate", "code"), [("0.5", 0), ("1.0", 7)])
def test_a_regression_that_diverges_is_reported(
    rate: str, code: int, tmp_path: Path, warm: Any
) -> None:
    """Slowly, so that the rounds end before the numbers do, and fast."""
    write(
        tmp_path,
        "diabetes",
        list(load_diabetes().feature_names),
        task='kind = "regression"\ntarget = "progression"',
        model="logistic",
        rate=rate,
        metric="rmse",
    )
    done = warm("simulate", "study.toml", cwd=tmp_path)
    assert done.code == code, done.err
    if code == 0:
        assert "Warning: federated: its values are further from the truth" in done.out
    else:
        assert len(done.errors) == 1
        assert re.match(r"error: round \d+ stopped.*diverged.*learning_rate", done.errors[0])
