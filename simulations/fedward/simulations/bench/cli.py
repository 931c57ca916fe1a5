"""`fedward bench`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedward.common.commands import new_app
from fedward.common.errors import OutputError, SpeedError, StateError
from fedward.common.exit_codes import exit_codes_help
from fedward.common.files import atomic_directory, check_replaceable, write_atomic
from fedward.simulations.cli import Engine

if TYPE_CHECKING:
    from fedward.simulations.bench.results import Bench
    from fedward.simulations.bench.workloads import Workload

app = new_app()

PEERS = Path(".venv-peers")
"""Where `make bench-peers` installs other projects, relative to where the command is given."""

_HELP = """Measure how fast simulations are on this machine, beside other programs.

Trains made-up patients on five workloads: with fedward, as `fedward simulate` does, and with a bare
PyTorch loop that trains the same models on the same rows and does nothing else. The programs take
turns, each in a process of its own with one thread for torch. What counts is the ratio: how many
times as fast fedward does a round. It takes some minutes, and a quiet machine.

\b
Examples:
  fedward bench
  fedward bench --only W1 --only W3 --repeats 5 --out quiet
  fedward bench --only W1 --sites 12
  fedward bench --json earlier.json
  fedward bench --baseline earlier.json

\b
Workloads:
  W1  a small network, 100 sites of 200 rows, 20 rounds
  W2  the same, 1,000 sites of 50 rows, 5 rounds
  W3  a convolutional network, 20 sites of 200 pictures, 5 rounds
  W4  W3 with patient-level differential privacy
  W5  W1 with patient-level differential privacy

\b
Writes to the output folder, all of it or nothing:
  bench.html  the ratios as pictures and tables, for any browser
  bench.json  every figure

With --baseline, a ratio that lies too far below the smallest that the baseline has ends the command
with its own exit code: for those who change fedward. Seconds are not compared.

Where `make bench-peers` has installed pfl-research and Flower on Ray, workloads without privacy are
measured with them, too.
"""


@app.command(
    help=_HELP,
    epilog=exit_codes_help(OutputError, StateError, SpeedError),
)
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this workload; may be given several times."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Turns of the programs.")] = 3,
    engine: Annotated[
        Engine, typer.Option(help="What computes fedward's sites, as in `fedward simulate`.")
    ] = Engine.AUTO,
    sites: Annotated[
        int | None, typer.Option(min=2, max=100_000, help="Other than usual number of sites.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=2, max=10_000, help="Other than usual number of rounds.")
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The Python environment of other projects; by default .venv-peers, if it is here.",
        ),
    ] = None,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Leave other projects out.")] = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where results go; made if absent.")
    ] = Path("BENCH"),
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write bench.json there as well.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare ratios with the bench.json of earlier."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0, max=100.0, help="Percent by which a ratio may lie below the baseline's least."
        ),
    ] = 20.0,
) -> None:
    """Measure, print a table, write the page, and compare."""
    if engine is Engine.RAY:
        raise typer.BadParameter("workloads are for one machine", param_hint="--engine ray")
    from fedward.simulations.bench.guard import check_comparable, falls
    from fedward.simulations.bench.measure import measure
    from fedward.simulations.bench.results import Bench, Machine, Task
    from fedward.simulations.engines.choice import processors

    loads = _loads(only, {"sites": sites, "rounds": rounds})
    machine = Machine.here(processors())
    earlier = Bench.load(baseline) if baseline else None
    if earlier:
        check_comparable(earlier, machine, [Task.of(load) for load in loads])
    check_replaceable(out)
    if peers is None and PEERS.is_dir():
        peers = PEERS
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        found = Bench(
            machine=machine,
            measured=tuple(
                measure(
                    load,
                    Path(place),
                    engine=engine.value,
                    repeats=repeats,
                    peers=None if no_peers else peers,
                    tell=lambda line: typer.echo(line, err=True),
                )
                for load in loads
            ),
        )
    _write(found, out, json)
    _show(found, out)
    lower = falls(earlier, found.measured, tolerance / 100.0) if earlier else []
    if lower:
        raise SpeedError(
            "fedward is slower than the baseline allows: " + "; ".join(map(str, lower)),
            hint="measure again on a quiet machine, then look for what has changed",
        )


def _loads(only: Sequence[str] | None, sizes: Mapping[str, int | None]) -> list[Workload]:
    """The workloads to measure, with other sizes where some are given."""
    from fedward.simulations.bench.workloads import WORKLOADS

    names = [load.name for load in WORKLOADS]
    unknown = set(only or ()) - set(names)
    if unknown:
        raise typer.BadParameter(
            f"{min(unknown)} is no workload: choose from {', '.join(names)}", param_hint="--only"
        )
    changed: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    return [replace(load, **changed) for load in WORKLOADS if load.name in (only or names)]


def _write(found: Bench, out: Path, json: Path | None) -> None:
    from fedward.simulations.bench.page import render

    with atomic_directory(out) as folder:
        write_atomic(folder / "bench.html", render(found))
        write_atomic(folder / "bench.json", found.text())
    if json:
        write_atomic(json, found.text())


def _show(found: Bench, out: Path) -> None:
    from fedward.simulations.bench.terminal import table

    screen = Console()
    # Captured and echoed: rich would end the process itself if the reader of a pipe is gone.
    with screen.capture() as page:
        screen.print(table(found))
        screen.print(f"Page: {out / 'bench.html'}", markup=False)
    typer.echo(page.get(), nl=False)
