"""`fedward predict` as it is called."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from fedward.common.cli import main
from fedward.common.errors import DataError, ModelError, OutputError
from fedward.common.models.bundle import write_bundle
from fedward.common.models.provenance import Provenance
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import Transform
from fedward.common.preprocess.transform import NumericInput
from fedward.common.study.load import EXAMPLE, parse_study

CSV = "age,patient_id\n50,007\n60,b\n"


def make_model(folder: Path, *, simulated: bool = True) -> str:
    study = parse_study(EXAMPLE)
    age = NumericInput(name="age", mean=60.0, deviation=20.0, fill=0.0, missing="refuse")
    write_bundle(
        folder,
        study=study,
        weights=get_weights(build_module(study.model, (1,), 1, seed=1)),
        transform_json=Transform(scope="federated", complete=True, numeric=(age,)).to_json(),
        provenance=Provenance.of(study, simulated=simulated),
    )
    return str(folder)


@pytest.fixture
def patients(tmp_path: Path) -> str:
    (tmp_path / "patients.csv").write_text(CSV)
    return str(tmp_path / "patients.csv")


def test_scores_go_to_the_terminal_and_the_notice_does_not(
    tmp_path: Path, patients: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", make_model(tmp_path / "model"), patients]) == 0
    out, err = capsys.readouterr()
    table = pl.read_csv(io.StringIO(out), infer_schema=False)
    assert table.columns == ["row", "patient_id", "probability_yes"]
    assert table["patient_id"].to_list() == ["007", "b"]
    assert "not for release" in err


def test_a_real_model_needs_no_notice(
    tmp_path: Path, patients: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", make_model(tmp_path / "model", simulated=False), patients]) == 0
    assert capsys.readouterr().err == ""


def test_json_and_files(tmp_path: Path, patients: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = make_model(tmp_path / "model"), str(tmp_path / "scores.csv")
    assert main(["predict", model, patients, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in content["predictions"]] == [1, 2]
    assert main(["predict", model, patients, "--out", out]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {out}" in captured.err
    first = Path(out).read_bytes()
    assert main(["predict", model, patients, "--out", out]) == OutputError.exit_code
    assert "--force" in capsys.readouterr().err
    assert Path(out).read_bytes() == first
    assert main(["predict", model, patients, "--out", out, "--force", "--json"]) == 0
    assert json.loads(Path(out).read_text()) == content


def test_refusals_are_one_line_with_their_exit_code(
    tmp_path: Path, patients: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model")
    bad = tmp_path / "bad.csv"
    bad.write_text("age\nsecret\n")
    out = tmp_path / "out.csv"
    for arguments, code in [
        ([model, str(bad)], DataError.exit_code),
        ([str(tmp_path), patients], ModelError.exit_code),
        ([model, patients, "--out", str(tmp_path / "no" / "out.csv")], OutputError.exit_code),
        ([model], 2),
    ]:
        assert main(["predict", *arguments]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "secret" not in captured.err
        if code != 2:
            assert captured.err.splitlines()[-1].startswith("error: ")
    assert not out.exists()


def test_help_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "Examples:",
        "fedward predict OUT/model patients.csv",
        "--reference",
        "--out",
        "--json",
        "--force",
        "--site",
        "patient_id",
        "Exit codes:",
    ):
        assert word in text
