"""The templates: valid as they are, and an honest account of every key of the schema."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedward.common.models.cnn import SmallCNN
from fedward.common.models.logistic import LogisticRegression
from fedward.common.models.mlp import MLP
from fedward.common.models.registry import ModelSpec, model_names
from fedward.common.study import Study, parse_study
from fedward.common.study.cli import template
from fedward.common.study.load import EXAMPLE
from fedward.common.study.remarks import remarks

TEMPLATES = {modality: template(modality) for modality in ("tabular", "image")}
MODELS = {"tabular": (LogisticRegression, MLP), "image": (SmallCNN,)}
LINE = re.compile(r"^(?P<off># )?(?P<key>[a-z_0-9]+) = (?P<value>.+?)(?:  # (?P<text>.+))?$")


def classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for inner in get_args(annotation):
            yield from classes(inner)


def fields(modality: str) -> Iterator[tuple[str, str, FieldInfo]]:
    """`(section, key, field)` of everything that a study of this modality can say."""
    waiting: list[tuple[str, type[BaseModel]]] = [("", Study)]
    while waiting:
        section, model = waiting.pop()
        for key, field in model.model_fields.items():
            path = f"{section}.{key}" if section else key
            inner = list(classes(field.annotation))
            if inner == [ModelSpec]:
                inner = list(MODELS[modality])
            if inner:
                waiting += [(path, model) for model in inner]
            else:
                yield section, key, field


def said(modality: str) -> Iterator[tuple[str, re.Match[str]]]:
    """`(section, line)` of every `key = value` of a template, used or not."""
    section = ""
    for line in TEMPLATES[modality].splitlines():
        if header := re.match(r"^\[+([a-z_.]+)\]+$", line):
            section = header[1]
        elif found := LINE.match(line):
            yield section, found


@pytest.mark.parametrize("modality", TEMPLATES)
def test_template_is_valid_and_needs_no_remark(modality: str) -> None:
    study = parse_study(TEMPLATES[modality])
    assert study.data.modality == modality
    assert study.private
    assert remarks(study) == ()


@pytest.mark.parametrize("modality", TEMPLATES)
def test_every_key_is_explained_once(modality: str) -> None:
    absent = "preprocess.image" if modality == "tabular" else "data.features"
    wanted = {(s, k) for s, k, _ in fields(modality) if s != absent}
    explained = {(section, line["key"]) for section, line in said(modality) if line["text"]}
    mentioned = {(section, line["key"]) for section, line in said(modality)}
    assert wanted - explained - {("data.features", "name")} == set()
    assert mentioned <= wanted


@pytest.mark.parametrize("modality", TEMPLATES)
def test_defaults_are_told_as_they_are(modality: str) -> None:
    known: dict[tuple[str, str], list[Any]] = {}
    for section, key, field in fields(modality):
        default = None if field.is_required() else field.default
        known.setdefault((section, key), []).append(default)
    for section, line in said(modality):
        defaults = known[section, line["key"]]
        value = tomllib.loads(f"v = {line['value']}")["v"]
        value = tuple(value) if isinstance(value, list) else value
        text = line["text"] or ""
        if line["off"] and value not in defaults:
            assert "no default" in text, (section, line[0])
        if not line["off"] and text and value not in defaults:
            told = [str(d).lower() for d in defaults if d not in (None, ())]
            assert all("default" in text or "no default" in text for _ in told), line[0]


@pytest.mark.parametrize("modality", TEMPLATES)
def test_every_choice_is_named(modality: str) -> None:
    text = TEMPLATES[modality]
    other = {
        (section, line["key"])
        for section, line in said(modality)
        if "studies only" in (line["text"] or "")
    }
    absent = "preprocess.image" if modality == "tabular" else "data.features"
    for section, key, field in fields(modality):
        if (section, key) in other | {("model", "name")} or section == absent:
            continue
        for choice in get_args(field.annotation):
            if isinstance(choice, str):
                assert f'"{choice}"' in text, (section, key, choice)


def test_every_model_is_in_a_template() -> None:
    specs = [spec for specs in MODELS.values() for spec in specs]
    assert {spec.model_fields["name"].default for spec in specs} == set(model_names())
    for modality, own in MODELS.items():
        for spec in own:
            assert spec.model_fields["name"].default in TEMPLATES[modality]


def test_remarks_say_what_deserves_a_second_look() -> None:
    found = " | ".join(remarks(parse_study(EXAMPLE)))
    for words in ("no differential privacy", "min_sites = 1", r"no [simulation]"):
        assert words in found


def test_remark_on_a_transform_that_differs_between_sites() -> None:
    text = EXAMPLE.replace("[model]", "[preprocess]\nstandardise = 'site'\n[model]")
    assert "own rows" in " | ".join(remarks(parse_study(text)))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ('unit = "record"', "per record"),
        ("noise_multiplier = 1.0", "noise_multiplier is given"),
        ("[aggregation]\nmin_sites = 2", ""),
    ],
)
def test_remarks_of_a_private_study(extra: str, words: str) -> None:
    text = EXAMPLE.replace('"none"', f'"dp"\nepsilon = 20.0\ndelta = 0.01\n{extra}')
    found = " | ".join(remarks(parse_study(text)))
    assert words in found
    assert "weak promise" in found
    assert "delta = 0.01 is large" in found
