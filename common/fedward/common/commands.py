"""What the commands of server and client share: options, output for programs, questions to people.

A command family is a module with a typer application `app`; `assemble` puts several into a group.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fedward.common.errors import IdentityError
from fedward.common.identity.key_files import find_passphrase
from fedward.common.identity.keys import same_fingerprint, spoken

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="File of mode 0600 with the passphrase of the key files; else it is taken from the "
        "variable FEDWARD_PASSPHRASE; without either, keys are not encrypted.",
    ),
]

NewPassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--new-passphrase-file",
        metavar="FILE",
        help="File of mode 0600 with the passphrase from now on; without it, it stays the same.",
    ),
]


def new_app(**about: Any) -> typer.Typer:
    """A typer application as all of ours are: plain text, no completion."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, **about)


def assemble(app: typer.Typer, families: Iterable[ModuleType]) -> None:
    """Put the commands of several modules into one group, in that order."""
    for family in families:
        inner: typer.Typer = family.app
        app.registered_commands += inner.registered_commands
        app.registered_groups += inner.registered_groups


def passphrase_from(file: Path | None) -> str | None:
    """See `PassphraseFile`.

    Raises:
        IdentityError: the file is missing, or others may read it.
    """
    return find_passphrase(file)


def tell_encrypted(files: Iterable[str], *, as_json: bool) -> None:
    """Say which key files were encrypted, and what that does not reach."""
    names = list(files)
    if as_json:
        print_json({"encrypted": names})
        return
    typer.echo(f"encrypted {', '.join(names)}")
    typer.echo("older copies, in backups too, are as they were: destroy them")


def print_json(value: Any) -> None:
    """Print JSON, for other programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def confirm_fingerprint(
    given: str | None, fingerprint: str, *, whose: str, says: str, option: str
) -> None:
    """Return if a person has compared a fingerprint, by an option or by answering now.

    Args:
        given: what they typed as an option.
        fingerprint: what it must be.
        whose: for the question, such as "the key of north".
        says: who must have said the same, such as "the hospital".
        option: the name of the option, for who cannot be asked.

    Raises:
        IdentityError: it differs, they did not confirm it, or nobody can be asked.
    """
    hint = f"do not go on; ask {says}, over a way that the file did not take"
    if given is not None:
        if not same_fingerprint(given, fingerprint):
            raise IdentityError(f"the fingerprint of {whose} is another", hint=hint)
        return
    typer.echo(f"fingerprint of {whose}:\n  {spoken(fingerprint)}", err=True)
    if not sys.stdin.isatty():
        raise IdentityError(
            f"nobody compared the fingerprint of {whose}",
            hint=f"call {says}, and give what is read out to you with {option}",
        )
    question = f"Is this what {says} says, over the telephone or face to face?"
    if not typer.confirm(question, default=False, err=True):
        raise IdentityError(f"the fingerprint of {whose} was not confirmed", hint=hint)
