"""The report: one whole file, complete, safe against hostile names, the same bytes each time."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedward.common.errors import OutputError
from fedward.simulations.report import write_report
from fedward.simulations.report.html import render
from fedward.simulations.report.results import Estimate, FederationView
from fedward.simulations.report.words import arm_label

sample_results = runpy.run_path(str(Path(__file__).with_name("report_sample.py")))["sample_results"]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a browser would find: tags, attributes, text, tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            assert tag == "td" or "scope" in dict(attrs)
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open and any(cell in self.open for cell in ("td", "th")):
            gap = " " if "small" in self.open else ""
            self.tables[-1][-1][-1] = (self.tables[-1][-1][-1] + gap + data).strip()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample_results())


def test_it_needs_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    for tag, name, value in parsed.attributes:
        assert name not in ("src", "srcset", "action", "data"), tag
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, value)
    for tag in ("script", "link", "iframe", "object", "img", "form"):
        assert parsed.tags[tag] == 0
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_links_lead_somewhere_and_ids_are_single(page: str) -> None:
    parsed = Page(page)
    ids = Counter(value for _, name, value in parsed.attributes if name == "id")
    assert max(ids.values()) == 1
    for _, name, value in parsed.attributes:
        if name == "href":
            assert value.removeprefix("#") in ids
        for found in re.findall(r"url\(#([^)]+)\)", value):
            assert found in ids


def test_every_hospital_arm_and_section_is_there(page: str) -> None:
    text = Page(page).text
    results = sample_results()
    for site in results.sites:
        assert text.count(site.name) >= 5
    for arm in results.arms:
        assert arm_label(arm) in text
    for word in (
        "Results", "How the models learned", "ROC at each", "Calibration at each", "data look like",
        "Client drift", "Privacy spent", "work at another", "coordinator would have seen",
        "What the numbers mean", "How it was made", results.study.hash, "2.13.0", "not for release",
    ):  # fmt: skip
        assert word in text


def test_figures_have_captions_and_charts_have_names(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags["figure"] == parsed.tags["figcaption"] > 10
    assert parsed.tags["table"] == parsed.tags["caption"]
    charts = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "role")]
    labels = [
        value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert len(charts) == len(labels) == parsed.tags["figure"]
    assert len(set(labels)) == len(labels)


def test_colours_come_from_the_page(page: str) -> None:
    charts = "".join(re.findall(r"<svg viewBox.*?</svg>", page, flags=re.DOTALL))
    assert "currentColor" in charts
    assert "var(--federated-no-dp)" in charts
    assert not re.search(r"#[0-9a-f]{6}\b", charts.replace("url(#", ""))
    assert "font-family" not in charts


def test_the_table_says_what_the_results_say(page: str) -> None:
    results = sample_results()
    table = Page(page).tables[0]
    assert [cell.replace("  ", " ") for cell in table[0]] == [
        "Hospital", "Local only", "Federated", "Federated without DP", "Pooled", "ε spent",
    ]  # fmt: skip
    for row, place in zip(table[1:], [*(s.name for s in results.sites), "overall"], strict=True):
        assert row[0].lower().startswith(place)
        for cell, arm in zip(row[1:5], results.arms, strict=True):
            e = results.estimate(arm, place)
            assert cell == f"{e.value:.2f} {e.low:.2f}–{e.high:.2f}"
    assert table[1][5] == "1.90"


def test_undefined_is_a_dash() -> None:
    results = sample_results()
    metrics = {arm: dict(places) for arm, places in results.metrics.items()}
    metrics["federated"]["north"] = dict.fromkeys(
        metrics["federated"]["north"], Estimate(value=None)
    )
    text = render(sample_results(metrics=metrics))
    assert Page(text).tables[0][1][2] == "–"
    assert not re.search(r"\b(nan|None|inf)\b", Page(text).text)


HOSTILE = "<script>alert(1)</script> & \"$x^2$\" 'é' 診"


def test_hostile_names_are_only_text() -> None:
    results = sample_results()
    old = results.sites[0].name
    moved: dict[str, Any] = {
        name: {a: {HOSTILE if k == old else k: v for k, v in p.items()} for a, p in field.items()}
        for name, field in (("metrics", results.metrics), ("roc", results.roc),
                            ("calibration", results.calibration))
    }  # fmt: skip
    first = results.sites[0].model_copy(update={"name": HOSTILE})
    study = results.study.model_copy(update={"title": HOSTILE, "purpose": HOSTILE})
    drift = tuple(d.model_copy(update={"site": HOSTILE}) for d in results.drift if d.site == old)
    privacy = {HOSTILE: results.privacy[old]}
    text = render(
        sample_results(
            sites=(first, *results.sites[1:]), study=study, drift=drift, privacy=privacy,
            warnings=(HOSTILE,), cross_site=None,
            federation_view=FederationView(resolution=HOSTILE, metrics={HOSTILE: {"auroc": 0.5}}),
            **moved,
        )
    )  # fmt: skip
    parsed = Page(text)
    assert parsed.tags["script"] == 0
    assert parsed.text.count(HOSTILE) >= 6


def test_same_results_same_bytes(tmp_path: Path) -> None:
    write_report(sample_results(), tmp_path / "a.html")
    write_report(sample_results(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert render(sample_results(seed=8)) != render(sample_results())


def test_a_thousand_hospitals_stay_small_and_say_which_are_shown() -> None:
    text = render(sample_results(1000, rounds=20))
    parsed = Page(text)
    assert len(text.encode()) < 3_000_000
    assert "12 of 1,000 hospitals" in parsed.text
    assert parsed.tags["figure"] < 40
    assert all(f"site-{k:04d}" in text for k in (1, 500, 1000))


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_little_to_show_is_still_a_report(task: str) -> None:
    """One site, one arm, no curves, no ROC, no privacy."""
    study = sample_results(private=False).study.model_copy(
        update={"task": task, "metric": "rmse", "labels": ()}
    )
    only = {"federated": {"overall": {"rmse": Estimate(value=1234.5, low=-1.0, high=2000.0)}}}
    text = render(
        sample_results(
            1, private=False, study=study, metrics=only, curves={}, drift=(), roc={},
            calibration={}, cross_site=None, federation_view=None,
        )
    )  # fmt: skip
    words = Page(text).text
    assert "RMSE" in words
    assert "1,234" in words or "1,235" in words
    assert "No differential privacy was used" in words
    assert "ROC" not in words


def test_full_disk_is_one_error() -> None:
    with pytest.raises(OutputError):
        write_report(sample_results(), Path("/dev/full"))


def test_releases_are_said_in_words() -> None:
    text = " ".join(Page(render(sample_results(rounds=20))).words)
    assert "20 × 8 DP-SGD steps on 12.5 % of the patients, noise σ/C = 2.31" in text
    assert "statistics with noise σ/C = 14.2" in text
    assert "evaluation with noise σ/C = 19" in text


def test_privacy_is_shown_for_training_and_test_patients() -> None:
    """Every column has a heading, and both groups are beside the larger of the two."""
    results = sample_results()
    site = next(iter(results.privacy))
    changed = results.privacy[site].model_copy(
        update={"epsilon": 1.75, "training": 0.0123, "testing": 1.75}
    )
    page = render(results.model_copy(update={"privacy": {**results.privacy, site: changed}}))
    section = page[page.index('id="privacy"') :]
    table = section[: section.index("</table>")]
    headings = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table)
    row = next(r for r in table.split("<tr>") if f'<th scope="row">{site}</th>' in r)
    cells = [site, *re.findall(r"<td[^>]*>(.*?)</td>", row)]
    shown = dict(zip(headings, cells, strict=True))
    assert (shown["ε spent"], shown["Training patients"]) == ("1.75", "0.013")
    assert shown["Test patients"] == "1.75"
