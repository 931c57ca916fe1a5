"""`fedward client log`: the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.audit.command import CertificateFile, Expected, verify
from fedward.common.commands import AsJson, new_app
from fedward.common.errors import IdentityError, StateError
from fedward.common.exit_codes import exit_codes_help

app = new_app()
log = new_app(
    name="log",
    no_args_is_help=True,
    help="""The audit log: what was done at this site, chained and signed.

\b
Example:
  fedward client log verify north
""",
    epilog=exit_codes_help(IdentityError, StateError),
)
app.add_typer(log, name="log", short_help="Verify the audit log.")


@log.callback()
def group() -> None:
    """Keep `verify` a command of a group."""


@log.command(
    "verify",
    short_help="Check that no entry of the audit log was changed, removed or moved.",
    help="""Check that no entry of the audit log was changed, removed or moved.

Needs no network and no secret key. The server keeps the ends of this log; with --expected, one of
those shows whether entries are missing at the end.

\b
Examples:
  fedward client log verify north
  fedward client log verify audit.log --certificate site.crt
""",
    epilog=exit_codes_help(IdentityError, StateError),
)
def verify_command(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The site's folder, or a log file.")
    ],
    certificate: CertificateFile = None,
    expected: Expected = None,
    as_json: AsJson = False,
) -> None:
    """Verify the folder's log with the site's own public key."""
    from fedward.client.home import SiteFolder

    if not path.is_dir():
        verify(path, None, certificate, expected, as_json)
        return
    folder = SiteFolder.open(path)
    verify(folder.audit_log, folder.load_public_key(), certificate, expected, as_json)
