"""What people look at: the table on the terminal, `results.json` and `report.html`."""

from fedward.simulations.report.results import Results

__all__ = ["Results"]
