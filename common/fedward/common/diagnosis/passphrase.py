"""Whether the key files of a folder need a passphrase: all of them, and one that costs to guess."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedward.common.diagnosis.findings import Advice
from fedward.common.identity.key_files import read_secret, resealed
from fedward.common.identity.pkcs8 import ROUNDS, is_sealed, rounds_of


def passphrase(paths: Iterable[Path], command: str) -> str | Advice:
    """What protects key files that somebody copies.

    Args:
        paths: the files.
        command: that encrypts them.

    Raises:
        IdentityError: one is missing, or others may read it.
    """
    files = {path: read_secret(path) for path in paths}
    sealed = [path.name for path, data in files.items() if is_sealed(data)]
    plain = [path.name for path in files if path.name not in sealed]
    run = f"run `{command}`"
    if any(resealed(path).exists() for path in files):
        return Advice("its change was interrupted", f"{run} again")
    if not sealed:
        return "none: whoever copies the folder has its keys"
    if plain:
        return Advice(
            f"needed for {_and(sealed)}, not for {_and(plain)}", f"{run}, which encrypts all"
        )
    weak = [path.name for path, data in files.items() if rounds_of(data) < ROUNDS]
    if weak:
        return Advice(f"it is cheap to guess it from {_and(weak)}", f"{run}, which encrypts anew")
    return f"needed for {_and(sealed)}"


def _and(names: list[str]) -> str:
    return " and ".join(names)
