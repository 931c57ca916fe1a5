"""Key files get a passphrase, or another one, all of them together.

    all are opened → each is written anew beside the old one → each takes the old one's place

Guarantee:
    A crash at any point leaves files that all open with the old passphrase, or all with the new
    one: `key_files` also opens what waits. The next change completes or drops a half-made one. What
    is written is encrypted, from its first byte on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedward.common.errors import IdentityError
from fedward.common.files import move, remove_leftovers, write_atomic
from fedward.common.identity.key_files import (
    GIVE_PASSPHRASE,
    check_passphrase,
    opens,
    resealed,
)
from fedward.common.identity.pkcs8 import seal


def reseal(keys: Mapping[Path, PrivateKeyTypes], old: str | None, new: str | None) -> None:
    """Encrypt key files. Nobody else may be writing them.

    Args:
        keys: what is in which file, as it was opened with `old`.
        old: the passphrase until now; None if no file needs one.
        new: the passphrase from now on.

    Raises:
        IdentityError: the new passphrase is missing or too short.
        OutputError: the disk refuses.
    """
    if new is None:
        raise IdentityError("there is no passphrase to encrypt with", hint=GIVE_PASSPHRASE)
    check_passphrase(new)
    _finish(keys, old)
    try:
        for path, key in keys.items():
            write_atomic(resealed(path), seal(key, new), private=True)
    except BaseException:
        _drop(keys)
        raise
    for path in keys:
        move(resealed(path), path)


def _finish(paths: Collection[Path], passphrase: str | None) -> None:
    """Complete a change that was interrupted, or drop it, as the passphrase says."""
    for path in paths:
        remove_leftovers(path.parent, of=path.name)
        if not opens(path, passphrase):
            move(resealed(path), path)
    _drop(paths)


def _drop(paths: Collection[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            resealed(path).unlink()
