"""Files of secrets: for their owner only, and under a passphrase if there is one.

A file of mode 0600; one that others may read is refused, for it has to be taken as known to others.
The passphrase is never taken from the command line, which every user of a machine can read. While
it is changed (`resealing`), a file may wait under another name, encrypted with the new one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedward.common.errors import IdentityError
from fedward.common.identity.pkcs8 import is_sealed, unseal

SHORTEST_PASSPHRASE = 12
"""Characters: no key derivation protects a short one."""
PASSPHRASE_VARIABLE = "FEDWARD_PASSPHRASE"  # noqa: S105  (a name)
GIVE_PASSPHRASE = f"set {PASSPHRASE_VARIABLE} or give --passphrase-file"
"""What to do about a file that is encrypted."""
_NEW_KEY = "if it may have been read, make a new key and have the old one revoked"


def check_passphrase(passphrase: str | None) -> None:
    """Return if a new file may be encrypted with it, or if there is none.

    Raises:
        IdentityError: it is too short.
    """
    if passphrase is not None and len(passphrase) < SHORTEST_PASSPHRASE:
        raise IdentityError(
            "the passphrase is too short", hint=f"use {SHORTEST_PASSPHRASE} characters or more"
        )


def find_passphrase(file: Path | None = None) -> str | None:
    """The passphrase from a file that only its owner may read, or from the environment, or none.

    Never from the command line, which every user of a machine can read.

    Raises:
        IdentityError: the file is missing, or others may read it.
    """
    if file is not None:
        return read_secret(file).decode(errors="replace").rstrip("\r\n") or None
    return os.environ.get(PASSPHRASE_VARIABLE) or None


def read_secret(path: Path) -> bytes:
    """A file that only its owner may read.

    Raises:
        IdentityError: it is missing, or others may read or change it.
    """
    try:  # through one descriptor, so that what was checked is what is read
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise IdentityError(
                    f"{path.name} may be read or changed by others",
                    hint=f"`chmod 600` it; {_NEW_KEY}",
                )
            return file.read()
    except OSError as error:
        raise IdentityError(
            f"cannot read {path.name or path}", hint="check the path and the permissions"
        ) from error


def resealed(path: Path) -> Path:
    """Where a file waits, encrypted with another passphrase, until all others are too."""
    return path.with_name(path.name + ".resealed")


def open_sealed(path: Path, data: bytes, passphrase: str | None) -> PrivateKeyTypes:
    """The key in the content of an encrypted file; or in what waits to take its place.

    Raises:
        IdentityError: the passphrase is missing, or does not open it.
    """
    if not passphrase:
        raise IdentityError(f"{path.name} is encrypted", hint=GIVE_PASSPHRASE)
    found = _opened(data, passphrase)
    if found is None and resealed(path).exists():
        found = _opened(read_secret(resealed(path)), passphrase)
    if found is None:
        raise IdentityError(
            f"the passphrase does not open {path.name}", hint="check the passphrase"
        )
    return found


def opens(path: Path, passphrase: str | None) -> bool:
    """Whether a file itself is open to who has this passphrase.

    Raises:
        IdentityError: it is missing, or others may read it.
    """
    data = read_secret(path)
    return not is_sealed(data) or bool(passphrase and _opened(data, passphrase))


def _opened(data: bytes, passphrase: str) -> PrivateKeyTypes | None:
    try:
        return unseal(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
