"""Every way a table can be unusable: one line, a way out, and nothing of a patient in it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedward.client.loading import load_cohort
from fedward.client.quality import check_quality
from fedward.client.site_config import SiteConfig
from fedward.common.errors import DataError, FedwardError, SiteConfigError
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE

GOOD = [
    "id,x,c,b,died,part",
    "p-4711,1.25,red,1,no,a",
    "p-4712,2.25,blue,0,yes,a",
    "p-4713,3.25,red,1,no,b",
    "p-4714,4.25,blue,0,yes,b",
]
FEATURES = [
    {"name": "x", "min": 0.0, "max": 10.0},
    {"name": "c", "type": "categorical", "categories": ["red", "blue"]},
    {"name": "b", "type": "boolean"},
]
SECRETS = ("4711", "4712", "4713", "4714", "1.25", "2.25", "3.25", "4.25", "zyxw", "98765")
"""Cells of patients; no message may hold one."""


def study(**changes: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": FEATURES}
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}
    return Study.model_validate(table)


def config(folder: Path, lines: list[str], **changes: Any) -> SiteConfig:
    (folder / "p.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"kind": "csv", "path": str(folder / "p.csv"), **changes.pop("source", {})}
    table = {
        "site": {"name": "north"},
        "source": source,
        "patients": {"column": "id"},
        "split": {"column": "part", "train": "a", "test": "b"},
        **changes,
    }
    return SiteConfig.model_validate(table)


def edited(line: int, old: str, new: str) -> list[str]:
    lines = list(GOOD)
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    return lines


def refusal(protocol: Study, site: SiteConfig, kind: type[FedwardError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        load_cohort(protocol, site, key=b"key")
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint
    assert not [secret for secret in SECRETS if secret in text]
    return text


def test_the_good_table_is_good(tmp_path: Path) -> None:
    assert len(load_cohort(study(), config(tmp_path, GOOD), key=b"key")) == 4


CELLS = [
    (edited(1, "1.25", "98765"), "feature x has values outside the study's bounds 0 … 10"),
    (edited(1, "1.25", "zyxw"), "feature x has values that are not finite numbers"),
    (edited(1, "1.25", "inf"), "feature x has values that are not finite numbers"),
    (edited(1, "1.25", ""), "feature x is missing in some rows"),
    (edited(1, "red", "zyxw"), "feature c has values that are none of the study's categories"),
    (edited(1, ",1,no", ",zyxw,no"), "feature b has values that are neither yes nor no"),
    (edited(1, "no", "zyxw"), "target died has values that are none of the study's labels"),
    (edited(1, "no", ""), "some rows have no value of the target died"),
    (edited(1, "p-4711", ""), "some rows have no patient identifier"),
    (edited(1, "no,a", "no,zyxw"), "mean neither training nor testing"),
    (edited(1, "no,a", "no,"), "mean neither training nor testing"),
    (edited(3, "p-4713", "p-4711"), "rows in both training and testing"),
    (edited(2, "yes", "no"), "the training rows have one class of died only"),
    (edited(4, "yes", "no"), "the testing rows have one class of died only"),
    (edited(0, "x,c", "X_raw,c"), "p.csv has no column x"),
    (GOOD[:1], "p.csv has no rows"),
    (GOOD[:2], "fewer than two patients"),
    (GOOD[:3], "no patient is in the testing data"),
    ([GOOD[0], *GOOD[3:]], "no patient is in the training data"),
    ([*GOOD, "p-4715,3,red"], "some rows have no value of the target died"),
    ([*GOOD, "p-4715,3,red,1,no,a,7,8"], "p.csv cannot be read"),
    ([""], "p.csv cannot be read"),
    ([*GOOD[:2], edited(2, ",0,", ",,")[2], *GOOD[3:]], "feature b is missing in some rows"),
]


@pytest.mark.parametrize(("lines", "message"), CELLS)
def test_bad_cells(tmp_path: Path, lines: list[str], message: str) -> None:
    assert message in refusal(study(), config(tmp_path, lines))


def test_every_refusal_is_also_in_the_quality_report(tmp_path: Path) -> None:
    for lines, message in CELLS:
        site = config(tmp_path, lines)
        if "cannot be read" in message:
            with pytest.raises(DataError, match="cannot be read"):
                check_quality(study(), site)
            continue
        report = check_quality(study(), site)
        assert any(message in problem for problem in report.problems), message
        assert not [s for s in SECRETS for problem in report.problems if s in problem]


def test_all_missing_feature(tmp_path: Path) -> None:
    lines = [GOOD[0], *(",".join([*p[:1], "", *p[2:]]) for p in (q.split(",") for q in GOOD[1:]))]
    impute = [{**FEATURES[0], "missing": "impute"}, *FEATURES[1:]]
    text = refusal(study(data={"features": impute}), config(tmp_path, lines))
    assert "feature x has no usable value in any row" in text


def test_cleaning_that_leaves_nothing(tmp_path: Path) -> None:
    impute = [{**FEATURES[0], "max": 1.0, "missing": "impute"}, *FEATURES[1:]]
    protocol = study(data={"features": impute, "out_of_range": "missing"})
    assert "no usable value" in refusal(protocol, config(tmp_path, GOOD))
    strict = [{**FEATURES[0], "max": 2.0}, *FEATURES[1:]]
    protocol = study(data={"features": strict, "out_of_range": "missing"})
    assert "is missing in some rows" in refusal(protocol, config(tmp_path, GOOD))


def test_duplicates_can_be_refused(tmp_path: Path) -> None:
    protocol = study(data={"duplicates": "refuse"})
    text = refusal(protocol, config(tmp_path, [*GOOD, GOOD[-1]]))
    assert "repeat another row of the same patient" in text
    load_cohort(protocol, config(tmp_path, GOOD), key=b"key")


def test_one_class_can_be_allowed(tmp_path: Path) -> None:
    protocol = study(data={"single_class": "allow"})
    load_cohort(protocol, config(tmp_path, edited(2, "yes", "no")), key=b"key")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    site = config(tmp_path, GOOD, source={"path": str(tmp_path / "none.csv")})
    text = refusal(study(), site)
    assert "data file none.csv does not exist" in text
    assert str(tmp_path) not in text


def test_close_names_of_columns_are_offered_but_never_values(tmp_path: Path) -> None:
    lines = edited(0, "died", "diedd")
    assert "did you mean diedd" in refusal(study(), config(tmp_path, lines))
    text = refusal(study(), config(tmp_path, GOOD[1:]))  # a patient where the header should be
    assert "needs [source] columns" in text


def test_not_utf8_and_not_parquet(tmp_path: Path) -> None:
    site = config(tmp_path, GOOD)
    (tmp_path / "p.csv").write_bytes("\n".join(edited(1, "red", "é")).encode("latin-1"))
    assert "cannot be read" in refusal(study(), site)
    (tmp_path / "p.parquet").write_bytes(b"zyxw" * 100)
    source = {"kind": "parquet", "path": str(tmp_path / "p.parquet")}
    assert "cannot be read" in refusal(study(), config(tmp_path, GOOD, source=source))


@pytest.mark.parametrize("text", ["age >=< 3", "nothing > 3", "SELECT", "x", "x + 1", "id > 3"])
def test_filters_that_do_not_work(tmp_path: Path, text: str) -> None:
    site = config(tmp_path, GOOD, source={"filter": text})
    assert "[source] filter" in refusal(study(), site, SiteConfigError)


def test_a_filter_that_leaves_nobody(tmp_path: Path) -> None:
    site = config(tmp_path, GOOD, source={"filter": "x > 100"})
    assert "no rows that meet [source] filter" in refusal(study(), site)


def test_wrong_number_of_column_names(tmp_path: Path) -> None:
    site = config(tmp_path, GOOD, source={"columns": ["id", "x"]})
    assert "columns has 2 names" in refusal(study(), site, SiteConfigError)


def test_numeric_target_refusals(tmp_path: Path) -> None:
    task = {"kind": "regression", "labels": [], "bounds": [0.0, 1.0], "target": "x"}
    data = {"features": FEATURES[1:]}
    protocol = study(task=task, data=data, evaluation={"metric": "mae"})
    assert "outside the study's bounds" in refusal(protocol, config(tmp_path, GOOD))
    lines = edited(1, "1.25", "zyxw")
    assert "target x has values that are not finite" in refusal(protocol, config(tmp_path, lines))


def test_keyed_split_without_test_patients(tmp_path: Path) -> None:
    protocol = study(evaluation={"holdout": 1e-9})
    text = refusal(protocol, config(tmp_path, GOOD, split=None))
    assert "no patient is in the testing data: the site has too few patients" in text
