"""Files are whole or absent, and only fedward's own directories are replaced."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward.common.errors import ModelError, OutputError
from fedward.common.files import MARKER, atomic_directory, read_bytes, write_atomic


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file may grow beyond 64 kB: what a full disk looks like to a process."""
    limit = 65_536
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_text_and_bytes(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "ε")
    write_atomic(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ε"
    assert read_bytes(tmp_path / "b") == b"\x00\xff"
    assert names(tmp_path) == ["a", "b"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk_keeps_the_old_file(tmp_path: Path, small_disk: int) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(OutputError, match="cannot write a: the file is larger"):
        write_atomic(tmp_path / "a", b"x" * (small_disk + 1))
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_full_disk_leaves_no_new_file(tmp_path: Path, small_disk: int) -> None:
    with pytest.raises(OutputError):
        write_atomic(tmp_path / "a", b"x" * (small_disk + 1))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("nowhere/a", "folder does not exist"),
        ("file/a", "folder is a file"),
        ("folder", "a folder"),
    ],
)
def test_unwritable_places(tmp_path: Path, place: str, hint: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=hint):
        write_atomic(tmp_path / place, "x")
    assert names(tmp_path) == ["file", "folder"]


def test_read_refuses_with_the_chosen_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read gone: look elsewhere"):
        read_bytes(tmp_path / "gone", error=ModelError, hint="look elsewhere")


def fill(path: Path, **files: str) -> None:
    with atomic_directory(path) as building:
        for name, content in files.items():
            write_atomic(building / name, content)


def test_directory_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as building:
        write_atomic(building / "a", "1")
        (building / "sub").mkdir()
        write_atomic(building / "sub" / "b", "2")
        assert not target.exists()
    assert names(target) == [MARKER, "a", "sub"]
    assert names(tmp_path) == ["out"]


def test_own_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path / "out", a="1", b="1")
    fill(tmp_path / "out", a="2")
    assert names(tmp_path / "out") == [MARKER, "a"]
    assert (tmp_path / "out" / "a").read_text() == "2"
    assert names(tmp_path) == ["out"]


def fill_and_stop(path: Path) -> None:
    with atomic_directory(path) as building:
        write_atomic(building / "a", "2")
        raise KeyboardInterrupt


def test_failure_keeps_the_old_directory(tmp_path: Path) -> None:
    fill(tmp_path / "out", a="1")
    with pytest.raises(KeyboardInterrupt):
        fill_and_stop(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert names(tmp_path) == ["out"]


def test_full_disk_in_the_body_is_explained(tmp_path: Path, small_disk: int) -> None:
    with (
        pytest.raises(OutputError, match="cannot write out"),
        atomic_directory(tmp_path / "out") as building,
    ):
        (building / "a").write_bytes(b"x" * (small_disk + 1))
    assert names(tmp_path) == []


def test_reading_errors_of_the_body_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        (tmp_path / "gone").read_text()
    assert names(tmp_path) == []


def test_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", a="1")
    assert names(tmp_path / "out") == [MARKER, "a"]


def test_foreign_directory_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(OutputError, match="fedward did not make"):
        fill(tmp_path / "thesis", a="1")
    assert names(tmp_path / "thesis") == ["chapter.tex"]
    assert names(tmp_path) == ["thesis"]


def test_foreign_file_in_our_directory_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "out", a="1")
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match=r"notes/mine\.txt"):
        fill(tmp_path / "out", a="2")
    assert (tmp_path / "out" / "notes" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"files": 3}', "\x00"])
def test_damaged_marker_counts_as_foreign(tmp_path: Path, marker: str) -> None:
    fill(tmp_path / "out", a="1")
    (tmp_path / "out" / MARKER).write_text(marker)
    with pytest.raises(OutputError, match="did not make"):
        fill(tmp_path / "out", a="2")


def test_a_file_or_a_link_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match="not a folder"):
            fill(tmp_path / name, a="1")


def test_missing_parent_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="create it first"):
        fill(tmp_path / "no" / "out", a="1")


def test_a_foreign_directory_is_refused_before_the_work_not_after(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    started = False
    with pytest.raises(OutputError), atomic_directory(tmp_path):
        started = True
    assert not started
