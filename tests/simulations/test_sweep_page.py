"""What people look at after a sweep: one page, one table, one CSV, and sentences that are true."""

from __future__ import annotations

import csv
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedward.simulations.sweep import words
from fedward.simulations.sweep.page import MOST_CELLS, render
from fedward.simulations.sweep.results import SweepResults
from fedward.simulations.sweep.table import SweepTable

_HERE = Path(__file__).parent
sample_sweep = runpy.run_path(str(_HERE / "sweep_sample.py"))["sample_sweep"]
Page: Any = runpy.run_path(str(_HERE / "test_report_html.py"))["Page"]


@pytest.fixture(scope="module")
def results() -> SweepResults:
    return sample_sweep()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def page(results: SweepResults) -> str:
    return render(results)


def test_it_needs_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    for tag in ("script", "link", "iframe", "img", "form"):
        assert parsed.tags[tag] == 0
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in parsed.attributes:
        assert name != "src"
        if name == "href":
            assert value.removeprefix("#") in ids
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    drawn = "".join(re.findall(r"<svg viewBox.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawn.replace("url(#", ""))


def test_every_cell_metric_and_warning_is_there(results: SweepResults, page: str) -> None:
    text = Page(page).text
    for cell in results.cells:
        assert cell.name in text
    for word in (
        "Accuracy", "Brier score", "Calibration slope", "not for release", "Nadeau and Bengio",
        "algorithm.mu", "How the settings play together", results.study.hash,
        "no ε covers that a setting is chosen by its results",
        "train fewer rounds", "a little too good",
    ):  # fmt: skip
        assert word in text, word


def test_the_heat_map_has_the_means(results: SweepResults, page: str) -> None:
    heat = next(t for t in Page(page).tables if t[0][0].startswith("algorithm"))
    assert heat[0][1:] == ["1", "3", "8"]
    assert heat[3] == ["fedmedian", "failed", *heat[3][2:]]
    first = results.estimate(results.cells[0]).value
    assert heat[1] == ["fedavg", f"{first:.3f}", *heat[1][2:]]


def test_same_results_same_bytes(results: SweepResults, page: str) -> None:
    assert render(SweepResults.model_validate_json(results.model_dump_json())) == page


def test_no_winner_names_who_is_not_told_apart(results: SweepResults) -> None:
    verdict = results.verdict
    assert verdict is not None
    assert verdict.winner is None
    said = " ".join(words.findings(results))
    assert said.startswith(f"No winner: {verdict.best} has the highest mean AUROC, 0.9")
    assert f"Not told apart from it: {'; '.join(verdict.tied)}." in said
    assert "Failed, and not compared: algorithm=fedmedian, privacy.epsilon=1." in said


def test_a_winner_is_named_and_differences_are_to_it() -> None:
    results = sample_sweep(gain=0.08, failed=False)
    first = results.cells[0]
    said = words.findings(results)
    assert said[0].startswith(f"Winner: {first.name}, with the highest mean AUROC")
    assert "each of the eight other cells" in said[0]
    assert words.standing(results, first) == "winner"
    assert words.difference_text(results, first) == ""
    assert words.difference_text(results, results.cells[1]).startswith("−0.0")
    assert "99.38 %" in " ".join(words.method(results))


def test_one_seed_says_what_it_does_not_know() -> None:
    results = sample_sweep(seeds=1)
    assert "One seed: the intervals know about other patients, but not" in " ".join(
        words.findings(results)
    )
    assert "Small dots" not in render(results)


def test_the_terminal_s_table_fits(results: SweepResults) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(SweepTable(results))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "not told apart" in text
    assert "algorithm=fedmedian, privacy.epsilon=1: site a" in text
    assert "not for release" in text


def test_csv_has_a_row_for_each_cell_and_metric(results: SweepResults) -> None:
    rows = list(csv.DictReader(io.StringIO(results.csv())))
    assert len(rows) == len(results.cells) * 4
    row = rows[0]
    assert (row["algorithm"], row["privacy.epsilon"], row["metric"]) == ("fedavg", "1", "auroc")
    assert float(row["mean"]) == results.estimate(results.cells[0]).value
    failed = [row for row in rows if row["failed"]]
    assert {row["mean"] for row in failed} == {""}


def test_many_cells_are_cut_and_it_is_said() -> None:
    results = sample_sweep(tuple(f"a{k:02d}" for k in range(20)), failed=False)
    text = Page(render(results)).text
    assert f"The best {MOST_CELLS} of 60 cells." in text
    assert results.cells[-1].name in text


def test_a_hostile_value_is_only_text() -> None:
    bad = "<script>alert(1)</script>"
    parsed = Page(render(sample_sweep((bad, "fedavg"), seeds=2)))
    assert parsed.tags["script"] == 0
    assert bad in parsed.text
