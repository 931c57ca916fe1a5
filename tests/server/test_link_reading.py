"""A piece that several sites fetch together is read once, and nothing is kept behind them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedward.common.wire import kinds
from fedward.common.wire.pieces import read_chunk
from fedward.server.link import reading
from fedward.server.link.reading import Reading

BODY = os.urandom(kinds.CHUNK + 100)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "task-1"
    path.write_bytes(BODY)
    return path


def test_pieces_are_those_of_the_body(body: Path) -> None:
    pieces = Reading()
    with pieces.opened(body) as file:
        position, found = 0, b""
        while (piece := pieces.piece(body, file, position))[1]:
            one = read_chunk(piece[0])
            assert (one.offset, len(one.data)) == (position, piece[1])
            found += one.data
            position += piece[1]
        assert found == BODY
        odd, length = pieces.piece(body, file, 7)  # where a transfer goes on that was cut
        assert (read_chunk(odd).offset, length) == (7, kinds.CHUNK)
        assert read_chunk(odd).data == BODY[7 : 7 + kinds.CHUNK]


def test_who_fetches_the_same_meanwhile_is_given_the_same(body: Path, tmp_path: Path) -> None:
    pieces, other = Reading(), tmp_path / "task-2"
    other.write_bytes(BODY[::-1])
    with pieces.opened(body) as one:
        with pieces.opened(body) as two, pieces.opened(other) as three:
            first = pieces.piece(body, one, 0)
            assert pieces.piece(body, two, 0) is first
            assert read_chunk(pieces.piece(other, three, 0)[0]).data == BODY[::-1][: kinds.CHUNK]
        assert pieces.piece(body, one, 0) is first
    with pieces.opened(body) as one:
        assert pieces.piece(body, one, 0) is not first


def test_few_pieces_are_kept(body: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST", 2)
    pieces = Reading()
    with pieces.opened(body) as file:
        first = pieces.piece(body, file, 0)
        pieces.piece(body, file, 1)
        assert pieces.piece(body, file, 0) is first
        pieces.piece(body, file, 2)
        assert pieces.piece(body, file, 0) is not first


def test_a_body_that_is_gone_is_said_so(tmp_path: Path) -> None:
    pieces = Reading()
    with pytest.raises(FileNotFoundError), pieces.opened(tmp_path / "gone"):
        pass
