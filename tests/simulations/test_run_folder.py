"""The output folder of a run: held by one, continued only by the same, untouched by a refusal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fedward.common.errors import DataError, OutputError, PrivacyError, StudyError
from fedward.simulations.run_folder import RunFolder

DATA = {"a": "1" * 64, "b": "2" * 64}


def begun(out: Path) -> RunFolder:
    """A folder in which a run has begun and ended."""
    folder = RunFolder(out)
    with folder.held():
        folder.begin("hash", DATA, resume=False)
    return folder


def test_a_second_run_is_refused_while_the_first_lasts(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    with RunFolder(out).held():
        for _ in range(2):
            with (
                pytest.raises(OutputError, match=r"another run is writing to .*OUT: wait"),
                RunFolder(out).held(),
            ):
                pytest.fail("two runs hold the folder")
    with RunFolder(out).held():
        pass


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with RunFolder(tmp_path).held():
            os.write(told, b"x")
            signal.pause()
        os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(OutputError, match="another run"), RunFolder(tmp_path).held():
            pytest.fail("two runs hold the folder")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with RunFolder(tmp_path).held():
        pass


def refuse(folder: RunFolder, made: Path) -> None:
    """A run that writes a file and then cannot begin."""

    def run() -> None:
        with folder.held():
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text("x")
            raise PrivacyError("no", hint="no")

    with pytest.raises(PrivacyError):
        run()


def test_what_could_not_begin_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "OUT")
    refuse(folder, folder.cache / "a" / "pixels.npy")
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_begin_leaves_what_others_put_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "OUT")
    folder.cache.mkdir(parents=True)
    (folder.cache / "kept.npy").write_bytes(b"x")
    refuse(folder, folder.out / "notes.txt")
    left = {str(p.relative_to(folder.out)) for p in folder.out.rglob("*")}
    assert left == {"cache", "cache/kept.npy", "notes.txt"}


def test_a_lock_that_was_removed_holds_nobody_out_and_nobody_in(tmp_path: Path) -> None:
    """The file that is locked must be the one that the next run opens."""
    folder = RunFolder(tmp_path)
    with pytest.raises(PrivacyError), folder.held():
        raise PrivacyError("no", hint="no")
    with (
        RunFolder(tmp_path).held(),
        pytest.raises(OutputError, match="another run"),
        RunFolder(tmp_path).held(),
    ):
        pytest.fail("two runs hold the folder")


def test_a_new_run_clears_checkpoints_and_a_continued_one_keeps_them(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    kept = folder.checkpoints / "federated" / "round-000002.safetensors"
    kept.parent.mkdir()
    for resume in (True, False):
        kept.write_bytes(b"x")
        again = RunFolder(tmp_path)
        with again.held():
            again.begin("hash", DATA, resume=resume)
        assert kept.exists() == resume


def test_only_the_same_study_is_continued(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing to continue"):
        RunFolder(tmp_path).check_study("hash")
    begun(tmp_path).check_study("hash")
    with pytest.raises(StudyError, match="another study or seed"):
        RunFolder(tmp_path).check_study("other")


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (DATA | {"b": "3" * 64}, "the data of site b changed since the run began"),
        ({"a": DATA["a"]}, "the data of site b changed"),
        (DATA | {"c": "3" * 64}, "the data of site c changed"),
        ({"a": "", "b": "", "c": ""}, r"the data of site a \(and of 2 more\) changed"),
    ],
)
def test_only_the_same_data_are_continued(
    now: dict[str, str], problem: str, tmp_path: Path
) -> None:
    folder = begun(tmp_path)
    folder.check_data(dict(reversed(DATA.items())))
    with pytest.raises(DataError, match=problem):
        folder.check_data(now)


@pytest.mark.parametrize("content", [None, "", "[]", "7", "{"])
def test_data_that_nobody_knows_are_not_continued(content: str | None, tmp_path: Path) -> None:
    folder = begun(tmp_path)
    path = folder.checkpoints / "data.sha256"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(OutputError, match="does not say which data its run began with"):
        folder.check_data(DATA)
