"""`fedward simulate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedward.common.errors import (
    DataError,
    Interrupted,
    OutputError,
    PrivacyError,
    RoundError,
    SiteConfigError,
    StudyError,
    TrainingError,
)
from fedward.common.exit_codes import exit_codes_help
from fedward.common.study import load_study

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Engine(StrEnum):
    """See `engines.choice`, which would load torch."""

    AUTO = "auto"
    LOOP = "loop"
    STACKED = "stacked"
    POOL = "pool"


_HELP = """Run a study over many virtual hospitals on this machine, and report honestly.

Trains the study as it stands ("federated") and, if its [simulation] section says so, without
differential privacy, with all data in one place ("pooled") and at every hospital alone ("local").
All of them run the code that runs between real hospitals. The same seed gives the same results, bit
for bit, noise included; for that reason the model is marked as not for release.

\b
Examples:
  fedward simulate examples/breast-cancer/study.toml
  fedward simulate study.toml --out runs/seed-43 --seed 43
  fedward simulate study.toml --out runs/seed-43 --seed 43 --resume

\b
Writes to the output folder, all of it or nothing:
  report.html          the findings in words and pictures, for any browser
  results.json         every figure of the table and the curves
  predictions.parquet  truth and scores of the test patients
  model/               for `fedward predict`, with MODEL_CARD.md

Ctrl-C keeps every completed round, a crash or a full disk all but those of the last second: give
the same command again with --resume, and the results are those of an unbroken run, computed as they
began. Without --resume it starts afresh.
"""


@app.command(
    help=_HELP,
    epilog=exit_codes_help(
        StudyError,
        SiteConfigError,
        DataError,
        PrivacyError,
        TrainingError,
        RoundError,
        OutputError,
        Interrupted,
    ),
)
def simulate(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="The study file, with a [simulation] section."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where results go; made if absent.")
    ] = Path("OUT"),
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="NUMBER", help="Use this seed instead of [training] seed."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="What computes the hospitals; auto takes what should be fastest.")
    ] = Engine.AUTO,
    json: Annotated[
        bool, typer.Option("--json", help="Print results.json instead of the table.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no progress, only the table.")
    ] = False,
) -> None:
    """Run the study and print its table."""
    # A wrong study file is refused before torch is loaded, which takes seconds.
    load_study(study)
    from fedward.simulations.progress import RunProgress
    from fedward.simulations.report import results_table
    from fedward.simulations.report.words import metric_of
    from fedward.simulations.simulate import Simulation

    simulation = Simulation.of(study, out, seed=seed, resume=resume, engine=engine.value)
    console = Console(stderr=True, quiet=quiet)
    metric = metric_of(simulation.study.evaluation.metric).label
    with RunProgress(console, simulation.rounds(), metric=metric) as progress:
        results = simulation.run(progress)
    if json:
        typer.echo(results.model_dump_json())
        return
    screen = Console()
    # Captured and echoed: rich would end the process itself if the reader of a pipe is gone.
    with screen.capture() as page:
        screen.print(results_table(results))
        screen.print(f"Report: {out / 'report.html'}", markup=False)
    typer.echo(page.get(), nl=False)
