"""Keys: what they sign, how they are kept, and which files are refused."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import IdentityError
from fedward.common.identity import PrivateKey, PublicKey, find_passphrase, same_fingerprint, spoken
from fedward.common.identity.key_files import PASSPHRASE_VARIABLE

KEY = PrivateKey.generate()
PASSPHRASE = "correct horse battery"


def unencrypted(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@given(data=st.binary(max_size=200), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_signature_fits_one_message_only(data: bytes, position: int, bit: int) -> None:
    signature = KEY.sign(data)
    KEY.public.verify(signature, data)
    changed = bytearray(data + signature)
    changed[position % len(changed)] ^= 1 << bit
    with pytest.raises(IdentityError):
        KEY.public.verify(bytes(changed[len(data) :]), bytes(changed[: len(data)]))
    with pytest.raises(IdentityError):
        PrivateKey.generate().public.verify(signature, data)


def test_fingerprint_is_what_openssl_says(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY.public.pem)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", tmp_path / "key", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-r"], input=der, capture_output=True, check=True
    ).stdout
    assert digest.decode().split()[0] == KEY.public.fingerprint


def test_public_keys_are_compared_by_what_they_are() -> None:
    again = PublicKey.from_pem(KEY.public.pem)
    assert (again, hash(again)) == (KEY.public, hash(KEY.public))
    assert again != PrivateKey.generate().public


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_key_comes_back_from_its_file(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "identity" / "site.key"
    KEY.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert PrivateKey.load(path, passphrase).public == KEY.public
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)


def test_the_file_is_private_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            modes.append(stat.S_IMODE(found.st_mode))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    old = os.umask(0)
    try:
        KEY.save(tmp_path / "site.key")
    finally:
        os.umask(old)
    assert modes == [0o600]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "site.key"
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="by others") as refusal:
        PrivateKey.load(path)
    assert "chmod 600" in refusal.value.hint
    path.chmod(0o400)
    assert PrivateKey.load(path).public == KEY.public


def test_passphrases(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    KEY.save(path, PASSPHRASE)
    with pytest.raises(IdentityError, match=r"is encrypted.*FEDWARD_PASSPHRASE"):
        PrivateKey.load(path)
    with pytest.raises(IdentityError, match="does not open"):
        PrivateKey.load(path, PASSPHRASE + "x")
    with pytest.raises(IdentityError, match="too short"):
        KEY.save(path, "short")
    # One that is not needed does no harm: not every file of a folder need be encrypted.
    KEY.save(path)
    assert PrivateKey.load(path, PASSPHRASE).public == KEY.public


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        unencrypted(ed25519.Ed25519PrivateKey.generate()),
        unencrypted(ec.generate_private_key(ec.SECP384R1())),
        KEY.public.pem.encode(),
    ],
)
def test_what_is_no_p256_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError):
        PrivateKey.load(path)
    with pytest.raises(IdentityError):
        PrivateKey.load(tmp_path / "none")


@pytest.mark.parametrize("pem", ["", "x", unencrypted(KEY.raw).decode()])
def test_what_is_no_public_key_is_refused(pem: str) -> None:
    with pytest.raises(IdentityError):
        PublicKey.from_pem(pem)


def test_public_key_of_another_curve_is_refused() -> None:
    for other in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        pem = other.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with pytest.raises(IdentityError, match="P-256"):
            PublicKey.from_pem(pem)


def test_a_key_does_not_show_itself() -> None:
    secret = KEY.raw.private_numbers().private_value
    for text in (repr(KEY), str(KEY), f"{KEY}"):
        assert f"{secret:x}"[:16] not in text
        assert str(secret) not in text
        assert "BEGIN" not in text


def test_where_a_passphrase_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    assert find_passphrase() is None
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    assert find_passphrase() == "from the environment"
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    file.chmod(0o644)
    with pytest.raises(IdentityError, match="by others"):
        find_passphrase(file)
    file.chmod(0o600)
    assert find_passphrase(file) == "from a file"


def test_what_people_type_for_a_fingerprint() -> None:
    real = KEY.public.fingerprint
    assert spoken(real).replace(" ", "") == real
    for typed in (real, real.upper(), spoken(real), f" {spoken(real)}\n", ":".join(real)):
        assert same_fingerprint(typed, real)
    other = PrivateKey.generate().public.fingerprint
    for typed in ("", real[:-1], real[:32], real + "0", other, "é" + real[1:]):
        assert not same_fingerprint(typed, real)
