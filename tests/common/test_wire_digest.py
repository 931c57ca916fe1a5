"""Hashes that are remembered are those of the file as it is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from fedward.common.wire import digest
from fedward.common.wire.body import Content, write_body
from fedward.common.wire.digest import file_sha256


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were really read."""
    found: list[str] = []
    real = hashlib.file_digest

    def counting(file: object, name: str) -> object:
        found.append(Path(file.name).name)  # type: ignore[attr-defined]
        return real(file, name)  # type: ignore[arg-type, type-var]

    monkeypatch.setattr(digest.hashlib, "file_digest", counting)
    return found


def test_a_body_is_hashed_when_it_is_written(tmp_path: Path, hashed: list[str]) -> None:
    written = write_body(tmp_path / "a", Content(arrays={"w": np.ones(9, np.float32)}))
    (tmp_path / "a").rename(tmp_path / "b")
    assert file_sha256(tmp_path / "b") == (written.sha256, written.size)
    assert hashed == []


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "a"
    for second, content in enumerate((b"one", b"two", b"longer"), start=1):
        path.write_bytes(content)
        os.utime(path, ns=(second, second))
        right = (hashlib.sha256(content).digest(), len(content))
        assert file_sha256(path) == file_sha256(path) == right
    assert hashed == ["a"] * 3


def test_another_file_of_that_name_is_another(tmp_path: Path, hashed: list[str]) -> None:
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(5, 5))
    first = file_sha256(tmp_path / "a")
    (tmp_path / "b").replace(tmp_path / "a")
    assert file_sha256(tmp_path / "a") != first
    assert hashed == ["a", "a"]


def test_only_the_latest_are_remembered(tmp_path: Path, hashed: list[str]) -> None:
    for number in range(200):
        (tmp_path / f"{number}").write_bytes(b"x" * (number + 1))
        file_sha256(tmp_path / f"{number}")
    assert len(digest._known) <= 64
    file_sha256(tmp_path / "199")
    file_sha256(tmp_path / "0")
    assert len(hashed) == 201
