"""A hospital whose key files are encrypted: nothing works without the passphrase, all with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedward.client.home import SiteFolder
from fedward.common.errors import IdentityError
from fedward.common.identity.key_files import PASSPHRASE_VARIABLE
from fedward.simulations.rehearsal.federation import Federation, command

from .federated import approve_everywhere, check_run, released, running, study_text

pytestmark = pytest.mark.slow
PASSPHRASE = "a long sentence, no?"
NAMES = ("east", "north")


def test_a_federation_of_encrypted_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    seen: list[bytes] = []
    with running(tmp_path, study_text(rounds=20, steps=50), names=NAMES) as federation:
        for name in NAMES:
            home = SiteFolder.open(federation.site(name))
            for path in (home.key, home.patients_key):
                assert b"ENCRYPTED" in path.read_bytes()
        refuses_others(federation.site("north"))
        federation.submit()
        approve_everywhere(federation)
        federation.until(lambda: bool(workers_see(federation, seen)), 100.0)
        run = released(federation, within_s=200.0)
    check_run(federation, run, everybody=True)
    assert all(PASSPHRASE.encode() not in environment for environment in seen)
    with monkeypatch.context() as patch:
        patch.delenv(PASSPHRASE_VARIABLE)
        plain = tmp_path / "passphrase"
        plain.write_text(PASSPHRASE + "\n")
        plain.chmod(0o600)
        told = command("client", "review", federation.site("north"), federation.hash)
        assert "patients.key is encrypted" in told["problem"]
        told = command(
            "client", "review", federation.site("north"), federation.hash,
            "--passphrase-file", plain,
        )  # fmt: skip
        assert told["problem"] == ""


def refuses_others(folder: Path) -> None:
    """A thief of the folder starts nothing, not even with the site's own key in the open."""
    stolen = folder.parent / "stolen"
    shutil.copytree(folder, stolen, ignore=shutil.ignore_patterns("state"))
    home = SiteFolder.open(stolen)
    for passphrase, words in ((None, "is encrypted"), ("another passphrase", "does not open")):
        for load in (home.load_key, home.load_patients_key):
            with pytest.raises(IdentityError, match=words):
                load(passphrase)
    SiteFolder.open(folder).load_key(PASSPHRASE).save(home.key)  # decrypted; patients.key is not
    environment = {name: v for name, v in os.environ.items() if name != PASSPHRASE_VARIABLE}
    fedward = Path(sys.executable).with_name("fedward")
    done = subprocess.run(
        [fedward, "client", "run", stolen], env=environment, capture_output=True, text=True
    )
    assert done.returncode == IdentityError.exit_code
    assert "patients.key is encrypted: set FEDWARD_PASSPHRASE" in done.stderr


def workers_see(federation: Federation, seen: list[bytes]) -> list[bytes]:
    """Environments of training processes."""
    for daemon in federation.daemons.values():
        for children in Path(f"/proc/{daemon.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                try:
                    seen.append(Path(f"/proc/{child}/environ").read_bytes())
                except OSError:
                    continue  # it has ended
    return seen
