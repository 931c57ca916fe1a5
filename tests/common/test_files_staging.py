"""Several outputs that appear together: prepared beside their place, moved, or gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedward.common.errors import OutputError
from fedward.common.files import (
    atomic_directory,
    remove_leftovers,
    replace_directory,
    staging,
    write_atomic,
)


def make(path: Path, content: str) -> None:
    with atomic_directory(path) as building:
        write_atomic(building / "a.txt", content)


def test_a_stage_is_beside_and_gone_afterwards(tmp_path: Path) -> None:
    with staging(tmp_path / "out") as stage:
        assert stage.parent == tmp_path
        (stage / "a").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out") as stage:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_stage_cannot_be_made_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot write out: its folder does not exist"),
        staging(tmp_path / "none" / "out"),
    ):
        pass


def test_a_finished_directory_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    make(tmp_path / "model", "old")
    with staging(tmp_path / "out") as stage:
        make(stage / "model", "new")
        replace_directory(stage / "model", tmp_path / "model")
    assert (tmp_path / "model" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_peoples_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis").write_text("mine")
    with staging(tmp_path / "out") as stage:
        make(stage / "model", "new")
        with pytest.raises(OutputError, match="fedward did not make"):
            replace_directory(stage / "model", tmp_path / "model")
    assert (tmp_path / "model" / "thesis").read_text() == "mine"


def test_a_directory_that_is_not_there_cannot_be_moved(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write model"):
        replace_directory(tmp_path / "none", tmp_path / "model")


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    leftovers = [f".a.txt.{'0' * 16}.partial", f".model.{'f' * 16}.old"]
    kept = [".fedward", ".a.partial", "a.txt", f"x.{'0' * 16}.partial", f".a.{'g' * 16}.partial"]
    for name in [*leftovers[:1], *kept]:
        (tmp_path / name).touch()
    (tmp_path / leftovers[1]).mkdir()
    (tmp_path / leftovers[1] / "deep").touch()
    remove_leftovers(tmp_path, of="mode")
    remove_leftovers(tmp_path, of="a.txt")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*leftovers[1:], *kept])
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path / "none")
