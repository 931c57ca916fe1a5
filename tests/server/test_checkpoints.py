"""Checkpoints: what is read is what was written, or it is not read; never half of one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedward.common.errors import OutputError, RoundError
from fedward.server import checkpoints
from fedward.server.checkpoints import HISTORY, KEEP, CheckpointFolder, RunState
from fedward.server.history import Drift, RoundRecord
from fedward.server.model_hash import MODEL, model_hash

RECORD = RoundRecord(
    round=1,
    participants=("a", "b"),
    refused={"c": "no answer — “in time”"},
    drift={"a": Drift(1.5, -0.25)},
    evaluation={"overall": {"auroc": 0.5, "f1": None}},
    notes={"metrics": {"a": None}, "charges": {}},
)


def state(number: int = 1, value: float = 0.5) -> RunState:
    return RunState(
        study_hash="f" * 64,
        round=number,
        weights={
            "z": np.full((2, 3), value, np.float32),
            "a": np.arange(3, dtype=np.float32),
            "scalar": np.array(2.5, np.float32),
            "none": np.zeros((0, 4), np.float32),
        },
        transform='{"x": 1}',
        site_weights={"a": 1.0, "b": 30.0},
        history=(RECORD,) * number,
        strategy={
            "m_t/z": np.full((2, 3), 1e-30),
            "momentum_vector/000000": np.ones(2, np.float32),
        },
        notes={"charges": {"a": [{"round": 0}]}},
        absent={"d": "gone"},
    )


def same(left: RunState, right: RunState) -> bool:
    for one, other in ((left.weights, right.weights), (left.strategy, right.strategy)):
        if set(one) != set(other):
            return False
        for name, value in one.items():
            found = other[name]
            if (value.shape, value.dtype) != (found.shape, found.dtype):
                return False
            if value.tobytes() != found.tobytes():
                return False
    rest = ("study_hash", "round", "transform", "site_weights", "history", "notes", "absent")
    return list(left.weights) == list(right.weights) and all(
        getattr(left, name) == getattr(right, name) for name in rest
    )


def read(folder: Path) -> RunState:
    found = CheckpointFolder(folder).newest()
    assert found is not None
    return found


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "new" / "folder").save(state())
    assert same(read(tmp_path / "new" / "folder"), state())


@given(
    values=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(str.isprintable),
        arrays(np.float32, array_shapes(min_dims=0, max_dims=3, max_side=3)),
        max_size=4,
    )
)
def test_any_finite_or_other_weights_come_back_bit_by_bit(
    values: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("states")
    written = RunState("x", 0, values, "", {}, strategy={f"m_t/{k}": v for k, v in values.items()})
    CheckpointFolder(folder).save(written)
    assert same(read(folder), written)


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).newest() is None
    assert CheckpointFolder(tmp_path / "absent").newest() is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for number in range(12):
        folder.save(state(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [HISTORY, "round-000010.safetensors", "round-000011.safetensors"]
    assert len(names) == KEEP + 1
    assert read(tmp_path).round == 11


def two(tmp_path: Path) -> Path:
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1))
    folder.save(state(2, 0.75))
    return tmp_path / "round-000002.safetensors"


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 60, 300, -1])
def test_a_cut_checkpoint_is_passed_over(kept: int, tmp_path: Path) -> None:
    newest = two(tmp_path)
    newest.write_bytes(newest.read_bytes()[:kept])
    assert same(read(tmp_path), state(1))


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    """Also not within a weight, which the file format itself would not see."""
    newest = two(tmp_path)
    content = newest.read_bytes()
    for place in [*range(0, len(content), 13), len(content) - 1, len(content) - 40]:
        spoilt = bytearray(content)
        spoilt[place] ^= 0x10
        newest.write_bytes(bytes(spoilt))
        assert read(tmp_path).round == 1, place
    newest.write_bytes(content)
    assert read(tmp_path).round == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", os.urandom(500)])
def test_what_is_no_checkpoint_is_passed_over(content: bytes, tmp_path: Path) -> None:
    two(tmp_path).write_bytes(content)
    assert read(tmp_path).round == 1


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    for path in (two(tmp_path), tmp_path / "round-000001.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(RoundError, match="start again without --resume"):
        read(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    two(tmp_path)
    for number in range(3, 6):
        CheckpointFolder(tmp_path).save(state(number))
    assert (tmp_path / "notes.txt").read_text() == "mine"


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from fedward.common.errors import OutputError
from fedward.server.checkpoints import CheckpointFolder, RunState
folder = CheckpointFolder(Path(sys.argv[1]))
def state(number, size):
    return RunState("x", number, {"w": np.full(size, number, np.float32)}, "", {})
folder.save(state(1, 10))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    folder.save(state(2, 100_000))
except OutputError as error:
    print(error.exit_code, error)
print(folder.newest().round, sorted(p.name for p in Path(sys.argv[1]).iterdir()))
"""


def test_a_full_disk_is_said_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("10 cannot write round-000002.safetensors: ")
    assert second == "1 ['round-000001.safetensors']"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        CheckpointFolder(tmp_path / "file" / "states").save(state())


def test_the_limit_of_this_process_is_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, -1)


def test_a_checkpoint_is_a_safetensors_file_for_everybody(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(state())
    (path,) = tmp_path.glob("*.safetensors")
    found = load_file(path)
    expected = state()
    assert (found["weights/z"] == expected.weights["z"]).all()
    assert (found["strategy/m_t/z"] == expected.strategy["m_t/z"]).all()
    assert found["weights/scalar"].shape == ()
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for name, value in found.items():  # every value where its type demands
        assert header[name]["data_offsets"][0] % value.itemsize == 0


def test_what_the_library_wrote_is_read_like_our_own(tmp_path: Path) -> None:
    """As earlier versions did."""
    CheckpointFolder(tmp_path).save(state())
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata)
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    assert same(found, state())


def test_saving_copies_no_model(tmp_path: Path) -> None:
    weights = {"w": np.zeros(4 << 20, np.float32)}
    large = RunState("f" * 64, 1, weights, "{}", {})
    CheckpointFolder(tmp_path).save(large)
    tracemalloc.start()
    try:
        CheckpointFolder(tmp_path).save(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < weights["w"].nbytes / 8


def test_a_hash_of_the_model_that_is_known_is_not_made_again_and_protects_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {MODEL: model_hash(state(1).weights)}
    noted = replace(state(1), history=(replace(RECORD, notes=known),))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "model_hash", lambda _weights: pytest.fail("hashed again"))
        CheckpointFolder(tmp_path).save(noted)
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    assert same(found, noted)
    path = next(tmp_path.glob("round-*.safetensors"))
    data = bytearray(path.read_bytes())
    at = data.index(np.float32(0.5).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(RoundError):
        CheckpointFolder(tmp_path).newest()


def test_a_hash_of_another_round_is_not_taken_for_that_of_the_model(tmp_path: Path) -> None:
    first = {MODEL: model_hash(state(1, 0.25).weights)}
    for other in (replace(state(2), notes=first), replace(state(2), notes=first, history=())):
        CheckpointFolder(tmp_path).save(other)
        found = CheckpointFolder(tmp_path).newest()
        assert found is not None
        assert found.round == 2
        for path in tmp_path.iterdir():
            path.unlink()
