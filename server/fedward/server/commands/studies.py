"""`fedward server submit, start, status`: from a study file to a run."""

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
from fedward.common.errors import (
    IdentityError,
    OutputError,
    SiteConfigError,
    StateError,
    StudyError,
)
from fedward.common.exit_codes import exit_codes_help
from fedward.server.commands.arguments import CODES, Folder

if TYPE_CHECKING:
    from fedward.server.registry import Offer

app = new_app()


@app.command(
    "submit",
    short_help="Sign a study and offer it to the hospitals.",
    help="""Sign a study and offer it to the hospitals.

Each hospital's people review it and approve or refuse. The running service starts it by itself once
every invited hospital has answered and enough have approved ([aggregation] min_sites). Giving the
command again with other --sites invites more.

\b
Examples:
  fedward server submit consortium study.toml
  fedward server submit consortium study.toml --sites north,south
""",
    epilog=exit_codes_help(StudyError, SiteConfigError, IdentityError, OutputError, StateError),
)
def submit(
    folder: Folder,
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="The study file (study.toml).")
    ],
    sites: Annotated[
        str | None,
        typer.Option("--sites", metavar="A,B", help="Whom to invite; all active by default."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign and offer."""
    from fedward.common.study import load_study
    from fedward.server.office import Office

    study = load_study(study_file)
    wanted = None if sites is None else [name.strip() for name in sites.split(",")]
    with Office.open(folder) as office:
        offer = office.submit(study, wanted, passphrase_from(passphrase_file))
    if as_json:
        print_json(_shown(offer))
        return
    typer.echo(f"offered {offer.name} to {', '.join(offer.answers)}")
    typer.echo(f"hash: {offer.study}")


@app.command(
    "start",
    short_help="Start a study with those who have approved, without waiting for the others.",
    help="""Start a study with those who have approved, without waiting for the others.

Enough must have approved. Hospitals that have not answered cannot join this run later. After a run
that failed or was stopped, this begins another from the start, and costs privacy again; `resume`
continues the old one.

\b
Example:
  fedward server start consortium heart-disease
""",
    epilog=CODES,
)
def start(
    folder: Folder,
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Its name, or the beginning of its hash.")
    ],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Force the start."""
    from fedward.server.office import Office

    with Office.open(folder) as office:
        run = office.start(study, passphrase_from(passphrase_file))
        serving = office.serving
    if as_json:
        print_json({"run": run.id, "study": run.study, "sites": list(run.sites)})
        return
    typer.echo(f"started {run.id} with {', '.join(run.sites)}")
    if not serving:
        typer.echo("the service is not running: `fedward server run` does the rounds")


@app.command(
    "status",
    short_help="Show the service, who is connected, and where studies stand.",
    help="""Show the service, who is connected, and where studies stand.

\b
Examples:
  fedward server status consortium
  fedward server status consortium --json
""",
    epilog=CODES,
)
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Print service, sites and studies."""
    from fedward.server.office import Office

    with Office.open(folder) as office:
        service, offers = office.service(), office.registry.studies()
        waiting = {run: facts["waiting"] for run, facts in service.get("runs", {}).items()}
    if as_json:
        print_json({"service": service, "studies": [_shown(offer) for offer in offers]})
        return
    if service["running"]:
        typer.echo(f"the service runs on port {service['port']} since {service['since']}")
    else:
        typer.echo("the service is not running")
    for name, site in service.get("sites", {}).items():
        there = "connected" if site["connected"] else f"away ({site['reason']})"
        typer.echo(f"  {name:<20} {there}")
    for offer in offers:
        _tell(offer, waiting)


def _tell(offer: Offer, waiting: dict[str, str]) -> None:
    typer.echo(f"{offer.name} {offer.study[:12]} is {offer.state}")
    for site, answer in offer.answers.items():
        typer.echo(f"  {site:<20} {_said(answer.choice)}")
    for run in offer.runs:
        typer.echo(f"  run {run}")
        if waiting.get(run):
            typer.echo(f"    waits: {waiting[run]}")


def _said(choice: object) -> str:
    words = {"approve": "approved", "refuse": "refused", "withdraw": "withdrew"}
    return words.get(str(choice), "has not answered")


def _shown(offer: Offer) -> dict[str, Any]:
    return {
        "study": offer.study,
        "name": offer.name,
        "state": offer.state.value,
        "min_sites": offer.min_sites,
        "answers": {
            site: None if answer.choice is None else answer.choice.value
            for site, answer in offer.answers.items()
        },
        "runs": list(offer.runs),
    }
