"""`fedward simulate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console, RenderableType
from typer.core import TyperCommand

from fedward.common.errors import (
    DataError,
    Interrupted,
    LinkError,
    MissingExtraError,
    OutputError,
    PrivacyError,
    RoundError,
    SiteConfigError,
    StateError,
    StudyError,
    TrainingError,
)
from fedward.common.exit_codes import exit_codes_help
from fedward.common.study import load_study
from fedward.simulations.sweep.arguments import parse_axis, parse_seeds, with_repeated_option

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Engine(StrEnum):
    """See `engines.choice`, which would load torch."""

    AUTO = "auto"
    LOOP = "loop"
    STACKED = "stacked"
    POOL = "pool"
    RAY = "ray"


class Command(TyperCommand):
    """Takes `--sweep a=1,2 b=3` for what click can read: `--sweep a=1,2 --sweep b=3`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a command line."""
        return super().parse_args(ctx, with_repeated_option(args, "--sweep"))


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
  fedward simulate study.toml --sweep algorithm=fedavg,fedprox --seeds 5
  fedward simulate study.toml --sweep privacy.epsilon=1,3 training.rounds=9,30

\b
Writes to the output folder, all of it or nothing:
  report.html          the findings in words and pictures, for any browser
  results.json         every figure of the table and the curves
  predictions.parquet  truth and scores of the test patients
  model/               for `fedward predict`, with MODEL_CARD.md

Ctrl-C keeps every completed round, a crash or a full disk all but those of the last second: give
the same command again with --resume, and the results are those of an unbroken run, computed as they
began. Without --resume it starts afresh.

--sweep runs the study with every combination of other values of its keys, each with every seed of
--seeds, and compares how well the federated model does, with intervals for the differences between
runs of the same seed. A winner is named only if it is told apart from all others. To --out go
sweep.html, sweep.json, sweep.csv, and cells/ with the output of each run. A run that fails is
reported and costs no other. ε is that of a single run: no ε covers a choice by results.
"""


@app.command(
    cls=Command,
    help=_HELP,
    epilog=exit_codes_help(
        StudyError,
        SiteConfigError,
        DataError,
        PrivacyError,
        TrainingError,
        RoundError,
        OutputError,
        MissingExtraError,
        LinkError,
        StateError,
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
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE ...",
            help="Keys of the study file and their values, as in TOML, such as "
            "training.rounds=10,30; algorithm alone is its name.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|LIST",
            help="Of a sweep: so many seeds from that of the study on, or these, such as 1,2,3.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="NUMBER",
            help="Of a sweep: runs at once; else one for each processor.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="The Ray cluster of --engine ray; else RAY_ADDRESS, else this machine alone.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print results.json, or sweep.json, not the table.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no plan and no progress, only the table.")
    ] = False,
) -> None:
    """Run the study, or the sweep, and print its table."""
    console = Console(stderr=True, quiet=quiet)
    if ray_address is not None and engine is not Engine.RAY:
        raise typer.BadParameter("it is for --engine ray", param_hint="--ray-address")
    if sweep or seeds:
        if engine is Engine.RAY:
            raise typer.BadParameter("a sweep takes another engine", param_hint="--engine ray")
        if seed is not None:
            raise typer.BadParameter("of a sweep, give --seeds instead", param_hint="--seed")
        _run_sweep(study, out, sweep or [], seeds, resume, engine, jobs, json, console)
        return
    if jobs is not None:
        raise typer.BadParameter("it is for --sweep", param_hint="--jobs")
    # A wrong study file is refused before torch is loaded, which takes seconds.
    load_study(study)
    from fedward.simulations.progress import RunProgress
    from fedward.simulations.report import results_table
    from fedward.simulations.report.words import metric_of
    from fedward.simulations.simulate import Simulation

    simulation = Simulation.of(
        study, out, seed=seed, resume=resume, engine=engine.value, ray_address=ray_address
    )
    metric = metric_of(simulation.study.evaluation.metric).label
    with RunProgress(console, simulation.rounds(), metric=metric) as progress:
        results = simulation.run(progress)
    if json:
        typer.echo(results.model_dump_json())
        return
    _show(results_table(results), out / "report.html")


def _run_sweep(
    study: Path,
    out: Path,
    sweep: list[str],
    seeds: str | None,
    resume: bool,
    engine: Engine,
    jobs: int | None,
    json: bool,
    console: Console,
) -> None:
    # Before torch is loaded, too: the command line, the study, and every cell.
    first = load_study(study).training.seed
    try:
        axes = [parse_axis(text) for text in sweep]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sweep") from error
    try:
        chosen = parse_seeds(seeds, first=first) if seeds else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--seeds") from error
    from fedward.simulations.sweep.grid import make_grid

    grid = make_grid(study, axes, chosen)
    from fedward.simulations.report.words import metric_of
    from fedward.simulations.sweep.progress import SweepProgress
    from fedward.simulations.sweep.sweep import SWEEP_HTML, Sweep
    from fedward.simulations.sweep.table import SweepTable
    from fedward.simulations.sweep.words import plan

    task = Sweep(grid, out, resume, engine.value, jobs)
    task.check()
    left = task.left()
    for line in plan(grid, task.at_once, left):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    rounds = max(cell.study.training.rounds for cell in grid.cells)
    metric = metric_of(grid.base.evaluation.metric).label
    with SweepProgress(console, left, rounds, metric) as progress:
        swept = task.run(progress)
    if json:
        typer.echo(swept.results.model_dump_json())
    else:
        _show(SweepTable(swept.results), out / SWEEP_HTML)
    if swept.exit_code:
        reason = next(iter(swept.failures.values())).reason
        typer.echo(f"error: no run finished; the first one: {reason}", err=True)
        raise typer.Exit(swept.exit_code)


def _show(table: RenderableType, report: Path) -> None:
    screen = Console()
    # Captured and echoed: rich would end the process itself if the reader of a pipe is gone.
    with screen.capture() as page:
        screen.print(table)
        screen.print(f"Report: {report}", markup=False)
    typer.echo(page.get(), nl=False)
