"""Sentences and numbers: nothing is claimed that the intervals do not carry."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.simulations.report.explain import compare, summary
from fedward.simulations.report.glossary import glossary
from fedward.simulations.report.results import Estimate
from fedward.simulations.report.views import feature_rows
from fedward.simulations.report.words import (
    delta_text,
    duration_text,
    epsilon_text,
    interval_text,
    metric_of,
    number_text,
)

sample_results = runpy.run_path(str(Path(__file__).with_name("report_sample.py")))["sample_results"]
HIGH = Estimate(value=0.95, low=0.93, high=0.97)
LOW = Estimate(value=0.80, low=0.75, high=0.85)
WIDE = Estimate(value=0.90, low=0.70, high=0.99)


def with_overall(metric: str = "auroc", **arms: Estimate) -> Any:
    study = sample_results().study.model_copy(update={"metric": metric})
    return sample_results(
        study=study, metrics={arm: {"overall": {metric: e}} for arm, e in arms.items()}
    )


def said(**arms: Estimate) -> str:
    return " ".join(summary(with_overall("auroc", **arms)))


def test_better_is_said_only_without_overlap() -> None:
    assert "training together is better" in said(federated=HIGH, local=LOW)
    assert "training together is worse" in said(federated=LOW, local=HIGH)
    for local in (WIDE, Estimate(value=0.5), HIGH):
        text = said(federated=HIGH, local=local)
        assert "is better here" not in text
        assert "is worse here" not in text


def test_lower_is_better_for_errors() -> None:
    results = with_overall("brier", federated=LOW, local=HIGH)
    assert "training together is better" in " ".join(summary(results))


def test_the_cost_of_privacy_is_told() -> None:
    assert "privacy has a price" in said(federated=LOW, federated_no_dp=HIGH)
    assert "privacy has a price" not in said(federated=HIGH, federated_no_dp=WIDE)


def test_the_promise_names_the_unit_and_the_largest_spending() -> None:
    text = said(federated=HIGH)
    assert "Every patient is covered" in text
    assert "ε = 1.90 of a budget of 1.90" in text
    spent = {
        k: p.model_copy(update={"unit": "record"}) for k, p in sample_results().privacy.items()
    }
    text = " ".join(summary(sample_results(privacy=spent)))
    assert "not every patient" in text
    assert "No differential privacy" in " ".join(summary(sample_results(private=False)))


def test_an_undefined_result_claims_nothing() -> None:
    text = said(federated=Estimate(value=None), local=HIGH)
    assert "could not be measured" in text
    assert "better" not in text


bounds = st.floats(0, 1)


@given(bounds, bounds, bounds, bounds)
def test_compare_is_antisymmetric(a: float, b: float, c: float, d: float) -> None:
    first = Estimate(value=(a + b) / 2, low=min(a, b), high=max(a, b))
    second = Estimate(value=(c + d) / 2, low=min(c, d), high=max(c, d))
    mirrored = {"better": "worse", "worse": "better", "overlap": "overlap"}
    assert compare(second, first) == mirrored[compare(first, second)]
    assert compare(second, first) == compare(first, second, lower_is_better=True)


@given(st.floats(0.0, 100.0))
def test_epsilon_is_never_understated(value: float) -> None:
    assert value - 1e-7 <= float(epsilon_text(value)) < value + 0.0101


@given(st.floats(1e-5, 0.0999))
def test_a_small_epsilon_keeps_two_digits(value: float) -> None:
    shown = float(epsilon_text(value))
    assert value * (1 - 1e-9) - 1e-11 <= shown <= value * 1.1 + 1e-11


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (0.0123, "0.013"),
        (0.05, "0.050"),
        (0.0999, "0.100"),
        (0.1, "0.10"),
        (0.101, "0.11"),
        (0.000_123, "0.00013"),
        (1e-9, "0.000001"),
        (2.0, "2.00"),
    ],
)
def test_epsilon_in_words(value: float | None, text: str) -> None:
    assert epsilon_text(value) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=0.5), "0.50"),
        (Estimate(value=None, low=0.1, high=0.2), "–"),
        (Estimate(value=-0.001, low=-0.5, high=0.2), "0.00 (−0.50 to 0.20)"),
        (Estimate(value=0.5, low=None, high=0.6), "0.50"),
    ],
)
def test_intervals_in_words(estimate: Estimate, text: str) -> None:
    assert interval_text(estimate) == text


def test_other_numbers() -> None:
    assert number_text(1234567.0, 0) == "1,234,567"
    assert (delta_text(1e-5), delta_text(0.001), delta_text(None)) == ("1e-5", "0.001", "–")
    assert [duration_text(s) for s in (1.23, 31.4, 95, 7300)] == [
        "1.2 s", "31 s", "1 min 35 s", "2 h 1 min",
    ]  # fmt: skip
    assert metric_of("macro_brier").lower_is_better
    assert metric_of("net_benefit").label == "net benefit"


def test_glossary_explains_what_is_shown_and_no_more() -> None:
    terms = dict(glossary(sample_results()))
    assert {"AUROC", "Sensitivity", "ε (epsilon)", "ROC curve", "Client drift"} <= set(terms)
    bare = dict(glossary(sample_results(private=False, roc={}, drift=())))
    assert not {"ε (epsilon)", "ROC curve", "Client drift", "RMSE"} & set(bare)


def test_standardised_differences_by_hand() -> None:
    base = sample_results(2)
    a, b = base.sites

    def site(old: Any, rows: int, mean: float, sd: float) -> Any:
        feature = type(old.features["mean area"])(mean=mean, sd=sd)
        return old.model_copy(
            update={"train_rows": rows, "test_rows": 0, "features": {"x": feature}}
        )

    # Means 0 (30 rows) and 4 (10 rows): overall 1; pooled sd sqrt((30·4 + 10·4)/40) = 2.
    results = sample_results(2, sites=(site(a, 30, 0.0, 2.0), site(b, 10, 4.0, 2.0)))
    (row,) = feature_rows(results)
    assert [cell.text for cell in row.cells] == ["−0.50", "+1.50"]
    constant = sample_results(2, sites=(site(a, 30, 1.0, 0.0), site(b, 10, 1.0, 0.0)))
    assert [cell.text for cell in feature_rows(constant)[0].cells] == ["–", "–"]
