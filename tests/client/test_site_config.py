"""`site.toml`: what it accepts, what it refuses, and how it must fit a study."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedward.client.site_config import SiteConfig, load_site_config
from fedward.common.errors import SiteConfigError
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE

SMALLEST = """
[site]
name = "north"
[source]
kind = "csv"
path = "patients.csv"
[patients]
column = "mrn"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def study(**changes: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}
    return Study.model_validate(table)


def test_smallest_file_has_its_defaults(tmp_path: Path) -> None:
    config = load_site_config(write(tmp_path, SMALLEST))
    assert config.name == "north"
    assert config.feature("age").column == "age"
    assert config.feature("age").scale == 1.0
    assert config.locate("patients.csv") == tmp_path / "patients.csv"
    assert config.locate("/data/x.csv") == Path("/data/x.csv")
    config.check_fit(study())


def test_a_mapping_without_column_keeps_the_name_and_the_rest(tmp_path: Path) -> None:
    config = load_site_config(write(tmp_path, SMALLEST + "[features.age]\nscale = 2\n"))
    assert config.feature("age").column == "age"
    assert config.feature("age").scale == 2.0


def test_split_takes_one_value_or_several(tmp_path: Path) -> None:
    text = SMALLEST + '[split]\ncolumn = "part"\ntrain = ["train", "val"]\ntest = "test"\n'
    split = load_site_config(write(tmp_path, text)).split
    assert split is not None
    assert (split.train, split.test) == (("train", "val"), ("test",))


def test_environment_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SMALLEST.replace("patients.csv", "${FEDWARD_TEST_ROOT}/patients.csv")
    with pytest.raises(SiteConfigError, match="FEDWARD_TEST_ROOT, used in"):
        load_site_config(write(tmp_path, text))
    monkeypatch.setenv("FEDWARD_TEST_ROOT", "/data")
    config = load_site_config(write(tmp_path, text))
    assert config.source.path == "/data/patients.csv"


def test_frozen(tmp_path: Path) -> None:
    config = load_site_config(write(tmp_path, SMALLEST))
    with pytest.raises(ValidationError):
        config.site = config.site  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "[feature]\n", "unknown key feature: did you mean features"),
        (SMALLEST.replace("path", "pth"), "unknown key source.pth"),
        (SMALLEST.replace('"north"', '"North Hospital"'), "site.name"),
        (SMALLEST.replace('"north"', "3"), "site.name"),
        (SMALLEST.replace('path = "patients.csv"', ""), "'csv' needs path"),
        (SMALLEST.replace('"csv"', '"sklearn"'), "path is for kind"),
        (SMALLEST.replace('"csv"', '"excel"'), "source.kind"),
        (SMALLEST.replace('"csv"', '"images"'), "needs labels"),
        (SMALLEST + "one_row_per_patient = true", "exactly one of column and"),
        (SMALLEST.replace('column = "mrn"', ""), "exactly one of column and"),
        (SMALLEST + "[target]\nthreshold = 1.0\nvalues = {a = 'b'}\n", "values or threshold"),
        (SMALLEST + "[split]\ntrain = 'a'\ntest = 'a'\n", "both train and test"),
        (SMALLEST + "[features.age]\nscale = inf\n", "features.age.scale"),
        (SMALLEST.replace("[patients]", "has_header = false\n[patients]"), "needs columns"),
        (SMALLEST.replace("[patients]", "columns = ['a', 'a']\n[patients]"), "must differ"),
        ('[site]\nname = "north"\n', "source is missing"),
        ("[site\n", "not valid TOML"),
    ],
)
def test_refusals_are_one_line_and_say_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SiteConfigError) as caught:
        load_site_config(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match=r"cannot read site file none\.toml"):
        load_site_config(tmp_path / "none.toml")


def config(**changes: Any) -> SiteConfig:
    return SiteConfig.model_validate({**tomllib.loads(SMALLEST), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"agee": {}}}, "did you mean age"),
        ({"features": {"bloodpressure": {}}}, "not a feature of the study: remove it"),
        ({"features": {"age": {"values": {"a": "b"}}}}, "feature is numeric"),
        ({"source": {"kind": "medmnist", "path": "x.npz"}}, "does not fit a study on tabular"),
        ({"patients": None}, "which rows belong to one patient"),
        ({"target": {"values": {"0": "maybe"}}}, "not a label of the study: labels are no, yes"),
    ],
)
def test_must_fit_the_study(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteConfigError, match=message):
        config(**changes).check_fit(study())


def test_record_level_studies_need_no_patients() -> None:
    config(patients=None).check_fit(study(privacy={"unit": "record"}))


def test_scale_is_for_numbers_and_threshold_for_two_classes() -> None:
    boolean = study(data={"features": [{"name": "smoker", "type": "boolean"}]})
    with pytest.raises(SiteConfigError, match="the feature is boolean"):
        config(features={"smoker": {"scale": 2.0}}).check_fit(boolean)
    three = study(task={"kind": "multiclass", "labels": ["a", "b", "c"]})
    with pytest.raises(SiteConfigError, match="threshold does not fit a multiclass task"):
        config(target={"threshold": 0.0}).check_fit(three)
