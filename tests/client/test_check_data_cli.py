"""`fedward client check-data`, through the root command: output, files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedward.common.cli import main
from fedward.common.study.load import EXAMPLE

SITE = """
[site]
name = "north"
[source]
kind = "csv"
path = "patients.csv"
[patients]
column = "id"
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A study, a site and its data, all good."""
    (tmp_path / "study.toml").write_text(EXAMPLE)
    (tmp_path / "site.toml").write_text(SITE)
    rows = "".join(f"{n},{40 + n},{'no' if n % 2 else 'yes'}\n" for n in range(40))
    (tmp_path / "patients.csv").write_text("id,age,died\n" + rows)
    return str(tmp_path / "study.toml"), str(tmp_path / "site.toml")


def check(files: tuple[str, str], *options: str) -> int:
    return main(["client", "check-data", *files, *options])


def test_good_data(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(files) == 0
    shown = capsys.readouterr().out
    assert "The study takes these data." in shown
    assert "stays at the site" in shown


def test_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(files, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["patients"], report["usable"]) == (40, 40, True)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_refused_data_are_reported_and_exit_with_5(
    files: tuple[str, str],
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "patients.csv"
    data.write_text(data.read_text().replace(",45,", ",450,"))
    out = tmp_path / "report"
    assert check(files, *options, "--out", str(out)) == 5
    captured = capsys.readouterr()
    assert "it stays at the site" in captured.out
    assert captured.err.startswith("error: the study refuses these data")
    assert captured.err.count("\n") == 1
    assert "feature age has values outside the study's bounds" in out.read_text()


def test_key_file_decides_the_split(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    out = str(tmp_path / "report.json")
    assert check(files, "--json", "--out", out, "--key-file", str(tmp_path / "key")) == 0
    report = json.loads(Path(out).read_text())
    assert report["patients_training"] + report["patients_testing"] == 40
    assert check(files, "--key-file", str(tmp_path / "none")) == 5


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("study.toml", "[study]\n", 3),
        ("site.toml", "[site]\n", 4),
        ("patients.csv", "", 5),
    ],
)
def test_exit_codes(
    files: tuple[str, str],
    name: str,
    text: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_text(text)
    assert check(files) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_unwritable_report(files: tuple[str, str], tmp_path: Path) -> None:
    assert check(files, "--out", str(tmp_path / "none" / "report")) == 10


def test_help_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "check-data", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("STAYS AT THE SITE", "site.toml", "one_row_per_patient", "Exit codes", "--json"):
        assert word in text
    assert main(["client", "--help"]) == 0
    assert "check-data" in capsys.readouterr().out
