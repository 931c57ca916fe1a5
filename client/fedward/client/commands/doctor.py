"""`fedward client doctor`: what is wrong at this site, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.commands import AsJson, PassphraseFile, new_app, passphrase_from
from fedward.common.errors import (
    DataError,
    IdentityError,
    LinkError,
    OutputError,
    SiteConfigError,
    StateError,
    StudyError,
)
from fedward.common.exit_codes import exit_codes_help

app = new_app()


@app.command(
    "doctor",
    short_help="Look at everything that can be wrong at this site, and say what to do.",
    help="""Look at everything that can be wrong at this site, and say what to do.

Settings, keys and who may read them, certificate and its dates, roster; the server's name, its
port, TLS with this site's certificate, the greeting, both clocks; disk, limits, whether the daemon
runs; the privacy ledger, the audit log, the policy; and whether the data fit every study that was
offered. Each line says `ok`, `soon` or `WRONG`, and then what to do. What cannot be looked at
because of something before it is `skipped`.

Nothing is changed. The server is greeted; nothing about the data is sent to it. The exit code is
that of the first thing that is wrong.

\b
Examples:
  fedward client doctor north
  fedward client doctor north --json
""",
    epilog=exit_codes_help(
        StudyError, SiteConfigError, DataError, OutputError, IdentityError, LinkError, StateError
    ),
)
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the checks of a site."""
    from fedward.client.diagnosis import diagnosis
    from fedward.common.diagnosis.command import show

    found = diagnosis(folder, passphrase=passphrase_from(passphrase_file))
    show(found.checks(), as_json=as_json)
