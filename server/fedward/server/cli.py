"""`fedward server`: what the coordinator runs. The commands are in `server.commands`."""

from __future__ import annotations

from fedward.common.commands import assemble, new_app
from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.exit_codes import exit_codes_help
from fedward.server.commands import doctor, keys, log, members, run, runs, studies

app = new_app(
    name="server",
    no_args_is_help=True,
    help="""What the coordinator of a consortium runs: the server, and what it needs.

\b
Examples:
  fedward server init --dir consortium --name "Cardio" --host fl.example.org
  fedward server enroll consortium north.csr
  fedward server roster consortium
""",
    epilog=exit_codes_help(SiteConfigError, IdentityError, OutputError, StateError),
)


@app.callback()
def server() -> None:
    """Hold the commands."""


FAMILIES = (
    members,
    run,
    studies,
    runs,
    doctor,
    keys,
    log,
)
"""Modules with commands, in the order of `fedward server --help`; one line for each."""

assemble(app, FAMILIES)
