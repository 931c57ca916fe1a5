"""`fedward client budget`: what was spent of the site's privacy, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedward.common.commands import AsJson, PassphraseFile, new_app, passphrase_from, print_json
from fedward.common.errors import (
    DataError,
    IdentityError,
    PrivacyError,
    StateError,
    StudyError,
)
from fedward.common.exit_codes import exit_codes_help

if TYPE_CHECKING:
    from fedward.client.ledger.account import Caps
    from fedward.client.ledger.report import LedgerReport

app = new_app()


@app.command(
    "budget",
    short_help="Show what was spent of this site's privacy, what is set aside, and what is left.",
    help="""Show what was spent of this site's privacy, what is set aside, and what is left.

Everything is worked out anew from the ledger's events, by two independent accountants, for the
patient of each cohort who lost most, over all studies together. "Spent" was released, or was being
computed when something broke. "With what is set aside" is what it comes to if every open run is
finished. With --study: what one more run of a study would cost.

It holds exact figures: it STAYS AT THE SITE.

\b
Examples:
  fedward client budget north
  fedward client budget north --study heart-disease
""",
    epilog=exit_codes_help(StudyError, DataError, PrivacyError, IdentityError, StateError),
)
def budget(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")],
    study_name: Annotated[
        str | None,
        typer.Option("--study", metavar="STUDY", help="Also: what a run of it would cost."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the ledger's report, and a forecast if asked for."""
    from fedward.client.commands.review import cost_words
    from fedward.client.ledger import Ledger, report
    from fedward.client.ledger.admission import checked_epsilon
    from fedward.client.steward import Office, foresee

    office = Office.open(folder, passphrase_from(passphrase_file))
    caps, expected, study = office.policy.caps, None, None
    with Ledger(office.home.ledger) as ledger:
        found = report(ledger, caps.delta, checked_epsilon)
        if study_name is not None:
            study = office.find(study_name)
            _, manifest = office.cohort(study)
            expected = foresee(ledger, study, manifest, caps)
    if as_json:
        content: dict[str, Any] = _content(found, caps)
        if study is not None:
            content["study"] = None if expected is None else expected.to_dict()
        print_json(content)
        return
    names = {name: offered.study.name for name, offered in office.offered().items()}
    _print(found, caps, names)
    if study is not None:
        typer.echo(f"\none more run of {study.study.name}:")
        for line in cost_words(expected, ""):
            typer.echo(f"  {line}")


def _content(found: LedgerReport, caps: Caps) -> dict[str, Any]:
    content = found.to_dict()
    for cohort, row in zip(found.cohorts, content["cohorts"], strict=True):
        row["left"] = cohort.left(caps.epsilon_total)
        row["unaccounted"] = cohort.unaccounted
    limits = {"epsilon_per_study": caps.epsilon_per_study, "epsilon_total": caps.epsilon_total}
    return {"caps": limits, **content}


def _print(found: LedgerReport, caps: Caps, names: dict[str, str]) -> None:
    from fedward.client.ledger.admission import words

    typer.echo(f"ε at δ = {caps.delta:g}, for the patient who lost most; policy.toml allows")
    typer.echo(f"{caps.epsilon_per_study:g} for one study and {caps.epsilon_total:g} for all\n")
    for cohort in found.cohorts:
        typer.echo(
            f"cohort {cohort.cohort[:12]} ({cohort.unit}s): spent {words(cohort.spent)}, with what "
            f"is set aside {words(cohort.set_aside)}, left {words(cohort.left(caps.epsilon_total))}"
        )
        if not cohort.identified:
            typer.echo(
                "  its patients have no identifier: all other cohorts may be the same people"
            )
        for run in cohort.runs:
            name = names.get(run.study, run.study[:12])
            cost = f"spent {words(run.spent)} of {words(run.set_aside)}"
            if not run.private:
                cost = "promises nothing: what it cost cannot be counted"
            lost = f", {run.interrupted} not confirmed" if run.interrupted else ""
            paid = f"{run.reservations} releases{lost}"
            typer.echo(f"  {name}, run {run.run} ({run.state}): {cost}; {paid}")
    if not found.cohorts:
        typer.echo("nothing was released yet")
    seen = ", ".join(found.witnesses) or "nobody yet"
    typer.echo(f"\nledger: {found.length} entries, head {found.hash[:16]}; witnessed by {seen}")
