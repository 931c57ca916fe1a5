"""Scoring new patients: equal to the model computed by hand, and clear refusals for all else."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedward.client.predict import predict, write
from fedward.common.errors import (
    DataError,
    ModelError,
    OutputError,
    SiteConfigError,
)
from fedward.common.models.bundle import write_bundle
from fedward.common.models.provenance import Provenance
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import Transform
from fedward.common.preprocess.transform import CategoricalInput, NumericInput
from fedward.common.study.load import parse_study
from fedward.common.study.schema import Study

STUDY = """
[study]
name = "example"
title = "An example"
purpose = "Try predictions"
contact = "nobody@example.org"
[task]
{task}
[data]
modality = "tabular"
{rules}
[[data.features]]
name = "age"
unit = "years"
min = 0.0
max = 120.0
[[data.features]]
name = "smoker"
type = "boolean"
missing = "impute"
[[data.features]]
name = "sex"
type = "categorical"
categories = ["f", "m"]
missing = "indicator"
[[data.features]]
name = "ward"
type = "categorical"
missing = "impute"
[preprocess]
{preprocess}
[model]
{model}
[training]
rounds = 3
local_epochs = 1
batch_size = 32
learning_rate = 0.1
[algorithm]
name = "fedavg"
[privacy]
mode = "none"
{tail}
"""
BINARY = 'kind = "binary"\ntarget = "died"\nlabels = ["no", "yes"]'
MULTI = 'kind = "multiclass"\ntarget = "stage"\nlabels = ["i", "ii", "iii"]'
REGRESSION = 'kind = "regression"\ntarget = "days"'
LOGISTIC, MLP = 'name = "logistic"', 'name = "mlp"\nhidden = [5, 3]'

CSV = """patient_id,age,smoker,sex,ward,remark
007,50,yes,f,A,x
b,61.5,,m,C,
c,0,0,,,y
c,120,TRUE,m,B,y
"""
# age - 60 over 20; smoker with 0.25 for missing; f, m; A, B; "sex missing".
# Ward C is too rare to be known and is filled like a missing one, with B.
INPUTS = np.array(
    [
        [-0.5, 1.0, 1, 0, 1, 0, 0],
        [0.075, 0.25, 0, 1, 0, 1, 0],
        [-3.0, 0.0, 1, 0, 0, 1, 1],
        [3.0, 1.0, 0, 1, 0, 1, 0],
    ],
    np.float32,
)


def transform(*, scope: str = "federated", complete: bool = True) -> Transform:
    return Transform.model_validate(
        {
            "scope": scope,
            "complete": complete,
            "numeric": (
                NumericInput(name="age", mean=60.0, deviation=20.0, fill=0.0, missing="refuse"),
                NumericInput(name="smoker", mean=0.0, deviation=1.0, fill=0.25, missing="impute"),
            ),
            "categorical": (
                CategoricalInput(
                    name="sex", levels=("f", "m"), fill=0, missing="indicator", listed=True
                ),
                CategoricalInput(
                    name="ward", levels=("A", "B"), fill=1, missing="impute", listed=False
                ),
            ),
        }
    )


def make_study(**parts: str) -> Study:
    defaults = {"task": BINARY, "model": LOGISTIC, "rules": "", "preprocess": "", "tail": ""}
    return parse_study(STUDY.format(**{**defaults, **parts}))


def make_model(folder: Path, study: Study, frozen: Transform | None = None) -> Path:
    frozen = frozen or transform()
    module = build_module(study.model, (frozen.width,), study.task.outputs, seed=1)
    write_bundle(
        folder,
        study=study,
        weights=get_weights(module),
        transform_json=frozen.to_json(),
        provenance=Provenance.of(study, simulated=True),
    )
    return folder


def raw_outputs(study: Study, inputs: NDArray[np.float32] = INPUTS) -> Any:
    module = build_module(study.model, (inputs.shape[1],), study.task.outputs, seed=1)
    with torch.no_grad():
        return module(torch.from_numpy(inputs))


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    path.write_text(CSV)
    return path


@pytest.mark.parametrize("model", [LOGISTIC, MLP])
def test_binary_equals_the_model_by_hand(tmp_path: Path, patients: Path, model: str) -> None:
    study = make_study(model=model)
    table = predict(make_model(tmp_path / "model", study), patients).table
    assert table.columns == ["row", "patient_id", "probability_yes"]
    assert table["row"].to_list() == [1, 2, 3, 4]
    assert table["patient_id"].to_list() == ["007", "b", "c", "c"]
    expected = [1 / (1 + math.exp(-float(x))) for x in raw_outputs(study)[:, 0]]
    assert table["probability_yes"].to_list() == pytest.approx(expected, abs=1e-6)


def test_multiclass_and_regression(tmp_path: Path, patients: Path) -> None:
    study = make_study(task=MULTI, model=MLP)
    table = predict(make_model(tmp_path / "multi", study), patients).table
    probabilities = table.select("probability_i", "probability_ii", "probability_iii").to_numpy()
    exponents = np.exp(raw_outputs(study).numpy().astype(np.float64))
    np.testing.assert_allclose(
        probabilities, exponents / exponents.sum(axis=1, keepdims=True), atol=1e-6
    )
    assert table["predicted"].to_list() == [("i", "ii", "iii")[i] for i in exponents.argmax(1)]

    study = make_study(task=REGRESSION, tail='[evaluation]\nmetric = "rmse"')
    table = predict(make_model(tmp_path / "regression", study), patients).table
    assert table.columns == ["row", "patient_id", "value"]
    np.testing.assert_allclose(table["value"], raw_outputs(study)[:, 0], atol=1e-6)


def test_all_table_formats_agree(tmp_path: Path, patients: Path) -> None:
    model = make_model(tmp_path / "model", make_study())
    expected = predict(model, patients).table
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    pl.read_csv(patients, infer_schema=False).write_parquet(tmp_path / "text.parquet")
    typed = pl.read_csv(patients, schema_overrides={"patient_id": pl.String})
    typed.write_parquet(tmp_path / "typed.PARQUET")
    for name in ("p.csv.gz", "text.parquet", "typed.PARQUET"):
        assert predict(model, tmp_path / name).table.equals(expected), name


def test_order_of_columns_and_batches_do_not_matter(tmp_path: Path, patients: Path) -> None:
    model = make_model(tmp_path / "model", make_study())
    expected = predict(model, patients).table["probability_yes"]
    frame = pl.read_csv(patients, infer_schema=False)
    big = pl.concat([frame.select(sorted(frame.columns, reverse=True))] * 1100)
    big.drop("patient_id").write_csv(tmp_path / "big.csv")
    table = predict(model, tmp_path / "big.csv").table
    assert table.columns == ["row", "probability_yes"]
    np.testing.assert_allclose(table["probability_yes"], np.tile(expected, 1100), atol=1e-6)


def test_rules_of_the_study_for_values_it_does_not_allow(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("age,smoker,sex,ward\n150,1,x,A\n120,1,,A\n")
    rules = 'out_of_range = "clip"\nunknown_category = "missing"'
    study = make_study(rules=rules)
    table = predict(make_model(tmp_path / "model", study), path).table
    assert table["probability_yes"][0] == table["probability_yes"][1]
    study = make_study(rules='out_of_range = "missing"\nunknown_category = "missing"')
    with pytest.raises(DataError, match="age has no value that the study accepts in row 1"):
        predict(make_model(tmp_path / "other", study), path)


REFUSED = {
    "text": ("fifty,1,f,A", "age is not a number in row 2 of p.csv"),
    "infinite": ("inf,1,f,A", "age is infinite in row 2"),
    "missing": (",1,f,A", "age has no value that the study accepts in row 2"),
    "nan": ("nan,1,f,A", "age has no value that the study accepts in row 2"),
    "low": ("-0.5,1,f,A", "outside the study's bounds in row 2 .*0 to 120 years; check the unit"),
    "high": ("120.5,1,f,A", "outside the study's bounds in row 2"),
    "maybe": ("50,perhaps,f,A", "smoker is not yes or no in row 2"),
    "category": ("50,1,secret,A", "sex is none of the study's categories in row 2.*knows f, m"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_values_name_column_and_row_but_no_value(tmp_path: Path, case: str) -> None:
    row, message = REFUSED[case]
    path = tmp_path / "p.csv"
    path.write_text(f"age,smoker,sex,ward\n50,1,f,A\n{row}\n51,1,f,A\n{row}\n")
    model = make_model(tmp_path / "model", make_study())
    with pytest.raises(DataError, match=message) as caught:
        predict(model, path)
    for value in ("fifty", "-0.5", "120.5", "perhaps", "secret"):
        assert value not in str(caught.value)


HEADERS = {
    "Age,smoker,sex,ward": "no column age: did you mean Age",
    "agee,smoker,sex,ward": "no column age: did you mean agee",
    " age ,smoker,sex,ward": "no column age: did you mean  age ",
    "age,smokers,sex,ward": "no column smoker: did you mean smokers",
    "age,sex,ward": "no column smoker: add it",
    "age;smoker;sex;ward": "no column age",
    "61,1,f,7777777": "no column age: add it",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_missing_column_names_the_closest(tmp_path: Path, header: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(header + "\n50" + ",1" * header.count(",") + "\n")
    with pytest.raises(DataError, match=HEADERS[header]) as caught:
        predict(make_model(tmp_path / "model", make_study()), path)
    assert "7777777" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path: Path, patients: Path) -> None:
    model = make_model(tmp_path / "model", make_study())
    contents = {
        "empty.csv": (b"", "cannot be read"),
        "header.csv": (b"age,smoker,sex,ward\n", "has no rows"),
        "ragged.csv": (b"age,smoker,sex,ward\n1,2\n1,2,3,4,5,6\n", "cannot be read"),
        "false.parquet": (CSV.encode(), "cannot be read"),
        "patients.xlsx": (b"PK", "give a .csv"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            predict(model, tmp_path / name)
    for path in (tmp_path / "gone.csv", tmp_path, Path()):
        with pytest.raises(DataError, match="there is no file"):
            predict(model, path)


def test_columns_of_lists_are_refused_or_missing(tmp_path: Path) -> None:
    frame = pl.DataFrame({"age": [[1.0], [2.0]], "smoker": 1, "sex": "f", "ward": "A"})
    frame.write_parquet(tmp_path / "p.parquet")
    model = make_model(tmp_path / "model", make_study())
    with pytest.raises(DataError, match="age"):
        predict(model, tmp_path / "p.parquet")


CELLS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\x00"), max_size=8
) | st.sampled_from(["", "50", "-1", "1e400", "NaN", "-inf", "f", "m", "yes", '"', "A", "5,5"])


@pytest.fixture(scope="module")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("shared") / "model", make_study())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.just("age,smoker,sex,ward") | CELLS,
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=5).map(",".join), max_size=4),
)
def test_any_file_gives_scores_or_one_refusal(
    tmp_path: Path, shared_model: Path, header: str, rows: list[str]
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    with contextlib.suppress(DataError):  # anything else fails the test
        assert predict(shared_model, path).table["probability_yes"].is_between(0, 1).all()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from(["p.csv", "p.parquet", "p.csv.gz"]))
def test_any_bytes_give_scores_or_one_refusal(
    tmp_path: Path, shared_model: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        predict(shared_model, tmp_path / name)


SITE = """
[site]
name = "north"
[source]
kind = "csv"
path = "elsewhere.csv"
separator = ";"
decimal_comma = true
filter = "outcome IS NOT NULL"
[patients]
column = "mrn"
[features.age]
column = "months"
scale = 0.08333333333333333
[features.sex]
values = { "1" = "m", "2" = "f" }
"""


def test_a_hospital_may_use_its_own_mapping(tmp_path: Path, patients: Path) -> None:
    model = make_model(tmp_path / "model", make_study())
    (tmp_path / "site.toml").write_text(SITE)
    local = "mrn;months;smoker;sex;ward\n007;600;yes;2;A\nb;738,0;;1;C\nc;0;0;;\nc;1440;TRUE;1;B\n"
    (tmp_path / "local.csv").write_text(local)
    mapped = predict(model, tmp_path / "local.csv", site=tmp_path / "site.toml").table
    expected = predict(model, patients).table
    assert mapped["patient_id"].to_list() == expected["patient_id"].to_list()
    np.testing.assert_allclose(mapped["probability_yes"], expected["probability_yes"], atol=1e-6)
    with pytest.raises(SiteConfigError, match="cannot read"):
        predict(model, patients, site=tmp_path / "gone.toml")
    (tmp_path / "site.toml").write_text(SITE.replace("features.age", "features.size"))
    with pytest.raises(SiteConfigError, match="not a feature of the study"):
        predict(model, patients, site=tmp_path / "site.toml")


def test_site_statistics_come_from_the_reference(tmp_path: Path, patients: Path) -> None:
    preprocess = 'standardise = "site"\nimpute = "site"'
    study = parse_study(
        STUDY.format(task=BINARY, model=LOGISTIC, rules="", preprocess=preprocess, tail="")
    )
    model = make_model(tmp_path / "model", study, transform(scope="site", complete=False))
    reference = tmp_path / "ours.csv"
    # age: mean 50, deviation 10; smoker: mean 0.75 of four; most are m, and on ward A.
    reference.write_text("age,smoker,sex,ward\n40,1,m,A\n60,1,m,A\n40,1,m,A\n60,0,f,B\n")
    table = predict(model, patients, reference=reference).table
    deviation = math.sqrt(0.75 * 0.25)
    inputs = INPUTS.copy()
    inputs[:, 0] = [0.0, 1.15, -5.0, 7.0]
    inputs[:, 1] = (np.array([1, 0.75, 0, 1]) - 0.75) / deviation
    inputs[1:3, 4:6] = [1, 0]  # ward C and the missing ward become A
    inputs[2, 2:4] = [0, 1]
    expected = torch.sigmoid(raw_outputs(study, inputs)[:, 0])
    np.testing.assert_allclose(table["probability_yes"], expected, atol=1e-5)
    with pytest.raises(ModelError, match="add --reference"):
        predict(model, patients)
    with pytest.raises(DataError, match="there is no file ours2"):
        predict(model, patients, reference=tmp_path / "ours2.csv")


def test_a_reference_that_is_not_needed_is_refused(tmp_path: Path, patients: Path) -> None:
    model = make_model(tmp_path / "model", make_study())
    with pytest.raises(ModelError, match="leave out --reference"):
        predict(model, patients, reference=patients)


def test_preprocessing_of_another_study_is_refused(tmp_path: Path, patients: Path) -> None:
    study = make_study()
    other = transform().model_copy(update={"numeric": transform().numeric[::-1]})
    for index, frozen in enumerate((other, transform(scope="site", complete=False))):
        with pytest.raises(ModelError, match="preprocessing does not fit"):
            predict(make_model(tmp_path / str(index), study, frozen), patients)


def test_damaged_models_are_refused(tmp_path: Path, patients: Path) -> None:
    model = make_model(tmp_path / "model", make_study())
    (model / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="damaged"):
        predict(model, patients)
    with pytest.raises(ModelError, match="no model folder"):
        predict(tmp_path / "gone", patients)


def test_scores_that_overflow_are_refused(tmp_path: Path, patients: Path) -> None:
    study = make_study(task=REGRESSION, tail='[evaluation]\nmetric = "rmse"')
    weights = get_weights(build_module(study.model, (7,), 1, seed=1))
    weights["weight"][:] = 3e38
    write_bundle(
        tmp_path / "model",
        study=study,
        weights=weights,
        transform_json=transform().to_json(),
        provenance=Provenance.of(study, simulated=True),
    )
    with pytest.raises(ModelError, match="not finite"):
        predict(tmp_path / "model", patients)


def test_writing(tmp_path: Path, patients: Path) -> None:
    predictions = predict(make_model(tmp_path / "model", make_study()), patients)
    write(tmp_path / "s.csv", predictions, force=False)
    write(tmp_path / "s.parquet", predictions, force=False)
    write(tmp_path / "s.json", predictions, as_json=True, force=False)
    assert (tmp_path / "s.csv").read_text() == predictions.to_csv()
    assert pl.read_parquet(tmp_path / "s.parquet").equals(predictions.table)
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["simulated"] is True
    assert content["predictions"][0]["patient_id"] == "007"
    before = (tmp_path / "s.csv").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "s.csv", predictions, as_json=True, force=False)
    assert (tmp_path / "s.csv").read_bytes() == before
    write(tmp_path / "s.csv", predictions, as_json=True, force=True)
    assert json.loads((tmp_path / "s.csv").read_text()) == content
