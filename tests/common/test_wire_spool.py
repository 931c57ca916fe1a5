"""A body that arrives in pieces: resumed at any cut, and nothing but the announced bytes."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import LinkError, OutputError
from fedward.common.wire.spool import Incoming

DATA = bytes(range(256)) * 40
HASH = hashlib.sha256(DATA).digest()


def incoming(path: Path, data: bytes = DATA) -> Incoming:
    return Incoming(path, sha256=hashlib.sha256(data).digest(), size=len(data))


def test_a_whole_body_gets_its_name(tmp_path: Path) -> None:
    spool = incoming(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    spool.write(0, DATA)
    assert not (tmp_path / "a").exists()
    assert spool.finish() == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@given(
    cuts=st.lists(st.integers(0, len(DATA)), max_size=5),
    overlap=st.integers(0, 300),
    chunk=st.integers(100, 5000),
)
def test_it_goes_on_at_any_cut(cuts: list[int], overlap: int, chunk: int) -> None:
    """Each connection stops somewhere; the next begins where it stopped, or a little earlier."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        for stop in [*sorted(cuts), len(DATA)]:
            spool = incoming(path)
            start = max(0, spool.offset - overlap)
            for offset in range(start, stop, chunk):
                spool.write(offset, DATA[offset : min(offset + chunk, stop)])
            assert spool.offset == max(stop, spool.offset)
            if stop < len(DATA):
                with pytest.raises(LinkError, match="too early"):
                    spool.finish()
            spool.close()
        spool = incoming(path)
        assert spool.finish().read_bytes() == DATA


@given(position=st.integers(0, len(DATA) - 1), flip=st.integers(1, 255), before=st.booleans())
def test_a_changed_byte_is_noticed_and_nothing_is_kept(
    position: int, flip: int, before: bool
) -> None:
    wrong = bytearray(DATA)
    wrong[position] ^= flip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        spool = incoming(path)
        spool.write(0, bytes(wrong))
        if before:  # what lies on the disk is checked as well
            spool.close()
            spool = incoming(path)
            assert spool.offset == len(DATA)
        with pytest.raises(LinkError, match="signed"):
            spool.finish()
        assert not path.exists()
        assert spool.offset == 0
        spool.write(0, DATA)
        assert spool.finish().read_bytes() == DATA


def test_gaps_and_surplus_are_refused(tmp_path: Path) -> None:
    spool = incoming(tmp_path / "a")
    spool.write(0, DATA[:10])
    with pytest.raises(LinkError, match="missing"):
        spool.write(11, DATA[11:])
    with pytest.raises(LinkError, match="longer"):
        spool.write(10, DATA[10:] + b"x")
    assert spool.offset == 10
    spool.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_an_older_longer_message_left_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(DATA + b"more")
    spool = incoming(tmp_path / "a")
    assert spool.offset == 0
    spool.write(0, DATA)
    assert spool.finish().stat().st_size == len(DATA)


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        incoming(tmp_path / "none" / "a")
