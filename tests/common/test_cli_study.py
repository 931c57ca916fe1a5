"""`fedward study`: new, check, hash and show, as a user meets them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fedward.common.cli import main
from fedward.common.study import canonical_json, parse_study, study_hash
from fedward.common.study.load import EXAMPLE

HASH = study_hash(parse_study(EXAMPLE))
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def study_file(tmp_path: Path) -> str:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("modality", ["tabular", "image"])
def test_a_new_study_passes_the_check(modality: str, tmp_path: Path, capsys: Capture) -> None:
    path = str(tmp_path / "new.toml")
    assert main(["study", "new", "--modality", modality, path]) == 0
    assert "edit it" in capsys.readouterr().out
    assert main(["study", "check", path]) == 0
    assert "is a valid study" in capsys.readouterr().out


def test_new_writes_study_toml_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "new", "--modality", "image", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "study.toml", "modality": "image"}
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_new_replaces_nothing_unless_forced(study_file: str, capsys: Capture) -> None:
    assert main(["study", "new", "--modality", "tabular", study_file]) == 10
    assert "exists already: choose another path or add --force" in capsys.readouterr().err
    assert Path(study_file).read_text(encoding="utf-8") == EXAMPLE
    assert main(["study", "new", "--modality", "tabular", "--force", study_file]) == 0
    assert Path(study_file).read_text(encoding="utf-8") != EXAMPLE


def test_new_into_a_folder_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    assert main(["study", "new", "--modality", "tabular", str(tmp_path / "no" / "s.toml")]) == 10
    assert capsys.readouterr().err.startswith("error: cannot write ")
    assert list(tmp_path.iterdir()) == []


def test_new_needs_a_known_modality(capsys: Capture) -> None:
    assert main(["study", "new", "--modality", "sound"]) == 2
    assert "'tabular', 'image'" in capsys.readouterr().err


def test_check_names_hash_and_remarks(study_file: str, capsys: Capture) -> None:
    assert main(["study", "check", study_file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["example (version 1) is a valid study", f"hash: {HASH}"]
    assert any(line.startswith("remark: no differential privacy") for line in lines)


def test_check_as_json(study_file: str, capsys: Capture) -> None:
    assert main(["study", "check", "--json", study_file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["hash"]) == ("example", HASH)
    assert len(found["remarks"]) == 3


def test_check_of_a_wrong_study_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(EXAMPLE.replace("rounds", "round"), encoding="utf-8")
    assert main(["study", "check", str(path)]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("error: wrong.toml: unknown key training.round")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("text", ["", "[", "a = 1\na = 2", "study = 3"])
def test_check_of_what_is_no_study(text: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["study", "check", str(path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_hash_prints_the_hash_and_nothing_else(study_file: str, capsys: Capture) -> None:
    assert main(["study", "hash", study_file]) == 0
    assert capsys.readouterr().out == HASH + "\n"


def test_canonical_json_has_the_hash(study_file: str, capsys: Capture) -> None:
    assert main(["study", "hash", "--canonical", study_file]) == 0
    text = capsys.readouterr().out
    assert text == canonical_json(parse_study(EXAMPLE))
    assert hashlib.sha256(text.encode()).hexdigest() == HASH


def test_hash_as_json(study_file: str, capsys: Capture) -> None:
    assert main(["study", "hash", "--json", study_file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["study"] == HASH
    assert len(found["simulation"]) == 64


def test_hash_of_a_missing_file(tmp_path: Path, capsys: Capture) -> None:
    assert main(["study", "hash", str(tmp_path / "none.toml")]) == 3
    assert "make one with `fedward study new`" in capsys.readouterr().err


def test_show_in_words_and_as_json(study_file: str, capsys: Capture) -> None:
    assert main(["study", "show", study_file]) == 0
    text = capsys.readouterr().out
    assert main(["study", "show", "--json", study_file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 7
    for title, lines in found.items():
        assert title.upper() in text
        for line in lines:
            assert line.split()[0] in text
    assert max(map(len, text.splitlines())) <= 100
