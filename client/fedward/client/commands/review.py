"""`fedward client studies`, `review`, `dry-run`: what a steward looks at before deciding."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedward.common.commands import AsJson, PassphraseFile, new_app, passphrase_from, print_json
from fedward.common.errors import (
    DataError,
    FedwardError,
    IdentityError,
    PrivacyError,
    StateError,
    StudyError,
    TrainingError,
)
from fedward.common.exit_codes import exit_codes_help

if TYPE_CHECKING:
    from fedward.client.ledger.admission import Forecast
    from fedward.client.steward import Office, RunCount
    from fedward.common.study import Study

app = new_app()

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Its name, its hash or the first digits of it, or the path of a study.toml.",
    ),
]


@app.command(
    "studies",
    short_help="List the studies that were offered to this site, and where each stands.",
    help="""List the studies that were offered to this site, and where each stands.

\b
Example:
  fedward client studies north
""",
    epilog=exit_codes_help(StateError),
)
def studies(folder: Folder, as_json: AsJson = False) -> None:
    """List offers with their state and the first rule of the policy that each breaks."""
    from fedward.client.policy import check
    from fedward.client.steward import Office

    office, now = Office.open(folder), local_now()
    rows = []
    for name, study in office.offered().items():
        status = office.decisions.status(name, office.policy)
        findings = [str(f) for f in check(office.policy, study, now) if not f.temporary]
        about = study.study
        row = {**status.to_dict(), "name": about.name, "title": about.title}
        rows.append({**row, "version": about.version, "not_allowed": findings})
    if as_json:
        print_json({"studies": rows})
        return
    for row in rows:
        having = f"{len(row['approved_by'])} of {row['needed']} approvals"
        typer.echo(f"{row['study'][:12]}  {row['name']}  {row['state']}, {having}  {row['title']}")
        for finding in row["not_allowed"]:
            typer.echo(f"{'':14}not allowed here: {finding}")
    if not rows:
        typer.echo("no study was offered yet")


@app.command(
    "review",
    short_help="Explain a study, and what it would cost this site's patients.",
    help="""Explain a study, and what it would cost this site's patients.

Says in plain words who asks what, what would leave the hospital and what never does, which rules
of policy.toml it breaks, what it would cost in ε the patient who loses most, together with all that
was released before, and what would remain; of a study that promises patients nothing, how often it
was run here. Reads the data; changes and sends nothing.

\b
Example:
  fedward client review north heart-disease
""",
    epilog=exit_codes_help(StudyError, IdentityError, StateError),
)
def review(
    folder: Folder,
    study_name: StudyName,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Print chapters, findings, cost and status."""
    from fedward.client.policy import check
    from fedward.client.steward import Office, count_runs
    from fedward.common.study import study_hash
    from fedward.common.study.describe import Chapter, describe

    office = Office.open(folder, passphrase_from(passphrase_file))
    study = office.find(study_name)
    chapters = describe(study)
    findings = check(office.policy, study, local_now())
    cost, problem = _cost(office, study)
    runs = count_runs(office, study)
    status = office.decisions.status(study_hash(study), office.policy)
    if as_json:
        print_json(
            {
                "study": study_hash(study),
                "name": study.study.name,
                "chapters": {chapter.title: list(chapter.lines) for chapter in chapters},
                "not_allowed": [
                    {"key": f.key, "value": f.value, "allowed": f.allowed, "temporary": f.temporary}
                    for f in findings
                ],
                "cost": None if cost is None else cost.to_dict(),
                "problem": problem,
                "runs": None if runs is None else {"before": runs.before, "allowed": runs.most},
                "status": status.to_dict(),
            }
        )
        return
    here = [*(f"Not allowed: {finding}" for finding in findings), *cost_words(cost, problem)]
    here += [] if runs is None else [run_words(runs)]
    having = ", ".join(decision.by for decision in status.approvals) or "nobody yet"
    here.append(f"{status.state}: {status.needed} approval(s) needed; approved by {having}")
    chapters = (*chapters, Chapter("At this site", tuple(here)))
    for number, chapter in enumerate(chapters):
        typer.echo(("\n" if number else "") + chapter.title.upper())
        for line in chapter.lines:
            typer.echo(chapter.wrapped(line))


@app.command(
    "dry-run",
    short_help="Try a study on this site's data: nothing leaves, nothing is charged.",
    help="""Try a study on this site's data: nothing leaves, nothing is charged.

Reports on the quality of the data, prepares them as the study says, and takes one training step.
The result is thrown away, so nothing is released about any patient. The report holds exact counts:
it stays at the site.

\b
Example:
  fedward client dry-run north heart-disease
""",
    epilog=exit_codes_help(
        StudyError, DataError, PrivacyError, TrainingError, IdentityError, StateError
    ),
)
def dry_run(
    folder: Folder,
    study_name: StudyName,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Quality report, then one step in this process."""
    from fedward.client.commands.check_data import show_report
    from fedward.client.dry_run import NOTICE
    from fedward.client.dry_run import dry_run as run
    from fedward.client.quality import check_quality
    from fedward.client.site_config import load_site_config
    from fedward.client.steward import Office
    from fedward.common.privacy.randomness import SecureRandomness

    office = Office.open(folder, passphrase_from(passphrase_file))
    study = office.find(study_name)
    config = load_site_config(office.home.site_file)
    report = check_quality(study, config, key=office.home.load_patients_key(office.passphrase))
    if not as_json:
        show_report(report)
    if not report.usable:
        raise DataError("the study refuses these data", hint=report.problems[0])
    cohort, _ = office.cohort(study)
    found = run(study, cohort, lambda _purpose, _number: SecureRandomness())
    if as_json:
        print_json({"quality": report.to_dict(), "step": found.to_dict()})
        return
    typer.echo(
        f"One training step went well ({found.parameters:,} numbers, {found.seconds:.1f} s)."
    )
    typer.echo(NOTICE)


def _cost(office: Office, study: Study) -> tuple[Forecast | None, str]:
    """What a run would cost here; or why that cannot be said."""
    from fedward.client.ledger import Ledger
    from fedward.client.steward import foresee

    try:
        _, manifest = office.cohort(study)
        with Ledger(office.home.ledger) as ledger:
            return foresee(ledger, study, manifest, office.policy.caps), ""
    except FedwardError as error:
        return None, str(error)


def cost_words(cost: Forecast | None, problem: str) -> list[str]:
    """What a run would cost, for people."""
    from fedward.client.ledger.admission import words

    if problem:
        return [f"What it would cost here cannot be said: {problem}"]
    if cost is None:
        return ["It promises patients nothing, so its cost cannot be counted"]
    caps = cost.caps
    alone = (
        f"For the patient who loses most it would come to ε = {words(cost.study)} by itself (all "
        f"its runs), of {caps.epsilon_per_study:g} that policy.toml allows for one study; at "
        f"δ = {caps.delta:g}"
    )
    together = (
        f"Together with everything before: from ε = {words(cost.before)} to {words(cost.after)}, "
        f"of {caps.epsilon_total:g}; {words(cost.left_after)} would remain"
    )
    fits = "It fits" if cost.fits else "It does NOT fit: it would be refused before its first round"
    return [alone, together, fits]


def run_words(runs: RunCount) -> str:
    """How often a study was run here, for people.

    >>> from fedward.client.steward import RunCount
    >>> run_words(RunCount(1, 1))
    'Runs of it here so far: 1, of 1 that policy.toml allows; another would be refused'
    """
    told = f"Runs of it here so far: {runs.before}, of {runs.most} that policy.toml allows"
    return told if runs.another else f"{told}; another would be refused"


def local_now() -> datetime:
    """Local time, as a policy's hours are meant."""
    return datetime.now().astimezone()
