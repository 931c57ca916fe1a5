"""`fedward server doctor`: what is wrong with this server, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.commands import AsJson, PassphraseFile, new_app, passphrase_from
from fedward.common.errors import (
    IdentityError,
    LinkError,
    OutputError,
    SiteConfigError,
    StateError,
)
from fedward.common.exit_codes import exit_codes_help

app = new_app()


@app.command(
    "doctor",
    short_help="Look at everything that can be wrong with this server, and say what to do.",
    help="""Look at everything that can be wrong with this server, and say what to do.

Settings, keys and who may read them, whether the root's key is away, certificates and their dates,
the public name, the roster, the database, disk, limits, the port, the audit log. Each line says
`ok`, `soon` or `WRONG`, and then what to do. Nothing is changed. The exit code is that of the first
thing that is wrong.

\b
Examples:
  fedward server doctor consortium
  fedward server doctor consortium --json
""",
    epilog=exit_codes_help(SiteConfigError, OutputError, IdentityError, LinkError, StateError),
)
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The consortium's folder.")],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the checks of a server."""
    from fedward.common.diagnosis.command import show
    from fedward.server.diagnosis import diagnosis

    found = diagnosis(folder, passphrase=passphrase_from(passphrase_file))
    show(found.checks(), as_json=as_json)
