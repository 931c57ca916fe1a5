"""Deflate on the way: there and back, and never more than was announced."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import LinkError, OutputError
from fedward.common.wire.encoding import compresses, deflate, inflate

PLAIN = st.binary(max_size=2000) | st.builds(
    lambda piece, times: piece * times, st.binary(min_size=1, max_size=9), st.integers(1, 300_000)
)


@given(PLAIN)
def test_there_and_back(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, packed, back = (Path(folder) / name for name in "abc")
        source.write_bytes(data)
        result = deflate(source, packed)
        assert result.size == packed.stat().st_size
        assert result.sha256 == hashlib.sha256(packed.read_bytes()).digest()
        inflate(packed, back, plain_size=len(data))
        assert back.read_bytes() == data
        for wrong in {max(0, len(data) - 1), len(data) + 1} - {len(data)}:
            with pytest.raises(LinkError):
                inflate(packed, back, plain_size=wrong)
            assert not back.exists()


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_unpack_or_are_refused(data: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a", Path(folder) / "b"
        for packed in (
            data,
            zlib.compress(data),
            zlib.compress(data)[:-1],
            zlib.compress(b"") + data,
        ):
            source.write_bytes(packed)
            try:
                inflate(source, target, plain_size=size)
            except LinkError:
                assert not target.exists()
            else:
                assert target.stat().st_size == size


def test_a_bomb_stops_at_the_announced_size(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(zlib.compress(b"\0" * (64 << 20)))
    with pytest.raises(LinkError):
        inflate(tmp_path / "bomb", tmp_path / "out", plain_size=1000)
    assert not (tmp_path / "out").exists()


def test_what_follows_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(zlib.compress(b"abc") + os.urandom(3 << 20))
    with pytest.raises(LinkError):
        inflate(tmp_path / "a", tmp_path / "out", plain_size=3)


def test_a_sample_decides(tmp_path: Path) -> None:
    for name, data, expected in (
        ("zeros", b"\0" * 100_000, True),
        ("noise", os.urandom(100_000), False),
        ("small", b"\0" * 1000, False),
        ("empty", b"", False),
    ):
        (tmp_path / name).write_bytes(data)
        assert compresses(tmp_path / name) is expected
    with pytest.raises(LinkError):
        compresses(tmp_path / "none")


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(zlib.compress(b"abc"))
    with pytest.raises(OutputError):
        inflate(tmp_path / "a", tmp_path / "none" / "b", plain_size=3)
    with pytest.raises(OutputError):
        deflate(tmp_path / "a", tmp_path / "none" / "b")
