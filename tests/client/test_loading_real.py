"""Real files: the four original heart-disease tables, a gzipped silo, scikit-learn's data."""

from __future__ import annotations

import csv
import gzip
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.loading import load_cohort
from fedward.client.quality import check_quality
from fedward.client.site_config import SiteConfig
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE
from fedward.common.table import FeatureTable

COLUMNS = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal num"


def study(features: list[dict[str, Any]], target: str, labels: list[str]) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": features, "single_class": "allow"}
    table["task"] = {"kind": "binary", "target": target, "labels": labels}
    return Study.model_validate(table)


def site(**source: Any) -> dict[str, Any]:
    return {
        "site": {"name": "north"},
        "source": source,
        "patients": {"one_row_per_patient": True},
    }


@pytest.mark.data
@pytest.mark.parametrize(
    ("hospital", "rows"),
    [("cleveland", 303), ("hungarian", 294), ("switzerland", 123), ("va", 200)],
)
def test_original_heart_files(data_dir: Path, hospital: str, rows: int) -> None:
    path = data_dir / "uci_heart" / f"processed.{hospital}.data"
    with path.open(newline="") as stream:
        expected = list(csv.reader(stream))
    features = [
        {"name": "age", "min": 0.0, "max": 120.0},
        {"name": "chol", "min": 0.0, "max": 1000.0, "missing": "impute"},
        {"name": "sex", "type": "boolean"},
        {"name": "cp", "type": "categorical", "categories": ["1", "2", "3", "4"]},
    ]
    table = site(kind="csv", path=str(path), null_values=["?"], columns=COLUMNS.split())
    table["target"] = {"column": "num", "threshold": 0.0}
    config = SiteConfig.model_validate(table)
    protocol = study(features, "ill", ["no", "yes"])
    assert check_quality(protocol, config).rows == rows
    cohort = load_cohort(protocol, config, key=b"key", keep=["thal"])
    assert isinstance(cohort.features, FeatureTable)
    assert len(cohort) == cohort.patients == rows
    np.testing.assert_array_equal(cohort.target, [float(row[13]) > 0 for row in expected])
    chol = [np.nan if row[4] == "?" else float(row[4]) for row in expected]
    np.testing.assert_array_equal(cohort.features.numeric[:, 1], np.float32(chol))
    np.testing.assert_array_equal(cohort.features.codes[:, 0], [float(r[2]) - 1 for r in expected])
    thal = [np.nan if row[12] == "?" else float(row[12]) for row in expected]
    np.testing.assert_array_equal(cohort.extra["thal"], thal)


@pytest.mark.data
def test_gzipped_silo_with_a_published_division(data_dir: Path) -> None:
    path = data_dir / "diabetes130" / "site_Cardiology.csv.gz"
    with gzip.open(path, "rt", newline="") as stream:
        expected = list(csv.DictReader(stream))
    names = ["time_in_hospital", "num_medications", "age"]
    table = site(kind="csv", path=str(path))
    table["split"] = {"column": "split"}
    protocol = study([{"name": name} for name in names], "readmit30", ["0", "1"])
    cohort = load_cohort(protocol, SiteConfig.model_validate(table), key=b"key")
    assert isinstance(cohort.features, FeatureTable)
    np.testing.assert_array_equal(cohort.test, [row["split"] == "test" for row in expected])
    np.testing.assert_array_equal(cohort.target, [float(row["readmit30"]) for row in expected])
    numbers = [[float(row[name]) for name in names] for row in expected]
    np.testing.assert_array_equal(cohort.features.numeric, np.float32(numbers))


def test_breast_cancer_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_breast_cancer()
    names = [str(name) for name in bunch.feature_names]
    protocol = study([{"name": name} for name in names], "diagnosis", ["benign", "malignant"])
    config = SiteConfig.model_validate(site(kind="sklearn", name="breast-cancer"))
    cohort = load_cohort(protocol, config, key=b"key")
    assert isinstance(cohort.features, FeatureTable)
    np.testing.assert_array_equal(cohort.features.numeric, np.float32(bunch.data))
    np.testing.assert_array_equal(cohort.target, 1 - bunch.target)  # there 0 is malignant


def test_diabetes_of_scikit_learn_is_a_regression() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": [{"name": "bmi"}]}
    table["task"] = {"kind": "regression", "target": "progression"}
    table["evaluation"] = {"metric": "mae"}
    config = SiteConfig.model_validate(site(kind="sklearn", name="diabetes"))
    cohort = load_cohort(Study.model_validate(table), config, key=b"key")
    np.testing.assert_array_equal(cohort.target, np.float32(datasets.load_diabetes().target))
