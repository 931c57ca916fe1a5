"""The same rows from files of every kind: separators, gzip, Parquet and its types."""

from __future__ import annotations

import gzip
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.client.cohort import Cohort
from fedward.client.loading import load_cohort
from fedward.client.site_config import SiteConfig
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE
from fedward.common.table import FeatureTable

KEY = b"secret"
PART = {"column": "part", "train": "a", "test": "b"}


def study(features: list[dict[str, Any]], **changes: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": features, **changes.pop("data", {})}
    table["evaluation"] = {"holdout": 0.5}
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}
    return Study.model_validate(table)


def load(
    folder: Path, protocol: Study, csv: str, *, keep: tuple[str, ...] = (), **site: Any
) -> Cohort:
    (folder / "p.csv").write_text(csv, encoding="utf-8")
    source = {"kind": "csv", "path": str(folder / "p.csv"), **site.pop("source", {})}
    table = {"site": {"name": "north"}, "source": source, "patients": {"column": "id"}, **site}
    return load_cohort(protocol, SiteConfig.model_validate(table), key=KEY, keep=keep)


def table_of(cohort: Cohort) -> FeatureTable:
    assert isinstance(cohort.features, FeatureTable)
    return cohort.features


def many(patients: int, each: int = 1) -> str:
    lines = [
        f"{n:03d},{n + 1000 * k},{'no' if n % 2 else 'yes'},{n % 5}"
        for k in range(each)
        for n in range(patients)
    ]
    return "id,x,died,unit\n" + "\n".join(lines) + "\n"


def test_semicolons_decimal_commas_and_no_header(tmp_path: Path) -> None:
    csv = "1;1,5;no;a\n2;2,5;yes;a\n3;3;no;b\n4;4;yes;b\n"
    source = {
        "separator": ";",
        "decimal_comma": True,
        "has_header": False,
        "columns": ["id", "x", "died", "part"],
    }
    cohort = load(tmp_path, study([{"name": "x"}]), csv, split=PART, source=source)
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 0], [1.5, 2.5, 3.0, 4.0])


def test_gzip_parquet_and_csv_are_the_same_cohort(tmp_path: Path) -> None:
    protocol = study([{"name": "x"}])
    plain = load(tmp_path, protocol, many(50))
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(many(50).encode()))
    pl.read_csv(tmp_path / "p.csv", schema_overrides={"id": pl.String}).write_parquet(
        tmp_path / "p.parquet"
    )
    for kind, name in (("csv", "p.csv.gz"), ("parquet", "p.parquet")):
        table = {
            "site": {"name": "north"},
            "source": {"kind": kind, "path": str(tmp_path / name)},
            "patients": {"column": "id"},
        }
        other = load_cohort(protocol, SiteConfig.model_validate(table), key=KEY)
        np.testing.assert_array_equal(other.test, plain.test)
        np.testing.assert_array_equal(other.target, plain.target)
        np.testing.assert_array_equal(table_of(other).numeric, table_of(plain).numeric)


def test_parquet_types(tmp_path: Path) -> None:
    """Integers, booleans, categories and numeric stand-ins for missing values."""
    frame = pl.DataFrame(
        {
            "id": list(range(30)),
            "n": [-999, *range(29)],
            "b": [n % 2 == 0 for n in range(30)],
            "c": pl.Series(["u", "v"] * 15, dtype=pl.Categorical),
            "died": [float(n % 2) for n in range(30)],
        }
    )
    frame.write_parquet(tmp_path / "p.parquet")
    protocol = study(
        [
            {"name": "n", "missing": "impute"},
            {"name": "b", "type": "boolean"},
            {"name": "c", "type": "categorical", "categories": ["u", "v"]},
        ],
        task={"labels": ["0", "1"]},
    )
    table = {
        "site": {"name": "north"},
        "source": {"kind": "parquet", "path": str(tmp_path / "p.parquet"), "null_values": ["-999"]},
        "patients": {"column": "id"},
    }
    cohort = load_cohort(protocol, SiteConfig.model_validate(table), key=KEY)
    np.testing.assert_array_equal(table_of(cohort).numeric[:3, 0], [np.nan, 0.0, 1.0])
    np.testing.assert_array_equal(table_of(cohort).numeric[:3, 1], [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(table_of(cohort).codes[:, 0], np.arange(30) % 2)
    np.testing.assert_array_equal(cohort.target, np.arange(30) % 2)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_every_float_survives_the_way_through_a_csv(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    cells = [repr(value) for value in values] * 2
    folder = tmp_path_factory.mktemp("csv")
    lines = [f"{n},{c},{n % 2}" for n, c in enumerate(cells)]
    csv = "id,x,died\n" + "\n".join(lines) + "\n"
    protocol = study([{"name": "x"}], data={"single_class": "allow"}, evaluation={"holdout": 0.5})
    train = {"values": {"0": "no", "1": "yes"}}
    split = {"column": "died", "train": "0", "test": "1"}
    cohort = load(folder, protocol, csv, target=train, split=split)
    np.testing.assert_array_equal(
        table_of(cohort).numeric[:, 0], np.array(values * 2, dtype=np.float32)
    )
