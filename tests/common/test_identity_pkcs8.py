"""Key files as they are written: what OpenSSL and `cryptography` read, and what a guess costs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.errors import IdentityError
from fedward.common.identity import PrivateKey, pkcs8
from fedward.common.identity.pkcs8 import ROUNDS, is_sealed, rounds_of, seal, unseal

KEY = PrivateKey.generate()
PASSPHRASE = "ein langer Satz, nicht wahr?"
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def test_a_guess_costs_what_it_should(tmp_path: Path) -> None:
    """As OpenSSL reads the file, not as we do."""
    path = tmp_path / "a.key"
    KEY.save(path, PASSPHRASE)
    shown = subprocess.run(
        ["openssl", "asn1parse", "-in", path], capture_output=True, check=True, text=True
    ).stdout
    [rounds] = [int(line.split(":")[-1], 16) for line in shown.splitlines() if "INTEGER" in line]
    assert rounds == ROUNDS >= 600_000
    assert rounds_of(path.read_bytes()) == rounds
    for name in (":PBES2", ":PBKDF2", ":hmacWithSHA256", ":aes-256-cbc"):
        assert name in shown
    opened = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", f"pass:{PASSPHRASE}"],
        capture_output=True,
        check=True,
    ).stdout
    assert (
        serialization.load_pem_private_key(opened, None).private_bytes(
            PEM, PKCS8, serialization.NoEncryption()
        )
        == KEY.pem
    )
    other = seal(KEY.raw, PASSPHRASE)
    assert other != path.read_bytes()  # another salt, another beginning


def test_older_files_open_and_are_known(tmp_path: Path) -> None:
    path = tmp_path / "old.key"
    weak = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    path.write_bytes(KEY.raw.private_bytes(PEM, PKCS8, weak))
    path.chmod(0o600)
    assert PrivateKey.load(path, PASSPHRASE).public == KEY.public
    assert 0 < rounds_of(path.read_bytes()) < ROUNDS


def test_files_that_openssl_encrypted_otherwise_open_and_count_as_cheap(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.key", tmp_path / "scrypt.key"
    KEY.save(plain)
    command = ["openssl", "pkcs8", "-topk8", "-scrypt", "-in", plain, "-out", path]
    subprocess.run([*command, "-passout", f"pass:{PASSPHRASE}"], check=True)
    path.chmod(0o600)
    assert PrivateKey.load(path, PASSPHRASE).public == KEY.public
    assert rounds_of(path.read_bytes()) == 0


def test_a_file_is_opened_once_in_a_process(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    KEY.save(path, PASSPHRASE)
    unseal.cache_clear()
    for _ in range(20):
        assert PrivateKey.load(path, PASSPHRASE).public == KEY.public
    assert unseal.cache_info().misses == 1
    for _ in range(2):  # what is known is not given to who does not know the passphrase
        with pytest.raises(IdentityError, match="does not open"):
            PrivateKey.load(path, PASSPHRASE + "!")
        with pytest.raises(IdentityError, match="is encrypted"):
            PrivateKey.load(path)
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="by others"):
        PrivateKey.load(path, PASSPHRASE)


@settings(max_examples=50, deadline=None)
@given(
    passphrase=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    rounds=st.sampled_from([1, 127, 128, 255, 256, 32_768, 65_535]),
)
def test_any_passphrase_opens_what_it_sealed(passphrase: str, rounds: int) -> None:
    before = pkcs8.ROUNDS
    pkcs8.ROUNDS = rounds
    try:
        sealed = seal(KEY.raw, passphrase)
    finally:
        pkcs8.ROUNDS = before
    assert is_sealed(sealed)
    assert rounds_of(sealed) == rounds
    assert KEY.pem not in sealed
    opened = unseal(sealed, passphrase)
    assert opened.private_bytes(PEM, PKCS8, serialization.NoEncryption()) == KEY.pem


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_broken_file_has_no_rounds_to_be_trusted(data: st.DataObject) -> None:
    """Cut or changed anywhere, it is read without an error."""
    sealed = bytearray(SEALED)
    at = data.draw(st.integers(0, len(sealed) - 1))
    if data.draw(st.booleans()):
        sealed = sealed[:at]
    else:
        sealed[at] = data.draw(st.integers(0, 255))
    assert rounds_of(bytes(sealed)) >= 0


SEALED = seal(KEY.raw, PASSPHRASE)
