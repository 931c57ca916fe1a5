"""What a sweep found, in plain sentences that claim no more than its intervals do."""

from __future__ import annotations

from collections.abc import Sequence

from fedward.simulations.report.results import Estimate
from fedward.simulations.report.words import (
    count_word,
    epsilon_text,
    interval_text,
    metric_of,
    number_text,
    precision,
)
from fedward.simulations.sweep.grid import Grid
from fedward.simulations.sweep.results import CellResult, SweepResults

_NAMED = 6
"""So many cells are named in a sentence; more are counted."""


def plan(grid: Grid, jobs: int, left: int) -> tuple[str, ...]:
    """What will be run, before it is."""
    cells, seeds = len(grid.cells), len(grid.seeds)
    total = cells * seeds
    at_once = "one after another" if jobs == 1 else f"{count_word(jobs)} at once"
    what = f"{_count(cells, 'cell')} × {_count(seeds, 'seed')} = {_count(total, 'run')}, {at_once}"
    lines = [f"Sweep: {what}; the federated model only, without baselines"]
    for key in grid.keys:
        values = dict.fromkeys(cell.settings[key] for cell in grid.cells)
        lines.append(f"  {key}: {', '.join(values)}")
    lines.append(f"  seeds: {', '.join(map(str, grid.seeds))}")
    without: dict[str, list[str]] = {}
    for cell in grid.cells:
        who = cell.settings.get("algorithm") or cell.settings.get("model") or cell.name
        for key in cell.dropped:
            section = key.partition(".")[0]
            name = cell.settings.get(section, who)
            if name not in without.setdefault(key, []):
                without[key].append(name)
    lines += [f"  {key} is left out for {', '.join(names)}" for key, names in without.items()]
    if left < total:
        lines.append(f"  {total - left} of {_count(total, 'run')} finished before")
    return tuple(lines)


def findings(results: SweepResults) -> tuple[str, ...]:
    """The verdict, and what it does not say."""
    sentences = [_verdict(results), _apart(results), _failed(results), _seeds(results)]
    sentences += [_chosen(results), privacy(results)]
    return tuple(sentence for sentence in sentences if sentence)


def privacy(results: SweepResults) -> str:
    """What ε does not cover; empty without differential privacy."""
    private = [cell for cell in results.cells if cell.private and cell.spent is not None]
    if not private:
        return ""
    most = epsilon_text(max(cell.spent or 0.0 for cell in private))
    return (
        f"Each ε, at most {most} here, is that of one training. All of them looked at the same "
        "patients: the sweep together costs more, at most the sum, and no ε covers that a setting "
        "is chosen by its results. For patients who need the promise, choose on other data."
    )


def method(results: SweepResults) -> tuple[str, ...]:
    """How intervals and verdict are made, for those who want to know."""
    count = len(results.verdict.differences) if results.verdict else 0
    base = {
        "one seed": "Intervals come from resampling the test patients within each hospital, the "
        "same ones for all cells.",
        "other patients": "Every seed divides the patients anew. Intervals are t intervals over "
        "seeds; because the seeds share patients, the variance is multiplied by 1/n + n_test/"
        "n_train instead of 1/n (Nadeau and Bengio 2003), and is never taken to be less than what "
        "resampling test patients gives.",
        "same patients": "All seeds have the same test patients. The variance is that over seeds, "
        "divided by their number, plus that of the mean over resampled test patients; degrees of "
        "freedom after Satterthwaite (1946).",
    }[results.design]
    pairs = (
        "Cells are compared by their differences with the same seed, that is, with the same "
        "patients, division and test patients."
        if results.paired
        else "The cells have not the same test patients, so only seeds tell them apart."
    )
    if not results.verdict:
        return base, pairs
    level, others = f"{100 * results.verdict.level:.4g} %", f"other{'s' * (count > 1)}"
    rule = (
        f"The best of {_count(count + 1, 'cell')} is called the winner only if its difference to "
        f"each of the {count_word(count)} {others} has an interval of {level} that excludes zero "
        "(Bonferroni). Then a wrong cell is called so in at most "
        f"{100 * (1 - results.study.confidence):.2g} % of sweeps. Overlapping intervals of two "
        "cells do not mean that they cannot be told apart: the difference is what counts."
    )
    return base, pairs, rule


def places(results: SweepResults, metric: str) -> int:
    """How many decimals a metric deserves: cells are often near each other, so at least 3."""
    found = precision(metric, [results.estimate(cell, metric) for cell in results.cells])
    return found if metric in ("rmse", "mae") else max(3, found)


def to_best(results: SweepResults, cell: CellResult) -> Estimate | None:
    """A cell less the best, with its interval; None for the best itself."""
    if results.verdict is None or cell.name not in results.verdict.differences:
        return None
    found = results.verdict.differences[cell.name]
    value, low, high = (None if v is None else -v for v in (found.value, found.high, found.low))
    return Estimate(value=value, low=low, high=high)


def difference_text(results: SweepResults, cell: CellResult) -> str:
    """The same as text; empty for the best itself."""
    found = to_best(results, cell)
    return interval_text(found, places(results, results.study.metric)) if found else ""


def standing(results: SweepResults, cell: CellResult) -> str:
    """`failed`, `winner`, `best`, `tied`, `worse`, or nothing where nothing can be said."""
    verdict = results.verdict
    if cell.failed:
        return "failed"
    if verdict is None or (cell.name != verdict.best and cell.name not in verdict.differences):
        return ""
    if cell.name == verdict.best:
        return "winner" if verdict.winner else "best"
    return "tied" if cell.name in verdict.tied else "worse"


STANDINGS = {
    "failed": "failed",
    "winner": "winner",
    "best": "best mean",
    "tied": "not told apart",
    "worse": "worse",
    "": "",
}
"""How a standing is called in a table."""


def _verdict(results: SweepResults) -> str:
    verdict = results.verdict
    label = metric_of(results.study.metric).label
    if verdict is None:
        compared = [cell for cell in results.cells if not cell.failed]
        return (
            "No cell finished." if not compared else "There are no two cells that can be compared."
        )
    best = results.cell(verdict.best)
    direction = "lowest" if metric_of(results.study.metric).lower_is_better else "highest"
    figure = interval_text(results.estimate(best), places(results, results.study.metric))
    share = f"{results.study.confidence * 100:g} %"
    if verdict.winner:
        count = len(verdict.differences)
        others = "the other cell" if count == 1 else f"each of the {count_word(count)} other cells"
        return (
            f"Winner: {best.name}, with the {direction} mean {label}, {figure}. Its difference to "
            f"{others} is told from chance, at {share} for all comparisons together."
        )
    count = len(verdict.tied)
    others = "the other one is" if len(verdict.differences) == 1 else f"{count_word(count)} of the "
    if len(verdict.differences) > 1:
        others += f"{count_word(len(verdict.differences))} others {'is' if count == 1 else 'are'}"
    return (
        f"No winner: {best.name} has the {direction} mean {label}, {figure}, but {others} not told "
        f"apart from it, at {share} for all comparisons together."
    )


def _apart(results: SweepResults) -> str:
    verdict = results.verdict
    if verdict is None or verdict.winner:
        return ""
    worse = [name for name in verdict.differences if name not in verdict.tied]
    told = f" Told apart from it, as worse: {_names(worse)}." if worse else ""
    return f"Not told apart from it: {_names(verdict.tied)}.{told}"


def _failed(results: SweepResults) -> str:
    failed = [cell.name for cell in results.cells if cell.failed]
    return f"Failed, and not compared: {_names(failed)}." if failed else ""


def _seeds(results: SweepResults) -> str:
    if results.verdict is None or results.design != "one seed":
        return ""
    return (
        "One seed: the intervals know about other patients, but not about another division or "
        "another beginning of the training. Give --seeds 5 or more before you rely on it."
    )


def _chosen(results: SweepResults) -> str:
    if results.verdict is None:
        return ""
    best = number_text(
        results.estimate(results.cell(results.verdict.best)).value,
        places(results, results.study.metric),
    )
    return (
        f"The best of several is picked on these test patients: {best} is a little too good. Judge "
        "the setting that you choose on patients that took no part in the choice."
    )


def _names(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{'; '.join(names[: _NAMED - 1])}; and {len(names) - _NAMED + 1} more"
    return "; ".join(names)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
