"""Histories of runs: read as written or not at all, whatever a crash left; rounds cost the same."""

from __future__ import annotations

import errno
import gc
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.errors import OutputError, RoundError
from fedward.server.checkpoints import HISTORY, CheckpointFolder, RunState
from fedward.server.history import (
    CheckpointUnavailable,
    Drift,
    History,
    HistoryFile,
    Mark,
    RoundRecord,
)


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        participants=("north", "süd"),
        refused={"west": "no answer — “in time”\n"},
        drift={"north": Drift(1.5, -0.25)},
        evaluation={"overall": {"auroc": 0.1 + 0.2, "f1": None}},
        notes={"charges": {}, "number": number},
    )


def run(folder: CheckpointFolder, rounds: int) -> RunState:
    """Do some more rounds."""
    state = folder.newest() or RunState("f" * 64, 0, {"w": np.ones(3, np.float32)}, "{}", {})
    for _ in range(rounds):
        number = state.round + 1
        grown = History.of(state.history).then(record(number))
        state = folder.save(replace(state, round=number, history=grown))
    return state


def newest(folder: Path) -> RunState:
    found = CheckpointFolder(folder).newest()
    assert found is not None
    return found


def check(state: RunState, rounds: int) -> None:
    expected = tuple(record(number + 1) for number in range(rounds))
    assert state.round == len(state.history) == rounds
    assert state.history == expected
    assert tuple(state.history) == expected
    for place in range(-rounds, rounds):
        assert state.history[place] == expected[place]
    for start in range(rounds + 2):
        assert state.history[start:] == expected[start:]


@pytest.mark.parametrize("rounds", [1, 7, 8, 9, 30])
def test_every_record_comes_back(rounds: int, tmp_path: Path) -> None:
    check(run(CheckpointFolder(tmp_path), rounds), rounds)
    check(newest(tmp_path), rounds)
    with pytest.raises(IndexError):
        newest(tmp_path).history[rounds]


def test_a_run_in_pieces_leaves_the_same_bytes(tmp_path: Path) -> None:
    run(CheckpointFolder(tmp_path / "whole"), 9)
    for rounds in (1, 5, 0, 3):
        run(CheckpointFolder(tmp_path / "pieces"), rounds)
    whole, pieces = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "pieces")
    )
    assert whole == pieces


@pytest.mark.parametrize("torn", [1, 100, 1000])
def test_a_crash_before_the_checkpoint_leaves_a_longer_file(torn: int, tmp_path: Path) -> None:
    """The line is there, or some of it; the round is done again, and counted once."""
    run(CheckpointFolder(tmp_path), 3)
    file = tmp_path / HISTORY
    known = file.read_bytes()
    file.write_bytes(known + (b'{"round": 4, ' * 100)[:torn])
    check(newest(tmp_path), 3)
    run(CheckpointFolder(tmp_path), 1)
    check(newest(tmp_path), 4)
    assert file.read_bytes().startswith(known)


def test_a_lost_checkpoint_goes_back_a_round(tmp_path: Path) -> None:
    run(CheckpointFolder(tmp_path), 5)
    (tmp_path / "round-000005.safetensors").write_bytes(b"")
    check(newest(tmp_path), 4)
    run(CheckpointFolder(tmp_path), 2)
    check(newest(tmp_path), 6)


def test_the_file_of_another_run_is_none_of_ours(tmp_path: Path) -> None:
    """Its states were removed: the history is begun anew."""
    run(CheckpointFolder(tmp_path), 5)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    run(CheckpointFolder(tmp_path), 2)
    check(newest(tmp_path), 2)
    assert len((tmp_path / HISTORY).read_bytes().splitlines()) == 2


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    run(CheckpointFolder(tmp_path), 3)
    file = tmp_path / HISTORY
    content = file.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    for place in [*range(0, len(content), 7), last - 1, last, len(content) - 1]:
        spoilt = bytearray(content)
        spoilt[place] ^= 0x01
        file.write_bytes(bytes(spoilt))
        if place >= last:  # the state before the last does not need it
            check(newest(tmp_path), 2)
            continue
        with pytest.raises(RoundError, match="is not what was written: start again without"):
            newest(tmp_path)
    file.write_bytes(content)
    check(newest(tmp_path), 3)


class Copy:
    """Another copy of a history, as a registry has it."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines
        self.rebuilt: list[int] = []

    def lines(self) -> tuple[bytes, ...]:
        return self._lines

    def on_rebuilding(self, rounds: int) -> None:
        self.rebuilt.append(rounds)


def whole(rounds: int) -> list[bytes]:
    return [record(number + 1).line() for number in range(rounds)]


def bits(content: bytes, *places: int) -> bytes:
    """With some bits changed."""
    spoilt = bytearray(content)
    for place in places:
        spoilt[place // 8 % len(content)] ^= 1 << place % 8
    return bytes(spoilt)


DAMAGES = st.one_of(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True).map(
        lambda places: lambda content: bits(content, *places)
    ),
    st.integers(0, 10**4).map(lambda kept: lambda content: content[: kept % len(content)]),
    st.just(lambda _content: b""),
)


@settings(deadline=None, max_examples=150)
@given(rounds=st.integers(1, 5), damage=DAMAGES)
def test_a_damaged_history_is_made_whole_from_its_copy_or_goes_back_or_is_refused(
    rounds: int, damage: Callable[[bytes], bytes]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(CheckpointFolder(folder), rounds)
        file = folder / HISTORY
        content = file.read_bytes()
        spoilt = damage(content)
        file.write_bytes(spoilt)
        copy = Copy(*whole(rounds), b"a round that no checkpoint has\n")
        found = CheckpointFolder(folder, copy).newest()
        assert found is not None
        check(found, rounds)
        assert file.read_bytes() == content
        assert copy.rebuilt == ([rounds] if spoilt != content else [])
        # Without a copy: as it was, or the round before with all of its history, or not at all.
        file.write_bytes(spoilt)
        before = len(b"".join(whole(rounds - 1)))
        if spoilt == content or (rounds > 1 and spoilt[:before] == content[:before]):
            check(newest(folder), rounds if spoilt == content else rounds - 1)
            return
        with pytest.raises(RoundError, match=r"no checkpoint in .* can be read"):
            newest(folder)
        assert file.read_bytes() == spoilt


@pytest.mark.parametrize("wrong", ["other", "short", "none"])
def test_a_copy_that_is_not_what_was_written_is_not_taken(wrong: str, tmp_path: Path) -> None:
    run(CheckpointFolder(tmp_path), 3)
    file = tmp_path / HISTORY
    spoilt = bits(file.read_bytes(), 100)
    file.write_bytes(spoilt)
    lines = whole(3)
    lines[0] = record(7).line()
    copy = Copy(*{"other": lines, "short": lines[1:], "none": []}[wrong])
    with pytest.raises(RoundError, match="the registry has no whole copy: put back a copy of"):
        CheckpointFolder(tmp_path, copy).newest()
    assert file.read_bytes() == spoilt
    assert copy.rebuilt == []


def test_rounds_without_a_copy_are_taken_from_the_file_itself(tmp_path: Path) -> None:
    """An older fedward counted them without their lines."""
    run(CheckpointFolder(tmp_path), 4)
    file = tmp_path / HISTORY
    content = file.read_bytes()
    copy = Copy(b"", b"", *whole(4)[2:])
    file.write_bytes(content[:-20])
    found = CheckpointFolder(tmp_path, copy).newest()
    assert found is not None
    check(found, 4)
    assert file.read_bytes() == content
    file.write_bytes(bits(content, 100))
    with pytest.raises(RoundError, match="the registry has no whole copy"):
        CheckpointFolder(tmp_path, copy).newest()


@pytest.mark.parametrize("name", [HISTORY, "round-000003.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_what_cannot_be_read_is_not_taken_for_damaged(kind: str, name: str, tmp_path: Path) -> None:
    """Neither goes a run back a round, nor is its history written anew."""
    run(CheckpointFolder(tmp_path), 3)
    path, aside = tmp_path / name, tmp_path / "aside"
    path.rename(aside)
    path.mkdir() if kind == "folder" else path.symlink_to(name)
    copy = Copy(*whole(3))
    for folder in (CheckpointFolder(tmp_path), CheckpointFolder(tmp_path, copy)):
        with pytest.raises(CheckpointUnavailable, match=f"cannot read {name} now: try again"):
            folder.newest()
    assert copy.rebuilt == []
    path.rmdir() if kind == "folder" else path.unlink()
    if name == HISTORY:  # which is what the message says can be done
        found = CheckpointFolder(tmp_path, copy).newest()
        assert found is not None
        check(found, 3)
    else:
        check(newest(tmp_path), 2)
    aside.rename(path)
    check(newest(tmp_path), 3)


def test_too_many_open_files_are_no_lost_run(tmp_path: Path) -> None:
    """Not even an empty folder: a run would begin anew."""
    state = run(CheckpointFolder(tmp_path), 3)
    free = os.open(tmp_path, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(CheckpointUnavailable, match="too many files are open, try again"):
            newest(tmp_path)
        with pytest.raises(CheckpointUnavailable, match=r"cannot read history\.jsonl now"):
            list(state.history)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check(newest(tmp_path), 3)


def test_a_shortened_file_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    state = run(folder, 3)
    (tmp_path / HISTORY).write_bytes(b"")
    with pytest.raises(RoundError, match=r"history\.jsonl is not what was written"):
        folder.save(replace(state, history=History.of(state.history).then(record(4))))
    assert (tmp_path / HISTORY).read_bytes() == b""
    with pytest.raises(RoundError, match="no checkpoint in"):
        newest(tmp_path)


def test_a_full_disk_is_said_and_the_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    state = run(folder, 3)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    grown = replace(state, round=4, history=History.of(state.history).then(record(4)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"cannot write history\.jsonl.*disk is full"):
            folder.save(grown)
    check(newest(tmp_path), 3)
    check(folder.save(grown), 4)
    check(newest(tmp_path), 4)


def test_an_empty_history_needs_no_file(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "none")
    assert History.load(file, Mark()) == ()
    assert History().keep(file) == History()
    assert list(tmp_path.iterdir()) == []
    assert History() != 3


def test_a_late_round_costs_what_an_early_one_did(tmp_path: Path) -> None:
    """In memory and in what is written; the old way kept 1.5 kB a round and wrote all again."""
    sizes: list[tuple[int, int]] = []
    held: list[int] = []
    tracemalloc.start()
    try:
        folder = CheckpointFolder(tmp_path)
        state = run(folder, 1)
        for number in range(2, 402):
            grown = History.of(state.history).then(record(number))
            state = folder.save(replace(state, round=number, history=grown))
            if number % 200 == 100:
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
                path = tmp_path / f"round-{number:06d}.safetensors"
                sizes.append((path.stat().st_size, (tmp_path / HISTORY).stat().st_size))
    finally:
        tracemalloc.stop()
    (early, late), (state_bytes, history_bytes) = held, np.diff(sizes, axis=0)[0]
    assert late - early < 20_000
    assert state_bytes < 100
    assert history_bytes < 200 * 400
    check(state, 401)
