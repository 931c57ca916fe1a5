"""The table on the terminal: every place and arm, at any width, without colour."""

from __future__ import annotations

import io
import re
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from fedward.simulations.report.results import Estimate
from fedward.simulations.report.selection import chosen_sites, ranked_sites
from fedward.simulations.report.terminal import results_table

sample_results = runpy.run_path(str(Path(__file__).with_name("report_sample.py")))["sample_results"]


def shown(results: object, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(results_table(results))  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("private", [True, False])
def test_everything_is_named_and_nothing_is_cut(width: int, private: bool) -> None:
    text = shown(sample_results(private=private), width)
    for word in ("north", "harbour", "st-mary", "university", "Overall", "AUROC", "accuracy"):
        assert word in text
    assert "Local only" in text
    assert "Pooled" in text
    assert ("ε spent" in text) == private
    assert "…" not in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width


def test_numbers_are_those_of_the_results() -> None:
    text = shown(sample_results(), 160)
    estimate = sample_results().estimate("federated", "st-mary")
    line = next(part for part in text.split("st-mary")[1].splitlines() if "AUROC" in part)
    assert f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})" in line
    assert re.search(r"north\s+1\.90", text)
    assert re.search(r"Overall\s+1\.90", text)  # the largest of any hospital


def test_undefined_is_a_dash() -> None:
    results = sample_results()
    metrics = {arm: dict(places) for arm, places in results.metrics.items()}
    metrics["federated"]["north"] = {"auroc": Estimate(value=None)}
    text = shown(sample_results(metrics=metrics), 160)
    line = next(part for part in text.split("north")[1].splitlines() if "AUROC" in part)
    assert "–  " in line
    assert not re.search(r"\bnan\b", text)
    assert "None" not in text


def test_many_sites_become_best_median_worst() -> None:
    results = sample_results(101, rounds=2)
    text = shown(results, 140)
    ranked = ranked_sites(results)
    for site, word in ((ranked[0], "best"), (ranked[50], "median"), (ranked[-1], "worst")):
        assert re.search(rf"{site}\s*\({word}\s+of\s+101\)", text)
    assert len(re.findall("site-", text)) == 3


def test_ranking_knows_that_lower_can_be_better() -> None:
    results = sample_results()
    study = results.study.model_copy(update={"metric": "brier"})
    ranked = ranked_sites(sample_results(study=study))
    values = [results.estimate("federated", name, "brier").value for name in ranked]
    assert values == sorted(values, key=lambda value: value or 0.0)


@pytest.mark.parametrize("count", [1, 12, 13, 200])
def test_chosen_sites_are_few_different_and_span_the_range(count: int) -> None:
    results = sample_results(count, rounds=1)
    chosen = chosen_sites(results)
    assert len(set(chosen)) == len(chosen) == min(count, 12)
    ranked = ranked_sites(results)
    assert {ranked[0], ranked[-1]} <= set(chosen)


def test_markup_in_names_is_text() -> None:
    study = sample_results().study.model_copy(update={"title": "[red]Title[/red]"})
    assert "[red]Title[/red]" in shown(sample_results(study=study), 120)
    assert "Warning: [odd] thing" in shown(sample_results(warnings=("[odd] thing",)), 120)
