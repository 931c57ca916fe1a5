"""Secrets in files: encrypted or not, the same bytes come back, to who may have them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.errors import IdentityError
from fedward.common.identity import PrivateKey
from fedward.common.identity.pkcs8 import is_sealed
from fedward.common.identity.secret_file import (
    SECRET_BYTES,
    load_secret,
    save_secret,
)

PASSPHRASE = "a long sentence, no?"
SECRET = bytes(range(SECRET_BYTES))


@settings(max_examples=3, deadline=None)  # each derives a key twice
@given(secret=st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_any_secret_comes_back_as_it_was(secret: bytes, tmp_path_factory: object) -> None:
    path = Path(tmp_path_factory.mktemp("s")) / "patients.key"  # type: ignore[attr-defined]
    save_secret(path, secret, PASSPHRASE)
    assert load_secret(path, PASSPHRASE) == secret
    assert secret not in path.read_bytes()


def test_without_a_passphrase_the_file_is_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "patients.key"
    save_secret(path, SECRET)
    assert path.read_bytes() == SECRET
    assert path.stat().st_mode & 0o777 == 0o600
    assert not is_sealed(path.read_bytes())
    assert load_secret(path, "a passphrase that it does not need") == SECRET


def test_who_does_not_know_the_passphrase_learns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "patients.key"
    save_secret(path, SECRET, PASSPHRASE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert is_sealed(path.read_bytes())
    for given_, words in ((None, "is encrypted: set FEDWARD_PASSPHRASE"), ("x" * 12, "not open")):
        with pytest.raises(IdentityError, match=words) as caught:
            load_secret(path, given_)
        assert PASSPHRASE not in str(caught.value)
    with pytest.raises(IdentityError, match="too short"):
        save_secret(tmp_path / "other.key", SECRET, "short")
    assert not (tmp_path / "other.key").exists()


def test_openssl_opens_it_too(tmp_path: Path) -> None:
    """Nobody depends on us for getting a secret back from a backup."""
    path = tmp_path / "patients.key"
    save_secret(path, SECRET, PASSPHRASE)
    command = ["openssl", "pkey", "-in", path, "-passin", f"pass:{PASSPHRASE}", "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert der.endswith(SECRET)


@pytest.mark.parametrize("content", [b"", b"short", SECRET[:-1]])
def test_what_is_too_short_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "patients.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="too short"):
        load_secret(path)


def test_what_is_no_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patients.key"
    PrivateKey.generate().save(path, PASSPHRASE)
    with pytest.raises(IdentityError, match="another kind of key"):
        load_secret(path, PASSPHRASE)
    path.write_bytes(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nnothing\n")
    with pytest.raises(IdentityError, match="does not open"):
        load_secret(path, PASSPHRASE)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="by others"):
        load_secret(path, PASSPHRASE)
