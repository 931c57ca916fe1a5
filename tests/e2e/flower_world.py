"""Hospitals with data, approvals and an offer, as a carrier of Flower's own finds them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from fedward.client.enrolment import make_site
from fedward.client.home import SiteFolder
from fedward.client.steward import Office, approve
from fedward.common.files import private_folder
from fedward.common.study import Study, canonical_json, study_hash

PATIENTS = 60

STUDY = """
[study]
name = "carried"
title = "Over another carrier"
purpose = "Test"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "ill"
labels = ["no", "yes"]
[data]
modality = "tabular"
[[data.features]]
name = "x0"
min = -4.0
max = 4.0
[[data.features]]
name = "x1"
min = -4.0
max = 4.0
[model]
name = "mlp"
hidden = [4]
[training]
rounds = 2
local_epochs = 2
batch_size = 8
learning_rate = 0.5
[algorithm]
name = "fedavgm"
[privacy]
mode = "none"
[aggregation]
weights = "size"
min_sites = 2
deadline_s = 120.0
"""

SITE = """
[site]
name = "{name}"
[source]
kind = "csv"
path = "patients.csv"
[patients]
column = "patient"
"""

POLICY = """
require_dp = false
approvers = ["Dr Example"]
"""


def make_hospital(folder: Path, name: str, study: Study, *, approved: bool = True) -> SiteFolder:
    home = make_site(folder / name, name)
    draw = np.random.default_rng([7, *name.encode()])
    x0, x1 = (np.clip(draw.normal(size=PATIENTS), -4, 4) for _ in range(2))
    table = {
        "patient": [f"{name}-{index}" for index in range(PATIENTS)],
        "x0": x0,
        "x1": x1,
        "ill": np.where(x0 - x1 + draw.normal(size=PATIENTS) > 0, "yes", "no"),
    }
    pl.DataFrame(table).write_csv(home.path / "patients.csv")
    home.site_file.write_text(SITE.format(name=name))
    home.policy_file.write_text(POLICY)
    private_folder(home.studies)
    offer = {"content": {"document": canonical_json(study)}}
    (home.studies / f"{study_hash(study)}.json").write_text(json.dumps(offer))
    if approved:
        office = Office.open(home.path)
        now = datetime(2026, 1, 5, 12)  # noqa: DTZ001  (local time)
        approve(office, study, home.load_key(), by="Dr Example", reason="A test", now=now)
    return home
