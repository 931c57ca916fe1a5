"""`fedward client run, status`: the daemon, and how it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedward.common.commands import (
    AsJson,
    PassphraseFile,
    new_app,
    passphrase_from,
    print_json,
)
from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.exit_codes import exit_codes_help

if TYPE_CHECKING:
    from fedward.client.home import SiteFolder

app = new_app()
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")]


@app.command(
    "run",
    short_help="Run the daemon: connect to the server and do what this site has approved.",
    help="""Run the daemon: connect to the server and do what this site has approved.

It connects outwards, to the one address that client.toml or the roster names, and trains in another
process, with the limits of client.toml. Stop it with Ctrl-C or SIGTERM: it ends within ten seconds.
It logs JSON lines to standard error; the part of them that may be shown to others also goes to the
file shareable.log in the folder state/logs.

\b
Examples:
  fedward client run north
  fedward client run north --passphrase-file secret
""",
    epilog=exit_codes_help(IdentityError, OutputError, SiteConfigError, StateError),
)
def run(
    folder: Folder,
    passphrase_file: PassphraseFile = None,
    level: Annotated[
        str, typer.Option("--log-level", help="Least that is logged: debug, info, warning, error.")
    ] = "info",
) -> None:
    """Serve until a signal says otherwise."""
    import asyncio

    from fedward.client.home import SiteFolder
    from fedward.common.files import private_folder
    from fedward.common.logs import configure

    home = SiteFolder.open(folder)
    private_folder(home.state)
    private_folder(home.logs)
    with configure(level, shareable=home.logs / "shareable.log"):
        asyncio.run(_serve(home, passphrase_from(passphrase_file)))


async def _serve(home: SiteFolder, passphrase: str | None) -> None:
    import asyncio
    import signal

    from fedward.client.daemon.service import serve

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(home, home.load_identity(passphrase), stop=stop, passphrase=passphrase)


@app.command(
    "status",
    short_help="Say how the daemon is: connection, studies, runs, last refusals.",
    help="""Say how the daemon is: connection, studies, runs, last refusals.

Reads what the daemon wrote last; it asks nobody. Exit code 15 if no daemon runs on the folder.

\b
Examples:
  fedward client status north
  fedward client status north --json
""",
    epilog=exit_codes_help(SiteConfigError, StateError),
)
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Print the daemon's own account of itself."""
    from fedward.client.daemon.status import read_status
    from fedward.client.home import SiteFolder
    from fedward.common.lock import is_held

    home = SiteFolder.open(folder)
    running, facts = is_held(home.lock), read_status(home.status)
    if as_json:
        print_json({"running": running, **facts})
    else:
        typer.echo("\n".join(_lines(running, facts)))
    if not running:
        raise StateError(
            "no client runs on this folder", hint=f"start it: `fedward client run {folder}`"
        )


def _lines(running: bool, facts: dict[str, Any]) -> list[str]:
    lines = [f"site      {facts.get('site', '-')}", f"client    {_running(running, facts)}"]
    if running:
        lines.append(f"link      {facts.get('link')}")
    if facts.get("halted"):
        lines.append(f"HALTED    {facts['halted']}")
    for study, about in sorted(facts.get("studies", {}).items()):
        choice = about.get("choice") or "undecided"
        lines.append(f"study     {study[:12]}  {about.get('state')}  here: {choice}")
    for run_name, about in sorted(facts.get("runs", {}).items()):
        last = f"{about.get('action')} of round {about.get('round')} at {about.get('at')}"
        lines.append(f"run       {run_name}  {last}")
    for refusal in facts.get("refusals", [])[-3:]:
        what = f"{refusal.get('action')} of round {refusal.get('round')}"
        lines.append(f"refused   {what} at {refusal.get('at')}: {refusal.get('reason')}")
    return lines


def _running(running: bool, facts: dict[str, Any]) -> str:
    if not running:
        return "does not run"
    return f"runs since {facts.get('started')}, process {facts.get('pid')}"
