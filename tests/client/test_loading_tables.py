"""Cohorts from tables: what cleaning makes of cells, and how rows become patients."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.cohort import Cohort
from fedward.client.loading import load_cohort
from fedward.client.site_config import SiteConfig
from fedward.client.split import assign_test
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE
from fedward.common.table import MISSING, FeatureTable

KEY = b"secret"
SEX = {"name": "sex", "type": "categorical", "categories": ["male", "female"]}


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


def rows(*cells: str, target: str = "no,yes") -> str:
    """A CSV of one feature `x`: two patients on each side of the split, one of each class."""
    outcome = target.split(",")
    lines = [f"{n},{cell},{outcome[n % 2]},{'a' if n < 2 else 'b'}" for n, cell in enumerate(cells)]
    return "id,x,died,part\n" + "\n".join(lines) + "\n"


PART = {"column": "part", "train": "a", "test": "b"}


def test_numbers_are_scaled_and_shifted(tmp_path: Path) -> None:
    protocol = study([{"name": "x", "min": 0.0, "max": 100.0}])
    fahrenheit = {"scale": 5 / 9, "offset": -160 / 9}
    cohort = load(
        tmp_path, protocol, rows("32", "212", " 50 ", "1e2"), split=PART, features={"x": fahrenheit}
    )
    np.testing.assert_allclose(
        table_of(cohort).numeric[:, 0], [0.0, 100.0, 10.0, 340 / 9], atol=1e-5
    )
    assert cohort.target.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert cohort.test.tolist() == [False, False, True, True]
    assert cohort.patient.tolist() == [0, 1, 2, 3]
    assert table_of(cohort).numeric.dtype == np.float32
    assert cohort.target.dtype == np.float32


def test_a_bound_that_float32_cannot_hold_is_inside(tmp_path: Path) -> None:
    protocol = study([{"name": "x", "min": 0.1, "max": 0.3}])
    load(tmp_path, protocol, rows("0.1", "0.3", "0.2", "0.25"), split=PART)


def test_missing_and_null_values(tmp_path: Path) -> None:
    protocol = study([{"name": "x", "missing": "impute"}])
    cohort = load(
        tmp_path, protocol, rows("", " ? ", "nan", "4"), split=PART, source={"null_values": ["?"]}
    )
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 0], [np.nan, np.nan, np.nan, 4.0])


@pytest.mark.parametrize(
    ("policy", "expected"), [("clip", [0.0, 9.0, 5.0, 10.0]), ("missing", [np.nan, 9.0, 5.0, 10.0])]
)
def test_out_of_range(tmp_path: Path, policy: str, expected: list[float]) -> None:
    protocol = study(
        [{"name": "x", "min": 0.0, "max": 10.0, "missing": "impute"}],
        data={"out_of_range": policy},
    )
    cohort = load(tmp_path, protocol, rows("-3", "9", "5", "10"), split=PART)
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 0], expected)


def test_categories_listed_in_the_study(tmp_path: Path) -> None:
    protocol = study(
        [{**SEX, "name": "x", "missing": "impute"}], data={"unknown_category": "missing"}
    )
    cohort = load(
        tmp_path,
        protocol,
        rows("M", "female", "", "other"),
        split=PART,
        features={"x": {"values": {"M": "male"}}},
    )
    assert table_of(cohort).codes[:, 0].tolist() == [0, 1, MISSING, MISSING]
    assert table_of(cohort).levels == (("male", "female"),)
    assert table_of(cohort).numeric.shape == (4, 0)


def test_categories_as_they_occur(tmp_path: Path) -> None:
    protocol = study([{"name": "x", "type": "categorical", "missing": "impute"}])
    cohort = load(tmp_path, protocol, rows("zeta", "alpha", "", "zeta"), split=PART)
    assert table_of(cohort).levels == (("alpha", "zeta"),)
    assert table_of(cohort).codes[:, 0].tolist() == [1, 0, MISSING, 1]
    assert table_of(cohort).codes.dtype == np.int32


def test_whole_numbers_are_one_category_however_written(tmp_path: Path) -> None:
    protocol = study([{"name": "x", "type": "categorical", "categories": ["1", "2.0"]}])
    cohort = load(tmp_path, protocol, rows("1", "1.0", "2", "2.00"), split=PART)
    assert table_of(cohort).codes[:, 0].tolist() == [0, 0, 1, 1]
    assert table_of(cohort).levels == (("1", "2.0"),)


def test_booleans(tmp_path: Path) -> None:
    protocol = study([{"name": "x", "type": "boolean", "missing": "impute"}])
    cohort = load(
        tmp_path,
        protocol,
        rows("Yes", "0.0", "", "smokes"),
        split=PART,
        features={"x": {"values": {"smokes": True}}},
    )
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 0], [1.0, 0.0, np.nan, 1.0])


def test_columns_follow_the_study_not_the_file(tmp_path: Path) -> None:
    protocol = study([{"name": "b", "type": "boolean"}, SEX, {"name": "a"}])
    csv = "a,id,died,sex,b\n" + "".join(
        f"{n},p{n},{'no' if n % 2 else 'yes'},{'male' if n % 3 else 'female'},{n % 2}\n"
        for n in range(40)
    )
    cohort = load(tmp_path, protocol, csv)
    places = np.arange(40)
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 0], places % 2)
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 1], places)
    np.testing.assert_array_equal(table_of(cohort).codes[:, 0], (places % 3 == 0).astype(int))


def test_target_values_and_threshold(tmp_path: Path) -> None:
    protocol = study([{"name": "x"}])
    values = {"values": {"0": "no", "1": "yes", "2": "yes"}}
    mapped = load(tmp_path, protocol, rows(*"1234", target="0,2.0"), split=PART, target=values)
    cut = load(
        tmp_path, protocol, rows(*"1234", target="0,0.5"), split=PART, target={"threshold": 0.4}
    )
    assert mapped.target.tolist() == cut.target.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_regression_target_is_clipped_to_public_bounds(tmp_path: Path) -> None:
    protocol = study(
        [{"name": "x"}],
        data={"out_of_range": "clip"},
        task={"kind": "regression", "labels": [], "bounds": [0.0, 10.0]},
        evaluation={"metric": "rmse"},
    )
    cohort = load(tmp_path, protocol, rows(*"1234", target="-5,7.5"), split=PART)
    assert cohort.target.tolist() == [0.0, 7.5, 0.0, 7.5]


@pytest.mark.parametrize(("policy", "count"), [("drop", 5), ("keep", 6)])
def test_duplicates_are_rows_of_one_patient_alike_in_everything(
    tmp_path: Path, policy: str, count: int
) -> None:
    csv = "id,x,died,part,note\n" + "\n".join(
        ["p,1,no,a,first", "p,1,no,a,again", "p,2,no,a,", "q,1,no,b,", "r,5,yes,a,", "s,5,yes,b,"]
    )
    protocol = study([{"name": "x"}], data={"duplicates": policy})
    cohort = load(tmp_path, protocol, csv, split=PART)
    assert len(cohort) == count
    assert cohort.patients == 4
    alone = load(tmp_path, protocol, csv, split=PART, patients={"one_row_per_patient": True})
    assert len(alone) == alone.patients == 6


def many(patients: int, each: int = 1) -> str:
    lines = [
        f"{n:03d},{n + 1000 * k},{'no' if n % 2 else 'yes'},{n % 5}"
        for k in range(each)
        for n in range(patients)
    ]
    return "id,x,died,unit\n" + "\n".join(lines) + "\n"


def test_the_keyed_hash_divides_patients_not_rows(tmp_path: Path) -> None:
    protocol = study([{"name": "x"}])
    cohort = load(tmp_path, protocol, many(60, each=3))
    ids = [f"{n:03d}" for n in range(60)]
    expected = assign_test(ids, 0.5, KEY)
    np.testing.assert_array_equal(cohort.test, np.tile(expected, 3))
    np.testing.assert_array_equal(cohort.patient, np.tile(np.arange(60), 3))


def test_a_published_division_may_be_written_as_numbers(tmp_path: Path) -> None:
    csv = rows(*"1234").replace(",a\n", ",0\n").replace(",b\n", ",1.0\n")
    split = {"column": "part", "train": "0.0", "test": "1"}
    cohort = load(tmp_path, study([{"name": "x"}]), csv, split=split)
    assert cohort.test.tolist() == [False, False, True, True]


def test_leading_zeros_keep_patients_apart(tmp_path: Path) -> None:
    csv = "id,x,died,part\n007,1,no,a\n7,2,yes,a\n7.0,3,no,b\n0007,4,yes,b\n"
    assert load(tmp_path, study([{"name": "x"}]), csv, split=PART).patients == 4


def test_filter_compares_numbers_as_numbers(tmp_path: Path) -> None:
    protocol = study([{"name": "x"}])
    cohort = load(tmp_path, protocol, many(60), source={"filter": "x >= 9 AND unit <> 3"})
    kept = [n for n in range(60) if n >= 9 and n % 5 != 3]
    np.testing.assert_array_equal(table_of(cohort).numeric[:, 0], kept)


def test_filter_on_text_with_missing_cells(tmp_path: Path) -> None:
    csv = "id,x,died,ward\n" + "".join(
        f"{n},{n},{'no' if n % 2 else 'yes'},{['A', '', 'B'][n % 3]}\n" for n in range(90)
    )
    protocol = study([{"name": "x"}])
    named = load(tmp_path, protocol, csv, source={"filter": "ward = 'A'"})
    absent = load(tmp_path, protocol, csv, source={"filter": "ward IS NULL"})
    np.testing.assert_array_equal(table_of(named).numeric[:, 0], np.arange(0, 90, 3))
    np.testing.assert_array_equal(table_of(absent).numeric[:, 0], np.arange(1, 90, 3))


def test_kept_columns(tmp_path: Path) -> None:
    csv = "id,x,died,part,ward,age\n1,1,no,a,A,\n2,2,yes,a,,5\n3,3,no,b,C,6\n4,4,yes,b,D,7\n"
    cohort = load(tmp_path, study([{"name": "x"}]), csv, split=PART, keep=("ward", "age", "x"))
    assert cohort.extra["ward"].tolist() == ["A", "", "C", "D"]
    np.testing.assert_array_equal(cohort.extra["age"], [np.nan, 5.0, 6.0, 7.0])
    np.testing.assert_array_equal(cohort.extra["x"], [1.0, 2.0, 3.0, 4.0])
