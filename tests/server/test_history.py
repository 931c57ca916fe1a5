"""Histories of runs: read as written or not at all, whatever a crash left; rounds cost the same."""

from __future__ import annotations

import errno
import gc
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedward.common.errors import OutputError, RoundError
from fedward.server.checkpoints import HISTORY, CheckpointFolder, RunState
from fedward.server.history import Drift, History, HistoryFile, Mark, RoundRecord


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
        with pytest.raises(RoundError, match="start again without --resume"):
            newest(tmp_path)
    file.write_bytes(content)
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
