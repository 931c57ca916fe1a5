"""`fedward client encrypt-keys`: a passphrase for the key files of a site, or another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.commands import (
    AsJson,
    NewPassphraseFile,
    PassphraseFile,
    new_app,
    passphrase_from,
    tell_encrypted,
)
from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.exit_codes import exit_codes_help

app = new_app()


@app.command(
    "encrypt-keys",
    short_help="Encrypt both key files of this site, or change their passphrase.",
    help="""Encrypt both key files of this site, or change their passphrase.

Works on identity/site.key and identity/patients.key together, whether they are encrypted yet or
not. Stop the daemon first. If this is interrupted, both files open with the old passphrase, or both
with the new one: give the command again, with the one that opens them as --passphrase-file.

Files that an older fedward encrypted can be guessed at too cheaply: without
--new-passphrase-file, this encrypts them anew with the same passphrase.

What was written before is not overwritten on the disk, nor in a backup: destroy older copies.

\b
Examples:
  fedward client encrypt-keys north --passphrase-file secret
  fedward client encrypt-keys north --passphrase-file secret \\
    --new-passphrase-file other
""",
    epilog=exit_codes_help(SiteConfigError, IdentityError, OutputError, StateError),
)
def encrypt_keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")],
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: NewPassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Encrypt what `SiteFolder` has of keys."""
    from fedward.client.home import SiteFolder
    from fedward.client.passphrase import encrypt

    old = passphrase_from(passphrase_file)
    new = passphrase_from(new_passphrase_file) if new_passphrase_file else old
    tell_encrypted(encrypt(SiteFolder.open(folder), old, new), as_json=as_json)
