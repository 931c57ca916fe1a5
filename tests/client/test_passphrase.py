"""A passphrase for a site's key files: both get it, whatever interrupts, and `doctor` knows."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fedward.client.enrolment import make_site
from fedward.client.home import SiteFolder
from fedward.client.passphrase import encrypt
from fedward.common.cli import main
from fedward.common.diagnosis import Advice
from fedward.common.diagnosis.passphrase import passphrase as looked_at
from fedward.common.errors import IdentityError, OutputError, StateError
from fedward.common.identity import pkcs8
from fedward.common.identity.key_files import resealed
from fedward.common.lock import held

FIRST, SECOND, THIRD = "the first sentence", "the second sentence", "the third sentence"
COMMAND = "fedward client encrypt-keys"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, where their number is not what is tested."""
    monkeypatch.setattr(pkcs8, "ROUNDS", 1000)


def site(path: Path, begins: str) -> SiteFolder:
    """A site with two plain files, one of each, or two encrypted ones."""
    home = make_site(path, "north", FIRST if begins == "encrypted" else None)
    if begins == "mixed":
        home.load_key().save(home.key, FIRST)
    return home


def secrets(home: SiteFolder, passphrase: str | None) -> tuple[bytes, bytes]:
    return home.load_key(passphrase).pem, home.load_patients_key(passphrase)


def opens(home: SiteFolder, passphrase: str, expected: tuple[bytes, bytes]) -> bool:
    try:
        return secrets(home, passphrase) == expected
    except IdentityError:
        return False


def assert_encrypted(home: SiteFolder, passphrase: str, expected: tuple[bytes, bytes]) -> None:
    assert secrets(home, passphrase) == expected
    assert all(pkcs8.is_sealed(path.read_bytes()) for path in home.keys)
    assert {path.stat().st_mode & 0o777 for path in home.keys} == {0o600}
    names = {path.name for path in home.identity.iterdir()}
    assert names == {"site.key", "site.csr", "patients.key"}


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("begins", ["plain", "mixed", "encrypted"])
@pytest.mark.parametrize("new", [FIRST, SECOND])
def test_both_files_get_the_passphrase(begins: str, new: str, tmp_path: Path) -> None:
    home = site(tmp_path / "north", begins)
    expected = secrets(home, FIRST)
    assert encrypt(home, FIRST, new) == ("site.key", "patients.key")
    assert_encrypted(home, new, expected)
    if new != FIRST:
        with pytest.raises(IdentityError, match="does not open site"):
            home.load_key(FIRST)
    with pytest.raises(IdentityError, match="does not open site"):
        encrypt(home, THIRD, SECOND)
    assert_encrypted(home, new, expected)


# Crashes.


def crashes(what: Callable[[], object], folder: Path, at: int) -> bool:
    """Whether a process that does it is killed at that step of those that change the folder."""
    child = os.fork()
    if child == 0:
        step = itertools.count()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("open", "os.rename", "os.remove"):
                path, flags = str(arguments[0]), arguments[-1]
                writes = event != "open" or (isinstance(flags, int) and flags & os.O_CREAT)
                if writes and str(folder) in path and next(step) == at:
                    os._exit(9)

        sys.addaudithook(hook)
        what()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("begins", ["plain", "mixed", "encrypted"])
def test_a_crash_at_any_point_locks_nobody_out(begins: str, tmp_path: Path) -> None:
    """Nor does one in the change after it, which is to a third passphrase."""
    start = site(tmp_path / "start", begins)
    expected = secrets(start, FIRST)
    first_steps = second_steps = 0
    for first in itertools.count():
        once = SiteFolder(tmp_path / f"once-{first}")
        shutil.copytree(start.path, once.path)
        killed = crashes(partial(encrypt, once, FIRST, SECOND), once.identity, first)
        if not killed:
            assert_encrypted(once, SECOND, expected)
            break
        first_steps += 1
        now = [p for p in (FIRST, SECOND) if opens(once, p, expected)]
        assert now
        assert_no_plain_copy(once, expected)
        for second in itertools.count() if begins == "mixed" else ():
            twice = SiteFolder(tmp_path / f"twice-{first}-{second}")
            shutil.copytree(once.path, twice.path)
            again = crashes(partial(encrypt, twice, now[-1], THIRD), twice.identity, second)
            if not again:
                assert_encrypted(twice, THIRD, expected)
                break
            second_steps += 1
            left = [p for p in (now[-1], THIRD) if opens(twice, p, expected)]
            assert left
            encrypt(twice, left[-1], FIRST)
            assert_encrypted(twice, FIRST, expected)
    assert first_steps >= 5
    assert second_steps >= 30 or begins != "mixed"


def assert_no_plain_copy(home: SiteFolder, expected: tuple[bytes, bytes]) -> None:
    for path in home.identity.iterdir():
        if path not in home.keys:
            assert not any(secret in path.read_bytes() for secret in expected)


@pytest.mark.usefixtures("cheap")
def test_a_disk_that_refuses_leaves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = site(tmp_path / "north", "mixed")
    expected = secrets(home, FIRST)
    before = [path.read_bytes() for path in home.keys]
    synced = itertools.count()

    def full(_file: int) -> None:
        if next(synced) == 2:  # the first file and its folder are written
            raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot write"):
        encrypt(home, FIRST, SECOND)
    monkeypatch.undo()
    assert [path.read_bytes() for path in home.keys] == before
    assert secrets(home, FIRST) == expected
    assert not any(resealed(path).exists() for path in home.keys)


# What is refused.


@pytest.mark.usefixtures("cheap")
def test_what_cannot_be_encrypted_is_refused_before_anything_changes(tmp_path: Path) -> None:
    home = site(tmp_path / "north", "plain")
    before = [path.read_bytes() for path in home.keys]
    for new, words in ((None, "no passphrase to encrypt with"), ("short", "too short")):
        with pytest.raises(IdentityError, match=words):
            encrypt(home, None, new)
    home.state.mkdir(exist_ok=True)
    with held(home.lock, who="a client"), pytest.raises(StateError, match="already runs"):
        encrypt(home, None, FIRST)
    assert [path.read_bytes() for path in home.keys] == before
    home.patients_key.write_bytes(bytes(48))  # somebody's own, longer than ours
    with pytest.raises(IdentityError, match="48 bytes cannot be encrypted"):
        encrypt(home, None, FIRST)
    assert home.key.read_bytes() == before[0]
    home.patients_key.chmod(0o644)
    with pytest.raises(IdentityError, match="by others"):
        encrypt(home, None, FIRST)


# The doctor, and the command.


def said(home: SiteFolder) -> tuple[str, str]:
    found = looked_at(home.keys, COMMAND)
    return (found.says, found.todo) if isinstance(found, Advice) else (found, "")


def test_the_doctor_says_which_files_are_protected(tmp_path: Path) -> None:
    home = site(tmp_path / "north", "plain")
    assert said(home) == ("none: whoever copies the folder has its keys", "")
    home.load_key().save(home.key, FIRST)
    assert said(home) == (
        "needed for site.key, not for patients.key",
        f"run `{COMMAND}`, which encrypts all",
    )
    encrypt(home, FIRST, FIRST)
    assert said(home) == ("needed for site.key and patients.key", "")
    weak = serialization.BestAvailableEncryption(FIRST.encode())  # as fedward did once
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    home.key.write_bytes(home.load_key(FIRST).raw.private_bytes(*form, weak))
    assert said(home) == (
        "it is cheap to guess it from site.key",
        f"run `{COMMAND}`, which encrypts anew",
    )
    encrypt(home, FIRST, FIRST)
    assert said(home) == ("needed for site.key and patients.key", "")
    resealed(home.key).touch()
    assert said(home) == ("its change was interrupted", f"run `{COMMAND}` again")


@pytest.mark.usefixtures("cheap")
def test_the_command_encrypts_and_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDWARD_PASSPHRASE", raising=False)
    home = site(tmp_path / "north", "plain")
    expected = secrets(home, None)
    for name, text in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    command = ["client", "encrypt-keys", str(home.path)]
    assert main(command) == IdentityError.exit_code
    assert "set FEDWARD_PASSPHRASE or give --passphrase-file" in capsys.readouterr().err
    assert main([*command, "--passphrase-file", one]) == 0
    out = capsys.readouterr().out
    assert out.startswith("encrypted site.key, patients.key\nolder copies")
    assert_encrypted(home, FIRST, expected)
    assert main([*command, "--passphrase-file", one, "--new-passphrase-file", two, "--json"]) == 0
    assert '"patients.key"' in capsys.readouterr().out
    assert_encrypted(home, SECOND, expected)
    (tmp_path / "two").chmod(0o644)
    assert main([*command, "--passphrase-file", two]) == IdentityError.exit_code
