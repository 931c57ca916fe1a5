"""The `fedward` command: finds the group that is asked for, and ends every failure in one line.

Groups are imported when they are invoked, not before: a hospital's `fedward client` never loads
server code, and `fedward study hash` loads no torch. Adding a group is one line in `GROUPS`.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

import fedward.common.wire  # noqa: F401  (before anything loads gRPC: no TLS but 1.3)
from fedward.common.errors import FedwardError, Interrupted, MissingExtraError, place_of
from fedward.common.exit_codes import BROKEN_PIPE, DEFECT, exit_codes
from fedward.common.files import output_error
from fedward.common.version import version


@dataclass(frozen=True)
class Group:
    """One entry of the root command.

    Attributes:
        module: what to import when it is invoked; it holds a typer application named `app`.
        extra: the extra of the distribution that installs what the module needs; empty if none.
        help: one line for `fedward --help`.
    """

    module: str
    extra: str
    help: str


GROUPS: Mapping[str, Group] = {
    "study": Group("fedward.common.study.cli", "", "Write, check, hash and explain a study file."),
    "simulate": Group(
        "fedward.simulations.cli",
        "simulations",
        "Run a study on this machine over virtual hospitals, and report.",
    ),
    "server": Group(
        "fedward.server.cli", "server", "What the coordinator runs: enrol hospitals, run studies."
    ),
    "rehearse": Group(
        "fedward.simulations.rehearsal.cli",
        "simulations",
        "Rehearse a study with the real server and daemons, on this machine.",
    ),
    "bench": Group(
        "fedward.simulations.bench.cli",
        "simulations",
        "Measure how fast simulations are on this machine, beside other programs.",
    ),
    "client": Group(
        "fedward.client.cli", "client", "What a hospital runs: enrol, check its data, take part."
    ),
    "predict": Group(
        "fedward.client.predict_cli", "client", "Score new patients with a trained model."
    ),
}

_HELP = """Federated learning across hospitals with patient-level differential privacy.

A study is one file, study.toml. It says what is predicted, from which data, with which model and at
which privacy cost. The same file drives a simulation on one machine and, later, a federation.

\b
Examples:
  fedward study new --modality tabular    write an annotated study.toml
  fedward study show study.toml           what would leave a hospital
  fedward simulate study.toml --out OUT   run it over virtual hospitals
  fedward predict OUT/model patients.csv  score new patients

`fedward COMMAND --help` explains each command.
"""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_COMPLETION = ("install_completion", "show_completion")


class LazyGroups(click.Group):
    """A click group that knows its commands from a table and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Names in the order of `GROUPS`."""
        return list(GROUPS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  (click's signature)
        cmd_name: str,
    ) -> click.Command | None:
        """Import the module of `cmd_name` and return its click command.

        Raises:
            MissingExtraError: the module needs a package that is not installed.
        """
        if cmd_name not in GROUPS:
            return None
        try:
            return _load(cmd_name)
        except ModuleNotFoundError as error:
            raise _missing(error, cmd_name) from error

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  (click's signature)
        formatter: click.HelpFormatter,
    ) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, group.help) for name, group in GROUPS.items()])


def _load(name: str) -> click.Command:
    import typer

    module = importlib.import_module(GROUPS[name].module)
    app: typer.Typer = module.app
    # Plain help: the same on a terminal, in a log and in docs/cli.md. (typer escapes brackets for
    # rich even where an application asks for plain text, so rich is switched off altogether.)
    typer.core.HAS_RICH = False
    command = typer.main.get_command(app)
    command.name = name
    command.params = [p for p in command.params if p.name not in _COMPLETION]
    return command


def _missing(error: ModuleNotFoundError, name: str) -> Exception:
    """`error` as a refusal that names the extra; a missing module of our own is a defect."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "fedward"):
        return error
    extra = GROUPS[name].extra if name in GROUPS else ""
    target = f"fedward[{extra}]" if extra else "fedward"
    return MissingExtraError(
        f"`fedward {name}` needs the package {package}, which is not installed",
        hint=f"pip install '{target}'",
    )


def _epilog() -> str:
    lines = [f"  {code:<4} {meaning}" for code, meaning in exit_codes().items()]
    return "\n".join(["\b\nExit codes:", *lines])


@click.command(
    cls=LazyGroups,
    help=_HELP,
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--debug",
    is_flag=True,
    envvar="FEDWARD_DEBUG",
    help="Show the full traceback of an error. It may quote data: keep it inside the hospital. "
    "FEDWARD_DEBUG=1 does the same.",
)
@click.version_option(version(), prog_name="fedward", message="%(prog)s %(version)s")
def root(debug: bool) -> None:
    """Carry the options of `fedward` itself; `main` reads them from the context."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `fedward` and return its exit code; never raises.

    Args:
        arguments: the command line without the program's name; that of this process by default.
    """
    # Flower must not report usage or look for updates from a machine that holds patient data.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    context: click.Context | None = None
    try:
        with root.make_context("fedward", given) as context:
            root.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as wrong:
        wrong.show(file=sys.stderr)
        return wrong.exit_code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except BaseException as error:  # noqa: BLE001  (entry point: nothing escapes as a traceback)
        debug = context is not None and bool(context.params.get("debug"))
        return _fail(error, context.invoked_subcommand if context else None, debug=debug)
    return 0


def _fail(error: BaseException, command: str | None, *, debug: bool) -> int:
    """Say in one line why the command ended, and return the exit code."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    while isinstance(error, BaseExceptionGroup):  # of tasks side by side: the first that failed
        error = error.exceptions[0]
    if isinstance(error, ModuleNotFoundError):
        error = _missing(error, command or "")
    refusal = _as_refusal(error)
    if refusal is not None:
        _tell(f"error: {_one_line(str(refusal))}")
        return refusal.exit_code
    _tell(
        f"error: this is a defect in fedward: {type(error).__name__} {place_of(error)};"
        " run again with `fedward --debug …` to see where, and please report it"
    )
    return DEFECT


def _tell(line: str) -> None:
    """Write to standard error; if that is a full disk or closed, the exit code must do."""
    with suppress(OSError):
        click.echo(line, err=True)


def _as_refusal(error: BaseException) -> FedwardError | None:
    if isinstance(error, FedwardError):
        return error
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Interrupted("stopped by Ctrl-C", hint="nothing more was written; start it again")
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return output_error(Path(str(error.filename or "the output")), error)
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere, as the `signal` documentation advises."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    finally:
        os.close(null)
