"""`fedward study show`: what it says is true, and nothing important is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedward.common.models.state import build_module, count_parameters
from fedward.common.preprocess import fit
from fedward.common.privacy.accounting import epsilon
from fedward.common.privacy.plan import make_plan
from fedward.common.study import load_study, parse_study, study_hash
from fedward.common.study.cli import template
from fedward.common.study.describe import WIDTH, Chapter, describe, parameters
from fedward.common.study.load import EXAMPLE

ROOT = Path(__file__).resolve().parents[2]
DP = EXAMPLE.replace('"none"', '"dp"\nepsilon = 3.0\ndelta = 1e-4')


def chapters(text: str) -> dict[str, str]:
    return {chapter.title: "\n".join(chapter.lines) for chapter in describe(parse_study(text))}


def test_a_study_without_privacy_says_so() -> None:
    said = chapters(EXAMPLE)
    assert said["What it costs in privacy"] == (
        "There is no privacy guarantee: the study says mode = 'none'"
    )
    assert "reconstruct" in said["What this protects against, and what not"]
    assert "Show the smallest study file" in said["The question"]
    assert study_hash(parse_study(EXAMPLE)) in said["The question"]
    assert "age: a number from 0 to 120; must be present" in said["Data that a hospital needs"]


@pytest.mark.parametrize("patients", [200, 1000])
def test_costs_are_those_of_the_plan(patients: int) -> None:
    study = parse_study(DP)
    plan = make_plan(study, patients)
    steps = plan.rounds * plan.steps_per_round
    line = next(
        line
        for line in chapters(DP)["What it costs in privacy"].splitlines()
        if f"site of {patients:,} " in line and "refused" not in line
    )
    assert f"σ = {plan.noise_multiplier:.2f}" in line
    assert f"all {steps:,} steps {epsilon(plan.total(), plan.delta):.2f}" in line
    spent = [float(x) for x in re.findall(r"steps (\d+\.\d+)", line)]
    assert spent == sorted(spent)
    assert spent[-1] <= 3.0


def test_a_site_that_would_be_refused_is_named() -> None:
    said = chapters(DP.replace("batch_size = 32", "batch_size = 500"))
    assert "A site of 200 training patients would be refused" in said["What it costs in privacy"]


def test_noise_and_cells_are_told_apart() -> None:
    plain, private = (chapters(text)["What leaves a hospital"] for text in (EXAMPLE, DP))
    assert "noise" not in plain
    assert "nothing about fewer than 10 patients" in plain
    assert "counts rounded to multiples of 10" in plain
    assert "trained with noise" in private
    assert "fewer than" not in private


@pytest.mark.parametrize(
    ("old", "new", "chapter", "words"),
    [
        ('"fedavg"', '"fedmedian"', "What this protects against, and what not", "minority"),
        ("[privacy]", "[aggregation]\nmax_update_norm = 2.5\n[privacy]", "What this", "norm 2.5"),
        ("[privacy]", "[aggregation]\nweights = 'equal'\n[privacy]", "What happens", "the same"),
        ("[privacy]", "[aggregation]\nparticipation = 0.5\n[privacy]", "What happens", "50%"),
        ("local_epochs = 1", "local_steps = 7", "What happens", "7 steps"),
        ("[privacy]", "[evaluation]\nevery = 2\n[privacy]", "What leaves", "Every 2 rounds"),
        ("[privacy]", "[preprocess]\nstandardise = 'none'\n[privacy]", "What leaves", "Once"),
        ("max = 120.0", "", "Data", "at least 0"),
        ("min = 0.0", "", "Data", "at most 120"),
        ("min = 0.0\nmax = 120.0", "", "Data", "age: a number; must"),
        ("min = 0.0\nmax = 120.0", 'type = "boolean"', "Data", "yes or no"),
        ("min = 0.0\nmax = 120.0", 'type = "categorical"', "Data", "any that enough"),
    ],
)
def test_settings_show(old: str, new: str, chapter: str, words: str) -> None:
    said = chapters(EXAMPLE.replace(old, new))
    assert words in next(text for title, text in said.items() if title.startswith(chapter))


def test_tasks_in_words() -> None:
    several = EXAMPLE.replace('"binary"', '"multiclass"').replace('"no",', '"no", "maybe",')
    assert "each value of 'died': no, maybe, yes" in chapters(several)["The question"]
    value = (
        EXAMPLE.replace('"binary"', '"regression"')
        .replace('labels = ["no", "yes"]', "bounds = [0, 30]")
        .replace("[privacy]", "[evaluation]\nmetric = 'rmse'\n[privacy]")
    )
    assert "the value of 'died' between 0 and 30" in chapters(value)["The question"]
    assert "sums of errors" in chapters(value)["What leaves a hospital"]


def test_record_level_is_not_called_patient_level() -> None:
    said = chapters(DP.replace("delta = 1e-4", 'delta = 1e-4\nunit = "record"'))
    assert "single record (not patient)" in said["What it costs in privacy"]
    assert "several records" in said["What this protects against, and what not"]
    assert "identifier that tells" not in said["Data that a hospital needs"]


def test_pictures() -> None:
    said = chapters(template("image").replace('mode = "dp"', 'mode = "none"'))
    assert "64 × 64 pixels, grey" in said["Data that a hospital needs"]
    assert "Any picture" in said["What never leaves a hospital"]


def test_number_of_parameters_is_that_of_the_model_on_the_transformed_input() -> None:
    study = parse_study(template("tabular"))
    transform = fit(study)
    module = build_module(study.model, (transform.width,), study.task.outputs, seed=0)
    assert parameters(study) == count_parameters(module)


def test_unlisted_categories_leave_the_size_open() -> None:
    text = EXAMPLE.replace("min = 0.0\nmax = 120.0", 'type = "categorical"')
    assert parameters(parse_study(text)) is None
    assert "the categories found decide" in chapters(text)["What happens"]


def test_lines_are_wrapped() -> None:
    text = Chapter("x", ()).wrapped("word " * 60)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert text.startswith("  - word")


STUDIES = sorted(
    path for path in (ROOT / "examples").rglob("*.toml") if "[study]" in path.read_text()
)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_example_can_be_explained(path: Path) -> None:
    assert describe(load_study(path))


@pytest.mark.parametrize("weights", ["equal", "size"])
@pytest.mark.parametrize("standardise", ["federated", "bounds", "none"])
def test_every_way_to_pay_can_be_explained(weights: str, standardise: str) -> None:
    sections = f'''[preprocess]
standardise = "{standardise}"
impute = "bounds"
[aggregation]
weights = "{weights}"
[model]'''
    private = DP
    text = str(describe(parse_study(private.replace("[model]", sections))))
    assert "steps" in text
