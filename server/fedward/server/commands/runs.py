"""`fedward server runs, run-show, stop, resume, verify-release`."""

from __future__ import annotations

from datetime import UTC, datetime
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
    ModelError,
)
from fedward.common.exit_codes import exit_codes_help
from fedward.server.commands.arguments import CODES, Folder

if TYPE_CHECKING:
    from fedward.server.registry import Round, Run

app = new_app()

RunId = Annotated[str, typer.Argument(metavar="RUN", help="As `fedward server runs` shows it.")]


@app.command(
    "runs",
    short_help="List runs and where they stand.",
    help="""List runs and where they stand, oldest first.

\b
Example:
  fedward server runs consortium
""",
    epilog=CODES,
)
def runs(folder: Folder, as_json: AsJson = False) -> None:
    """Print a line for each run."""
    from fedward.server.office import Office

    with Office.open(folder) as office:
        found = office.registry.runs()
    if as_json:
        print_json([_shown(run) for run in found])
        return
    for run in found:
        why = f": {run.reason}" if run.reason else ""
        typer.echo(f"{run.id}  {run.state}, round {run.round} of {run.rounds}{why}")


@app.command(
    "run-show",
    short_help="Show a run round by round.",
    help="""Show a run round by round: who contributed, who did not and why, metrics.

\b
Examples:
  fedward server run-show consortium heart-disease-3f2a91bc-1
  fedward server run-show consortium heart-disease-3f2a91bc-1 --json
""",
    epilog=CODES,
)
def run_show(folder: Folder, run_id: RunId, as_json: AsJson = False) -> None:
    """Print a run's rounds."""
    from fedward.server.office import Office

    with Office.open(folder) as office:
        run, rounds = office.registry.run(run_id), office.registry.rounds(run_id)
        events = office.registry.events(run=run_id)
    if as_json:
        told = [{"at": _time(e.at_ms), "kind": e.kind, "facts": dict(e.facts)} for e in events]
        print_json({**_shown(run), "history": [_round(r) for r in rounds], "events": told})
        return
    typer.echo(f"{run.id}: {run.state}, round {run.round} of {run.rounds}")
    if run.reason:
        typer.echo(f"  {run.reason}")
    for one in rounds:
        typer.echo(f"round {one.round}: {who(one)}")
        for site, why in sorted(one.refused.items()):
            typer.echo(f"  without {site}: {why}")
        for name, value in one.evaluation.get("overall", {}).items():
            typer.echo(f"  {name} {'-' if value is None else format(value, '.4f')}")


def who(one: Round) -> str:
    """The participants of a round, for people."""
    return ", ".join(one.participants) or "nobody, so the model is as it was"


@app.command(
    "stop",
    short_help="Stop a run after its round, or take back an offer.",
    help="""Stop a run after its round, or take back an offer that no run has begun.

A run that waits for hospitals stops at once. `resume` continues it from its last checkpoint.

\b
Examples:
  fedward server stop consortium heart-disease-3f2a91bc-1
  fedward server stop consortium heart-disease
""",
    epilog=CODES,
)
def stop(
    folder: Folder,
    what: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a study without one.")],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask the service to stop it."""
    from fedward.server.office import Office

    with Office.open(folder) as office:
        done = office.stop(what, passphrase_from(passphrase_file))
    if as_json:
        print_json({"done": done, "what": what})
        return
    typer.echo(f"{what}: {done}")


@app.command(
    "resume",
    short_help="Continue a run that was stopped or failed.",
    help="""Continue a run that was stopped or failed, from its last checkpoint.

\b
Example:
  fedward server resume consortium heart-disease-3f2a91bc-1
""",
    epilog=CODES,
)
def resume(
    folder: Folder, run_id: RunId, passphrase_file: PassphraseFile = None, as_json: AsJson = False
) -> None:
    """Make the run active again."""
    from fedward.server.office import Office

    with Office.open(folder) as office:
        run = office.resume(run_id, passphrase_from(passphrase_file))
        serving = office.serving
    if as_json:
        print_json(_shown(run))
        return
    typer.echo(f"{run.id} goes on after round {run.round}")
    if not serving:
        typer.echo("the service is not running: `fedward server run` does the rounds")


@app.command(
    "verify-release",
    short_help="Check a released model and its evidence, offline.",
    help="""Check a released model and its evidence, offline: every byte and every signature.

Needs the folder `release` of a run and the consortium's root certificate, whose fingerprint you
compare with what the coordinator says. With --roster, a roster under that root is used instead of
the one in the release.

\b
Examples:
  fedward server verify-release release --root root.crt
  fedward server verify-release release --root root.crt --roster roster.json
""",
    epilog=exit_codes_help(ModelError, IdentityError),
)
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RELEASE", help="The folder `release`.")],
    root: Annotated[
        Path, typer.Option("--root", metavar="FILE", help="The consortium's root certificate.")
    ],
    roster_file: Annotated[
        Path | None, typer.Option("--roster", metavar="FILE", help="A roster to check with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify and print what was found."""
    from dataclasses import asdict

    from fedward.common.files import read_bytes
    from fedward.common.identity import read_certificate, read_roster, spoken
    from fedward.common.identity.roster import roster_issuer
    from fedward.server.verification import verify_release

    root_pem = read_bytes(root, error=IdentityError)
    roster = None
    if roster_file is not None:
        data = read_bytes(roster_file, error=IdentityError)
        roster = read_roster(data, root_pem, now=roster_issuer(data).not_before)
    found = verify_release(folder, root_pem=root_pem, roster=roster)
    fingerprint = read_certificate(root_pem).fingerprint
    if as_json:
        print_json({"ok": True, "root_fingerprint": fingerprint, **asdict(found)})
        return
    typer.echo(f"the release of {found.run} is as {found.signer} of {found.consortium} signed it")
    typer.echo(f"study {found.study}, {found.rounds} rounds, {found.files} files")
    typer.echo(f"{found.proven} of {found.contributions} contributions are proven")
    for site, count in found.sites.items():
        typer.echo(f"  {site:<20} {count} rounds")
    typer.echo(f"fingerprint of the root, to be compared:\n  {spoken(fingerprint)}")


def _shown(run: Run) -> dict[str, Any]:
    return {
        "run": run.id,
        "study": run.study,
        "name": run.name,
        "state": run.state.value,
        "reason": run.reason,
        "round": run.round,
        "rounds": run.rounds,
        "sites": list(run.sites),
        "started": _time(run.started_ms),
        "ended": _time(run.ended_ms),
        "stop_asked": run.stop,
    }


def _round(one: Round) -> dict[str, Any]:
    return {
        "round": one.round,
        "participants": list(one.participants),
        "refused": dict(one.refused),
        "evaluation": {place: dict(found) for place, found in one.evaluation.items()},
        "model": one.model_sha256,
        "heads": dict(one.heads),
        "at": _time(one.at_ms),
    }


def _time(ms: int) -> str | None:
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
