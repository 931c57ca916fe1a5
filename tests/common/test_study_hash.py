"""The study's hash: the same for the same protocol, another for any other."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.study import (
    Study,
    canonical_json,
    parse_study,
    simulation_hash,
    study_hash,
)
from fedward.common.study.cli import template
from fedward.common.study.load import EXAMPLE

GOLDEN = "2dd50f9d4b910dece1657aac11199140fedb29d1a14d8019302949cf3e9a9e4d"
"""Recorded for format version 1. If it changes, every approval of every study is void: do not."""

WITH_SIMULATION = EXAMPLE + '[simulation]\nsource = "a.toml"\npartition = {kind = "iid", sites = 3}'


def test_golden_hash() -> None:
    assert study_hash(parse_study(EXAMPLE)) == GOLDEN


def test_hash_is_the_sha256_of_the_canonical_json() -> None:
    study = parse_study(EXAMPLE)
    text = canonical_json(study)
    assert study_hash(study) == hashlib.sha256(text.encode()).hexdigest()
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text


def toml(table: dict[str, Any], order: random.Random) -> str:
    """Sections as inline tables, in random order with comments between: same meaning as `table`."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            items = list(value.items())
            order.shuffle(items)
            return "{" + ", ".join(f"{k} = {inline(v)}" for k, v in items) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    sections = [f"{name} = {inline(value)}" for name, value in table.items()]
    order.shuffle(sections)
    return "".join(f"# {order.random()}\n{section}\n\n" for section in sections)


def without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_absent(v) for k, v in value.items() if v is not None}
    return [without_absent(v) for v in value] if isinstance(value, list) else value


@given(st.randoms(use_true_random=False), st.sampled_from(["example", "tabular", "image"]))
def test_order_comments_and_written_defaults_do_not_matter(
    order: random.Random, which: str
) -> None:
    study = parse_study(EXAMPLE if which == "example" else template(which))
    # The canonical JSON has every default written out.
    content = without_absent(json.loads(canonical_json(study)))
    assert study_hash(parse_study(toml(content, order))) == study_hash(study)


def test_an_integer_where_a_number_is_meant_is_that_number() -> None:
    assert study_hash(parse_study(EXAMPLE.replace("120.0", "120"))) == GOLDEN


def test_simulation_is_not_part_of_the_protocol() -> None:
    plain, simulated = parse_study(EXAMPLE), parse_study(WITH_SIMULATION)
    assert study_hash(simulated) == study_hash(plain)
    assert simulation_hash(simulated) != simulation_hash(plain)
    other = parse_study(WITH_SIMULATION.replace("sites = 3", "sites = 4"))
    assert simulation_hash(other) != simulation_hash(simulated)
    assert simulation_hash(plain) != study_hash(plain)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in leaves(v, (*path, k))]
    if isinstance(value, list) and value:
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, (*path, i))]
    return [path]


def other_value(value: Any) -> Any:
    """Some other value of the same kind; the schema's rules are not looked at."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else "something"


@pytest.mark.parametrize("which", ["tabular", "image"])
def test_any_value_changes_the_hash(which: str) -> None:
    study = parse_study(template(which))
    paths = leaves(json.loads(canonical_json(study)))
    assert len(paths) > 50
    hashes = {study_hash(with_value(study, path)) for path in paths}
    assert len(hashes | {study_hash(study)}) == len(paths) + 1


def with_value(study: Study, path: tuple[str | int, ...]) -> Study:
    """`study` with another value at `path`, past all validation."""

    def change(value: Any, rest: tuple[str | int, ...]) -> Any:
        if not rest:
            return other_value(value)
        if isinstance(rest[0], int):
            return tuple(change(v, rest[1:]) if i == rest[0] else v for i, v in enumerate(value))
        return value.model_copy(update={rest[0]: change(getattr(value, rest[0]), rest[1:])})

    changed: Study = change(study, path)
    return changed
