"""`fedward client approve`, `refuse`, `withdraw`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedward.client.commands.review import Folder, StudyName, local_now
from fedward.common.commands import AsJson, PassphraseFile, new_app, passphrase_from, print_json
from fedward.common.errors import (
    DataError,
    IdentityError,
    PolicyError,
    PrivacyError,
    StateError,
    StudyError,
)
from fedward.common.exit_codes import exit_codes_help

if TYPE_CHECKING:
    from fedward.client.decisions import Verdict

app = new_app()

By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, in plain words.")]


@app.command(
    "approve",
    short_help="Approve a study for exactly the data that are here now.",
    help="""Approve a study for exactly the data that are here now.

Binds the decision to the study's hash and signs it with the site's key. The first approval freezes
the cohort: from then on only exactly these patients and records may train, and every further
approval needs them unchanged. A study that policy.toml does not allow, or that could not be
finished within what is left of the privacy budget, cannot be approved.

\b
Example:
  fedward client approve north heart --by "Dr A" --reason "ethics 12/26"
""",
    epilog=exit_codes_help(
        StudyError, DataError, PrivacyError, PolicyError, IdentityError, StateError
    ),
)
def approve(
    folder: Folder,
    study_name: StudyName,
    by: By,
    reason: Reason,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Record an approval."""
    from fedward.client import steward

    office = steward.Office.open(folder, passphrase_from(passphrase_file))
    study = office.find(study_name)
    signer = office.home.load_key(office.passphrase)
    made, status = steward.approve(office, study, signer, by=by, reason=reason, now=local_now())
    if as_json:
        print_json({"decision": made.model_dump(mode="json"), "status": status.to_dict()})
        return
    missing = status.needed - len(status.approvals)
    typer.echo(f"{by} has approved {study.study.name} ({made.study[:12]})")
    typer.echo("it may run" if status.approved else f"{missing} more approval(s) are needed")


@app.command(
    "refuse",
    short_help="Refuse a study.",
    help="""Refuse a study. It may be approved later, by everybody who is needed.

\b
Example:
  fedward client refuse north heart --by "Dr A" --reason "no vote yet"
""",
    epilog=exit_codes_help(StudyError, PolicyError, IdentityError, StateError),
)
def refuse(
    folder: Folder,
    study_name: StudyName,
    by: By,
    reason: Reason,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Record a refusal."""
    _end(folder, study_name, "refuse", by, reason, passphrase_file, as_json)


@app.command(
    "withdraw",
    short_help="Withdraw from a study, at once and also while it runs.",
    help="""Withdraw from a study, at once and also while it runs.

From now on nothing is computed for it here. What was released cannot be called back, and stays
spent; what was still set aside in the privacy budget is free again. The site takes part again only
if everybody who is needed approves the study anew.

\b
Example:
  fedward client withdraw north heart --by "Dr A" --reason "no consent"
""",
    epilog=exit_codes_help(StudyError, PolicyError, IdentityError, StateError),
)
def withdraw(
    folder: Folder,
    study_name: StudyName,
    by: By,
    reason: Reason,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Record a withdrawal."""
    _end(folder, study_name, "withdraw", by, reason, passphrase_file, as_json)


def _end(
    folder: Path,
    study_name: str,
    decision: Verdict,
    by: str,
    reason: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    from fedward.client import steward

    office = steward.Office.open(folder, passphrase_from(passphrase_file))
    study = office.find(study_name)
    signer = office.home.load_key(office.passphrase)
    made, status = steward.decide(office, study, signer, decision, by=by, reason=reason)
    if as_json:
        print_json({"decision": made.model_dump(mode="json"), "status": status.to_dict()})
        return
    typer.echo(f"{study.study.name} ({made.study[:12]}) is {status.state} at this site")
