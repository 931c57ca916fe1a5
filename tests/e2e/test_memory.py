"""Thousands of virtual sites fit into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

PATIENTS, FEATURES, SITES = 100_000, 20, 1_000
LIMIT_MB = 1_500

STUDY = """
[study]
name = "many-sites"
title = "A thousand virtual hospitals"
purpose = "Measure memory"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "ill"
labels = ["no", "yes"]
[data]
modality = "tabular"
[model]
name = "{model}"
[training]
rounds = 3
local_epochs = 1
batch_size = 20
learning_rate = 1.0
[algorithm]
name = "fedavg"
[privacy]
mode = "none"
[evaluation]
bootstrap = 0
[simulation]
source = "site.toml"
compare = []
[simulation.partition]
kind = "{partition}"
sites = {sites}
min_patients = 20
alpha = 50.0
"""

SITE = """
[site]
name = "all"
[source]
kind = "parquet"
path = "patients.parquet"
[patients]
column = "patient"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "partition"), [("logistic", "iid"), ("mlp", "quantity")])
def test_a_thousand_sites_over_a_hundred_thousand_patients(
    model: str, partition: str, tmp_path: Path, warm: Any
) -> None:
    draw = np.random.default_rng(0)
    table = {f"x{i}": draw.normal(size=PATIENTS) for i in range(FEATURES)}
    risk = table["x0"] + table["x1"] + draw.normal(size=PATIENTS)
    table["ill"] = np.where(risk > 0, "yes", "no")
    table["patient"] = np.arange(PATIENTS)
    pl.DataFrame(table).write_parquet(tmp_path / "patients.parquet")
    (tmp_path / "site.toml").write_text(SITE)
    features = "".join(f'\n[[data.features]]\nname = "x{i}"\n' for i in range(FEATURES))
    text = STUDY.format(model=model, partition=partition, sites=SITES)
    (tmp_path / "study.toml").write_text(text + features)
    done = warm("simulate", "study.toml", cwd=tmp_path)
    assert (done.code, done.errors) == (0, [])
    results = json.loads((tmp_path / "OUT" / "results.json").read_text())
    assert len(results["sites"]) == SITES
    assert results["metrics"]["federated"]["overall"]["auroc"]["value"] > 0.85
    assert done.peak_mb < LIMIT_MB
