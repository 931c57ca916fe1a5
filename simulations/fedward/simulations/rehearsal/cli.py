"""`fedward rehearse`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fedward.common.errors import (
    DataError,
    OutputError,
    PrivacyError,
    RoundError,
    SiteConfigError,
    StateError,
    StudyError,
)
from fedward.common.exit_codes import exit_codes_help
from fedward.common.study import load_study

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_HELP = """Rehearse a study on this machine with the real server and the real daemons.

Founds a consortium, enrols the hospitals, starts the service and a daemon for each on a port of
this machine, submits the study, approves it everywhere, and waits until the model is released: by
the same commands that the people would give, with real keys, certificates and ledgers. Then it
compares the model with that of the simulation, verifies all logs and the release, and shows what
was spent of each hospital's privacy.

The patients are those of the study's [simulation], or made from its schema. With --chaos, service,
daemons and training processes are killed at random moments and started again: the model must be the
same. Nothing of a rehearsal is for release.

\b
Examples:
  fedward rehearse study.toml
  fedward rehearse study.toml --sites 4 --made --out rehearsal
  fedward rehearse study.toml --chaos 10
"""


@app.command(
    help=_HELP,
    epilog=exit_codes_help(
        StudyError, SiteConfigError, DataError, PrivacyError, RoundError, OutputError, StateError
    ),
)
def rehearse(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (study.toml).")],
    sites: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="How many hospitals; else as many as it simulates, or 4."),
    ] = None,
    made: Annotated[
        bool, typer.Option("--made", help="Make patients from the schema in any case.")
    ] = False,
    chaos: Annotated[
        int,
        typer.Option(min=0, max=1000, metavar="KILLS", help="Kill something this many times."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the chaos.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep everything there; must be new or empty."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for other programs.")
    ] = False,
) -> None:
    """Rehearse, and say what came of it."""
    load_study(study)  # refused before anything heavy is loaded
    from fedward.simulations.rehearsal.rehearse import Plan, Rehearsed
    from fedward.simulations.rehearsal.rehearse import rehearse as carry_out

    def said(line: str) -> None:
        typer.echo(line, err=True)

    def go(folder: Path) -> Rehearsed:
        return carry_out(Plan(study, folder, sites=sites, made=made, kills=chaos, seed=seed), said)

    if out is not None:
        found = go(out)
    else:
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
            found = go(Path(folder))
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))
    if not found.fine:
        raise RoundError("the rehearsal found problems", hint="; ".join(found.problems))
