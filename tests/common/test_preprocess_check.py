"""A site judges the preprocessing it is sent by the study alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedward.common.errors import RoundError
from fedward.common.preprocess import Transform, check_transform, fit, needs_federated
from fedward.common.study import Study, load_study, parse_study
from fedward.common.study.load import EXAMPLE

FEATURES = """
[[data.features]]
name = "sex"
type = "categorical"
categories = ["f", "m"]
missing = "impute"
[[data.features]]
name = "smoker"
type = "boolean"
missing = "impute"
[preprocess]
standardise = "bounds"
impute = "bounds"
"""


def make(*, private: bool = True) -> Study:
    text = EXAMPLE.replace("[model]", FEATURES + "[model]")
    if private:
        text = text.replace('mode = "none"', 'mode = "dp"\nepsilon = 3.0\ndelta = 1e-5')
    return parse_study(text)


def edited(transform: Transform, kind: str, index: int, **changes: Any) -> Transform:
    parts = list(getattr(transform, kind))
    parts[index] = parts[index].model_copy(update=changes)
    return transform.model_copy(update={kind: tuple(parts)})


def test_what_the_study_leads_to_is_accepted() -> None:
    for private in (True, False):
        study = make(private=private)
        check_transform(study, fit(study))


@pytest.mark.parametrize(
    ("kind", "index", "changes", "words"),
    [
        ("numeric", 0, {"deviation": 60.0 / 3.4e38}, "blows age up"),
        ("numeric", 0, {"mean": 1e30}, "outside its public bounds"),
        ("numeric", 0, {"mean": 120.5}, "outside its public bounds"),
        ("numeric", 1, {"fill": 7.0}, "outside its public bounds"),
        ("numeric", 1, {"missing": "refuse"}, "missing values of smoker"),
        ("numeric", 0, {"name": "height"}, "does not fit the study"),
        ("categorical", 0, {"missing": "refuse"}, "treats sex"),
        ("categorical", 0, {"levels": ("f", "m", "x")}, "treats sex"),
        ("categorical", 0, {"listed": False}, "treats sex"),
        ("categorical", 0, {"fill": 2}, "does not have"),
        ("categorical", 0, {"fill": -1}, "does not have"),
    ],
)
def test_what_could_ask_about_a_patient_is_refused(
    kind: str, index: int, changes: dict[str, Any], words: str
) -> None:
    study = make()
    with pytest.raises(RoundError, match=words):
        check_transform(study, edited(fit(study), kind, index, **changes))


def test_a_feature_without_bounds_stays_as_it_is_under_privacy() -> None:
    own = EXAMPLE.replace("max = 120.0", "").replace("min = 0.0", "")
    own = own.replace("[model]", '[preprocess]\nstandardise = "none"\nimpute = "site"\n[model]')
    study = parse_study(own.replace('mode = "none"', 'mode = "dp"\nepsilon = 3.0\ndelta = 1e-5'))
    transform = fit(study)
    check_transform(study, transform)
    with pytest.raises(RoundError, match="no public bounds"):
        check_transform(study, edited(transform, "numeric", 0, deviation=1e-30))


STUDIES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").rglob("*.toml"))
    if "[study]" in path.read_text(encoding="utf-8") and not needs_federated(load_study(path))
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_public_transform_of_every_example_is_accepted(path: Path) -> None:
    study = load_study(path)
    check_transform(study, fit(study))
