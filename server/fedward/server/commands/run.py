"""`fedward server run`: the service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedward.common.commands import AsJson, PassphraseFile, new_app, passphrase_from, print_json
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
    "run",
    short_help="Run the service that hospitals connect to.",
    help="""Run the service that hospitals connect to, until it is told to stop.

It answers hospitals, starts studies that all have answered, follows their rounds and releases
models. Commands given meanwhile are noticed within a second. Stopped or killed at any moment, it
goes on where it was when it is started again.

Writes its log to the standard error stream, one JSON object per line, and without what must stay
private to logs/shareable.log. Ends on SIGTERM and on Ctrl-C.

\b
Example:
  fedward server run consortium
""",
    epilog=exit_codes_help(SiteConfigError, IdentityError, LinkError, OutputError, StateError),
)
def run(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The consortium's folder.")],
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--log-level", help="The least that is logged."),
    ] = "info",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Serve until told to stop."""
    # Before NumPy is there: its threads wait for each other by spinning, and blocks are small.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import asyncio

    from fedward.common.logs import configure
    from fedward.server.home import ConsortiumFolder
    from fedward.server.service import Options, serve

    home = ConsortiumFolder.open(folder)
    home.logs.mkdir(exist_ok=True)

    def started(port: int) -> None:
        if as_json:
            print_json({"port": port})
        else:
            typer.echo(f"listening on port {port}; stop with Ctrl-C")

    options = Options(passphrase_from(passphrase_file), started, own_process=True)
    with configure(log_level, shareable=home.logs / "shareable.log"):
        asyncio.run(serve(home, options))
