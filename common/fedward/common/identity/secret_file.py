"""Secrets that are no keys of signatures: 32 random bytes in a file that only its owner may read.

With a passphrase the file is encrypted in the same way as the file of a private key (`keys`): as
PKCS#8, in which the bytes stand as an Ed25519 key, that being any 32 bytes. It signs nothing.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward.common.errors import IdentityError
from fedward.common.files import private_folder, write_atomic
from fedward.common.identity.keys import (
    GIVE_PASSPHRASE,
    check_passphrase,
    is_encrypted,
    read_secret,
)

SECRET_BYTES = 32


def save_secret(path: Path, secret: bytes, passphrase: str | None = None) -> None:
    """Write a secret, for its owner only, and close its folder to others.

    Args:
        path: of the file.
        secret: as many bytes as `SECRET_BYTES`.
        passphrase: encrypts the file.

    Raises:
        IdentityError: the passphrase is too short.
        OutputError: the disk refuses.
    """
    check_passphrase(passphrase)
    private_folder(path.parent)
    content = secret if passphrase is None else _encrypted(secret, passphrase)
    write_atomic(path, content, private=True)


def load_secret(path: Path, passphrase: str | None = None) -> bytes:
    """Read a secret. A passphrase that the file does not need is ignored.

    Raises:
        IdentityError: it is missing, others may read it, the passphrase is wrong or missing, or it
            is too short.
    """
    data = read_secret(path)
    if is_encrypted(data):
        data = _decrypted(path, data, passphrase)
    if len(data) < SECRET_BYTES:
        raise IdentityError(f"{path.name} is too short", hint="restore it from a backup")
    return data


def secret_is_encrypted(path: Path) -> bool:
    """Whether a secret's file needs a passphrase.

    Raises:
        IdentityError: it is missing, or others may read it.
    """
    return is_encrypted(read_secret(path))


def _encrypted(secret: bytes, passphrase: str) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(secret).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )


def _decrypted(path: Path, data: bytes, passphrase: str | None) -> bytes:
    if not passphrase:
        raise IdentityError(f"{path.name} is encrypted", hint=GIVE_PASSPHRASE)
    try:
        key = serialization.load_pem_private_key(data, passphrase.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(
            f"the passphrase does not open {path.name}", hint="check the passphrase"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(
            f"{path.name} holds another kind of key", hint="restore it from a backup"
        )
    return key.private_bytes_raw()
