"""What people look at: the table on the terminal, `results.json` and `report.html`."""

from fedward.simulations.report.html import write_report
from fedward.simulations.report.results import Results
from fedward.simulations.report.terminal import results_table

__all__ = ["Results", "results_table", "write_report"]
