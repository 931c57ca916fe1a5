"""`fedward server encrypt-keys`: a passphrase for the coordinator's key files, or another one."""

from __future__ import annotations

from fedward.common.commands import (
    AsJson,
    NewPassphraseFile,
    PassphraseFile,
    new_app,
    passphrase_from,
    tell_encrypted,
)
from fedward.server.commands.arguments import CODES, Folder

app = new_app()


@app.command(
    "encrypt-keys",
    short_help="Encrypt the coordinator's key files, or change their passphrase.",
    help="""Encrypt the coordinator's key files, or change their passphrase.

Works on identity/server.key and identity/issuer.key together, and on ca/root.key if it is here,
whether they are encrypted yet or not. Stop the service first. If this is interrupted, all files
open with the old passphrase, or all with the new one: give the command again, with the one that
opens them as --passphrase-file.

Files that an older fedward encrypted can be guessed at too cheaply: without
--new-passphrase-file, this encrypts them anew with the same passphrase.

What was written before is not overwritten on the disk, nor in a backup: destroy older copies. A
root's key that is kept elsewhere stays as it is.

\b
Examples:
  fedward server encrypt-keys consortium --passphrase-file secret
  fedward server encrypt-keys consortium --passphrase-file secret \\
    --new-passphrase-file other
""",
    epilog=CODES,
)
def encrypt_keys(
    folder: Folder,
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: NewPassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Encrypt what `ConsortiumFolder` has of keys."""
    from fedward.common.lock import held
    from fedward.server.authority import Registrar
    from fedward.server.home import ConsortiumFolder

    old = passphrase_from(passphrase_file)
    new = passphrase_from(new_passphrase_file) if new_passphrase_file else old
    with held(ConsortiumFolder.open(folder).lock, who="a server"):
        files = Registrar.open(folder, old).encrypt_keys(new)
    tell_encrypted(files, as_json=as_json)
