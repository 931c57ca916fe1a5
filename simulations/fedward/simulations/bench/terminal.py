"""What `fedward bench` prints: a line for each workload and program, in 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table

from fedward.simulations.bench.charts import figure
from fedward.simulations.bench.page import extent, milliseconds
from fedward.simulations.bench.results import Bench
from fedward.simulations.bench.rivals import LABELS, PRODUCT


def table(bench: Bench) -> Table:
    """How long a round takes, and how many times as fast as each other program fedward is."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("", style="bold")
    shown.add_column("program")
    for heading in ("a round", "ratio", "least–most", "wanted", "accuracy"):
        shown.add_column(heading, justify="right")
    for one in bench.measured:
        for name, pace in one.programs.items():
            ratio = one.ratios.get(name)
            shown.add_row(
                one.task.name if name == PRODUCT else "",
                LABELS[name],
                milliseconds(pace.round_s),
                figure(ratio.median) if ratio else "",
                extent(ratio) if ratio else "",
                f"{one.aims[name]:g}" if name in one.aims else "",
                f"{pace.accuracy:.3f}",
            )
        shown.add_section()
    return shown
