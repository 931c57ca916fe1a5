"""`fedward client`: what a hospital runs. The commands are in `client.commands`."""

from __future__ import annotations

from fedward.client.commands import (
    budget,
    check_data,
    daemon,
    decide,
    doctor,
    enrol,
    keys,
    log,
    review,
)
from fedward.common.commands import assemble, new_app
from fedward.common.errors import (
    DataError,
    IdentityError,
    OutputError,
    SiteConfigError,
    StateError,
    StudyError,
)
from fedward.common.exit_codes import exit_codes_help

app = new_app(
    name="client",
    no_args_is_help=True,
    help="""What a hospital runs on its own machine, beside its own data.

\b
Examples:
  fedward client init --dir north --site north
  fedward client install north north.crt
  fedward client check-data study.toml north/site.toml
""",
    epilog=exit_codes_help(
        StudyError, SiteConfigError, DataError, IdentityError, OutputError, StateError
    ),
)


@app.callback()
def client() -> None:
    """Hold the commands."""


FAMILIES = (
    enrol,
    check_data,
    review,
    decide,
    budget,
    daemon,
    doctor,
    keys,
    log,
)
"""Modules with commands, in the order of `fedward client --help`; one line for each."""

assemble(app, FAMILIES)
