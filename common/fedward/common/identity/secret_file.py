"""Secrets that are no keys of signatures: 32 random bytes in a file that only its owner may read.

With a passphrase the file is encrypted in the same way as the file of a private key: as
PKCS#8, in which the bytes stand as an Ed25519 key, that being any 32 bytes. It signs nothing.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward.common.errors import IdentityError
from fedward.common.files import private_folder, write_atomic
from fedward.common.identity.key_files import check_passphrase, open_sealed, read_secret
from fedward.common.identity.pkcs8 import is_sealed, seal

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
    content = secret if passphrase is None else seal(as_key(secret), passphrase)
    write_atomic(path, content, private=True)


def load_secret(path: Path, passphrase: str | None = None) -> bytes:
    """Read a secret. A passphrase that the file does not need is ignored.

    Raises:
        IdentityError: it is missing, others may read it, the passphrase is wrong or missing, or it
            is too short.
    """
    data = read_secret(path)
    if is_sealed(data):
        data = _decrypted(path, data, passphrase)
    if len(data) < SECRET_BYTES:
        raise IdentityError(f"{path.name} is too short", hint="restore it from a backup")
    return data


def as_key(secret: bytes) -> Ed25519PrivateKey:
    """The form in which a secret is encrypted.

    Raises:
        IdentityError: it has not as many bytes as `SECRET_BYTES`.
    """
    if len(secret) != SECRET_BYTES:
        raise IdentityError(
            f"a secret of {len(secret)} bytes cannot be encrypted",
            hint=f"only those of {SECRET_BYTES} can, as `fedward client init` makes them",
        )
    return Ed25519PrivateKey.from_private_bytes(secret)


def _decrypted(path: Path, data: bytes, passphrase: str | None) -> bytes:
    key = open_sealed(path, data, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(
            f"{path.name} holds another kind of key", hint="restore it from a backup"
        )
    return key.private_bytes_raw()
