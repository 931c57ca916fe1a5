"""`fedward simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def simulate(
    study: Annotated[Path, typer.Argument(help="The study file, with a [simulation] section.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if absent.")] = Path(
        "OUT"
    ),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Use this seed instead of [training] seed.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run in --out.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print results.json instead of the table.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the table.")] = False,
) -> None:
    """Run a study over many virtual hospitals on this machine, and report honestly.

    Trains the study as it stands (**federated**) and, if its [simulation] section says so, without
    differential privacy, with all data in one place (**pooled**) and at every hospital alone
    (**local**). All runs use the code that runs between real hospitals. The same seed gives the
    same results, bit for bit, noise included; for that reason the model is marked as not for
    release.

    Example:
        fedward simulate examples/breast-cancer/study.toml --out OUT

    Writes to the output folder: report.html (open it in any browser, no internet needed),
    results.json (every figure), predictions.parquet (scores of the test patients) and model/ (use
    it with `fedward predict`).

    Ctrl-C keeps every completed round: run the same command again with --resume.

    Exit codes: 0 done · 3 study file · 4 site.toml · 5 data · 6 privacy promise · 7 training
    diverged · 8 too few sites · 10 cannot write · 130 stopped.
    """
    # Imported here so that --help does not wait for torch.
    from fedward.simulations.progress import RunProgress
    from fedward.simulations.report import results_table
    from fedward.simulations.report.words import metric_of
    from fedward.simulations.simulate import Simulation

    simulation = Simulation.of(study, out, seed=seed, resume=resume)
    console = Console(stderr=True, quiet=quiet)
    metric = metric_of(simulation.study.evaluation.metric).label
    with RunProgress(console, simulation.rounds(), metric=metric) as progress:
        results = simulation.run(progress)
    if json:
        typer.echo(results.model_dump_json())
        return
    screen = Console()
    screen.print(results_table(results))
    for warning in results.warnings:
        screen.print(f"note: {warning}", markup=False)
    screen.print(f"Report: {out / 'report.html'}", markup=False)
