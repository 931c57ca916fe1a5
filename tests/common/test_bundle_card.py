"""The model card says what matters, and nothing that breaks its tables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.models.card import MAX_SITES, CardFacts, render_card
from fedward.common.models.provenance import Provenance
from fedward.common.study.load import EXAMPLE, parse_study
from fedward.common.study.schema import Study

PRIVATE = EXAMPLE.replace('mode = "none"', 'mode = "dp"\nepsilon = 3.0\ndelta = 1e-5')
SECTIONS = (
    "What this is",
    "Intended use",
    "Not for",
    "Inputs",
    "Training and test data",
    "Performance",
    "Privacy",
    "Limitations and fairness",
    "How to use it",
    "Provenance",
)


def estimate(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": None if value is None else value - 0.05, "high": 0.95}


FACTS = CardFacts(
    sites=("north", "south"),
    patients={"north": "about 300"},
    metrics={
        "pooled": {"overall": {"auroc": estimate(0.91)}},
        "federated": {
            "north": {"auroc": estimate(0.9), "brier": estimate(0.125)},
            "south": {"auroc": estimate(None), "brier": estimate(float("nan"))},
            "overall": {"auroc": estimate(0.875), "brier": estimate(0.25)},
        },
        "mine": {"overall": {"auroc": {"value": 0.5}}},
    },
    privacy={
        "north": {"epsilon": 2.98761, "delta": 1e-5, "unit": "patient", "events": []},
        "south": {"epsilon": None, "delta": 1e-5, "unit": "patient"},
    },
)


def card(text: str = EXAMPLE, facts: CardFacts = FACTS, *, simulated: bool = True) -> str:
    study = parse_study(text)
    return render_card(study, Provenance.of(study, simulated=simulated), facts)


@pytest.mark.parametrize("text", [EXAMPLE, PRIVATE])
@pytest.mark.parametrize("facts", [FACTS, CardFacts()])
def test_every_section_is_there_once_and_in_order(text: str, facts: CardFacts) -> None:
    assert tuple(re.findall(r"^## (.*)$", card(text, facts), re.MULTILINE)) == SECTIONS


def test_figures_are_those_given() -> None:
    text = card()
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    headline = text[text.index("**auroc**") :].splitlines()
    assert headline[2] == ("| hospital | this model (federated) | all data in one place | mine |")
    assert headline[4] == "| north | 0.900 (0.850 to 0.950) | – | – |"
    assert headline[5] == "| south | – | – | – |"
    assert headline[6] == "| overall | 0.875 (0.825 to 0.950) | 0.910 (0.860 to 0.950) | 0.500 |"
    assert rows["overall"] == "| overall | 0.250 (0.200 to 0.950) |"
    assert "nan" not in text.lower().replace("provenance", "")


def test_counts_are_only_those_that_the_caller_gave() -> None:
    text = card()
    assert "- north: about 300 patients" in text
    assert "- south\n" in text


def test_without_privacy_it_warns() -> None:
    text = card()
    assert "without differential privacy" in text
    assert "ε =" not in text


def test_epsilon_is_rounded_up_and_never_invented() -> None:
    text = card(PRIVATE)
    assert "| north | 2.988 | 1e-05 | patient |" in text
    assert "| south | unlimited | 1e-05 | patient |" in text
    assert "ε = 3 at δ = 1e-05 for each patient" in text


def test_simulations_are_not_for_release() -> None:
    assert "not for release" in card(PRIVATE)
    assert "This model was simulated" in card(PRIVATE)
    real = card(PRIVATE, simulated=False)
    assert "not for release" not in real
    assert "simulated" not in real
    assert "Seed: none" in real


def test_record_level_is_called_so() -> None:
    assert "record-level" in card(PRIVATE + 'unit = "record"\n')
    assert "record-level" not in card(PRIVATE)


def test_many_sites_stay_readable() -> None:
    names = [f"site-{i}" for i in range(1000)]
    facts = CardFacts(
        sites=names,
        metrics={"federated": {n: {"auroc": estimate(0.9)} for n in [*names, "overall"]}},
        privacy={n: {"epsilon": 1.0, "delta": 1e-5, "unit": "patient"} for n in names},
    )
    text = card(PRIVATE, facts)
    assert f"and {1000 - MAX_SITES} more" in text
    assert "| overall |" in text
    assert len(text.splitlines()) < 200


def test_site_statistics_need_the_reference() -> None:
    assert "--reference" in card(EXAMPLE + "[preprocess]\nstandardise = 'site'\n")
    assert "--reference" not in card()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ('kind = "regression"\ntarget = "days"', "the value of *days*"),
        ('kind = "multiclass"\ntarget = "t"\nlabels = ["a", "b", "c"]', "a, b, c"),
    ],
)
def test_other_tasks(kind: str, words: str) -> None:
    text = re.sub(r'kind = "binary".*?\]', kind, EXAMPLE, flags=re.DOTALL, count=1)
    if "regression" in kind:
        text += "[evaluation]\nmetric = 'rmse'\n"
    assert words in card(text)


def test_inputs_name_every_feature_with_what_is_allowed() -> None:
    features = """
[[data.features]]
name = "sex"
type = "categorical"
categories = ["f", "m"]
missing = "indicator"
[[data.features]]
name = "smoker"
type = "boolean"
missing = "impute"
[[data.features]]
name = "crp"
unit = "mg/l"
[model]"""
    text = card(EXAMPLE.replace("[model]", features))
    assert "| age | numeric | – | 0 to 120 | refused |" in text
    assert "| sex | categorical | – | f, m | filled in and marked |" in text
    assert "| smoker | boolean | – | 0 or 1 | filled in |" in text
    assert "| crp | numeric | mg/l | any | refused |" in text


@given(st.text(min_size=1, max_size=40))
def test_no_name_breaks_a_table_or_adds_a_section(name: str) -> None:
    facts = CardFacts(
        sites=[name],
        metrics={"federated": {name: {"auroc": estimate(0.9)}}},
        privacy={name: {"epsilon": 1.0, "delta": 1e-5, "unit": "patient"}},
    )
    text = card(PRIVATE, facts)
    assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == SECTIONS
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1


def test_the_same_arguments_give_the_same_card() -> None:
    study: Study = parse_study(EXAMPLE)
    provenance = Provenance.of(study, simulated=True)
    assert render_card(study, provenance, FACTS) == render_card(study, provenance, FACTS)
