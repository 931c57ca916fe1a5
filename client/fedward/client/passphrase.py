"""One passphrase for both key files of a site."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedward.client.home import SiteFolder
from fedward.common.files import private_folder
from fedward.common.identity.resealing import reseal
from fedward.common.identity.secret_file import as_key
from fedward.common.lock import held


def encrypt(home: SiteFolder, old: str | None, new: str | None) -> tuple[str, ...]:
    """Encrypt both files, however they are now; says their names.

    Args:
        home: the site's folder.
        old: the passphrase until now; None if no file needs one.
        new: the passphrase from now on.

    Raises:
        IdentityError: a file does not open, or the new passphrase is missing or too short.
        StateError: the daemon runs.
        OutputError: the disk refuses.
    """
    private_folder(home.state)
    with held(home.lock, who="a client"):
        key, patients = home.load_key(old), as_key(home.load_patients_key(old))
        keys: dict[Path, PrivateKeyTypes] = {home.key: key.raw, home.patients_key: patients}
        reseal(keys, old, new)
    return tuple(path.name for path in keys)
