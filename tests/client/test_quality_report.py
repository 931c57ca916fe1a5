"""The quality report: counts against hand-made data, and all that stays readable of bad data."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console

from fedward.client.quality import NOTICE, QualityReport, check_quality, render
from fedward.client.site_config import SiteConfig
from fedward.common.study import Study, study_hash
from fedward.common.study.load import EXAMPLE

ROWS = """id,weight,sex,smoker,died
a,50,male,1,no
a,50,male,1,no
b,,female,0,yes
c,500,divers,,no
d,heavy,male,maybe,yes
e,inf,[b]x,1,perhaps
,70,male,0,no
"""
FEATURES = [
    {"name": "weight", "min": 0.0, "max": 300.0, "missing": "impute"},
    {"name": "sex", "type": "categorical", "categories": ["male", "female"], "missing": "impute"},
    {"name": "smoker", "type": "boolean", "missing": "impute"},
]


def study(**data: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": FEATURES, **data}
    return Study.model_validate(table)


def site(folder: Path, text: str) -> SiteConfig:
    (folder / "p.csv").write_text(text)
    source = {"kind": "csv", "path": str(folder / "p.csv")}
    table = {"site": {"name": "north"}, "source": source, "patients": {"column": "id"}}
    return SiteConfig.model_validate(table)


def shown(report: QualityReport) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get()


def test_everything_is_counted(tmp_path: Path) -> None:
    report = check_quality(study(), site(tmp_path, ROWS))
    assert (report.rows, report.duplicates) == (7, 1)
    assert report.rows_per_patient_max == 1  # after the duplicate is dropped
    weight, sex, smoker = report.features
    assert (weight.missing, weight.malformed, weight.infinite, weight.out_of_range) == (1, 1, 1, 2)
    assert (weight.minimum, weight.maximum) == (50.0, 500.0)
    assert weight.mean == (50 + 50 + 500 + 70) / 4
    assert (sex.unknown, sex.unknown_values) == (2, ("[b]x", "divers"))
    assert (smoker.missing, smoker.malformed) == (1, 1)
    assert report.target is not None
    assert report.target.unknown_values == ("perhaps",)
    assert report.classes == {"no": 3, "yes": 2}
    assert not report.usable
    assert len(report.problems) >= 6
    assert report.study_hash == study_hash(study())


def test_it_can_be_read_and_parsed(tmp_path: Path) -> None:
    report = check_quality(study(), site(tmp_path, ROWS))
    text = shown(report)
    for word in ("north", "weight", "1 not readable", "unknown: [b]x, divers", "stays at the site"):
        assert word in text
    table = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert table["notice"] == NOTICE
    assert table["features"][0]["out_of_range"] == 2
    assert table["usable"] is False


GOOD = "id,weight,sex,smoker,died\n" + "".join(
    f"{n % 40},{50 + n},male,0,{'no' if n % 2 else 'yes'}\n" for n in range(60)
)


def test_good_data_are_said_to_be_good(tmp_path: Path) -> None:
    report = check_quality(study(), site(tmp_path, GOOD))
    assert report.usable
    assert (report.patients, report.rows_per_patient_max, report.duplicates) == (40, 2, 0)
    assert report.patients_training is None  # without the key nobody can know
    assert "The study takes these data." in shown(report)
    keyed = check_quality(study(), site(tmp_path, GOOD), key=b"key")
    assert keyed.patients_training is not None
    assert keyed.patients_testing is not None
    assert keyed.patients_training + keyed.patients_testing == 40
    assert 0 < keyed.patients_testing < 25


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    report = check_quality(study(), site(tmp_path, "id,weight\na,1\n"))
    assert len(report.problems) == 3
    assert report.rows is None
    assert "has no column smoker" in shown(report)


def test_an_empty_table_is_a_report_too(tmp_path: Path) -> None:
    report = check_quality(study(), site(tmp_path, GOOD.splitlines()[0] + "\n"))
    assert report.rows == 0
    assert report.problems == ("p.csv has no rows: check the file",)
    assert "has no rows" in shown(report)


def test_regression_has_no_classes(tmp_path: Path) -> None:
    table = tomllib.loads(EXAMPLE)
    table["task"] = {"kind": "regression", "target": "weight"}
    table["data"] = {"modality": "tabular", "features": FEATURES[1:]}
    table["evaluation"] = {"metric": "mae"}
    report = check_quality(Study.model_validate(table), site(tmp_path, GOOD))
    assert report.classes is None
    assert report.usable
