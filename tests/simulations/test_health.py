"""Warnings about runs that went wrong without ending: each sign fires, and a good run has none."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest

from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE
from fedward.server.history import RoundRecord
from fedward.server.rounds import Outcome
from fedward.simulations.arms import ArmResult
from fedward.simulations.engines.choice import REFERENCE
from fedward.simulations.health import MOST_WARNINGS, warnings_of
from fedward.simulations.judging import Judgement

TASKS: dict[str, dict[str, Any]] = {
    "binary": {"kind": "binary", "target": "y", "labels": ["no", "yes"]},
    "multiclass": {"kind": "multiclass", "target": "y", "labels": ["a", "b", "c"]},
    "regression": {"kind": "regression", "target": "y"},
}


def study(kind: str) -> Study:
    table = tomllib.loads(EXAMPLE) | {"task": TASKS[kind]}
    if kind == "regression":
        table["evaluation"] = {"metric": "rmse"}
    return Study.model_validate(table)


def arm(
    *refused: dict[str, str], name: Any = "federated", failed: dict[str, str] | None = None
) -> ArmResult:
    history = tuple(RoundRecord(n + 1, ("a",), refused=r) for n, r in enumerate(refused))
    outcomes = {} if failed else {"": Outcome({}, None, history)}  # type: ignore[arg-type]
    return ArmResult(name, outcomes, failed or {}, (), {}, 0.0, REFERENCE)


def judged(truth: list[float], scores: list[Any]) -> dict[str, Judgement]:
    """The same patients at two sites."""
    one = Judgement(
        np.array(truth, dtype=np.float32),
        np.array(scores, dtype=np.float32).reshape(len(truth), -1),
        np.arange(len(truth)),
    )
    return {"a": one, "b": one}


@pytest.mark.parametrize(
    ("kind", "truth", "scores", "sign"),
    [
        ("binary", [0, 1, 0, 1], [0.2, 0.7, 0.4, 0.6], None),
        ("binary", [0, 1, 0, 1], [0.9, 0.2, 0.4, 0.6], "share of each class"),
        ("binary", [0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0], "exactly 0 or 1"),
        ("binary", [0, 1, 0, 1], [0.0, 1.0, 0.0, 0.99], None),
        ("multiclass", [0, 1, 2], np.eye(3) * 0.6 + 0.1, None),
        ("multiclass", [0, 1, 2], np.eye(3)[::-1] * 0.6 + 0.1, "share of each class"),
        ("multiclass", [0, 1, 2], np.eye(3), "exactly 0 or 1"),
        ("regression", [1, 2, 3, 4], [1.5, 2.5, 2.5, 3.5], None),
        ("regression", [1, 2, 3, 4], [9, 9, 9, 9], "mean of all"),
        ("regression", [1, 2, 3, 4], [2.5, 2.5, 2.5, 2.5], None),
    ],
)
def test_signs_of_a_worthless_model(
    kind: str, truth: list[float], scores: Any, sign: str | None
) -> None:
    found = warnings_of(study(kind), [arm({})], {"federated": judged(truth, scores)})
    if sign is None:
        assert found == ()
    else:
        assert len(found) == 1
        assert found[0].startswith("federated: ")
        assert sign in found[0]


def test_a_site_is_named_once_with_how_often_and_why() -> None:
    found = warnings_of(study("binary"), [arm({"b": "no answer"}, {}, {"b": "no answer"})], {})
    assert found == ("federated, b: left out of 2 of 3 rounds: no answer",)


def test_failed_trainings_give_their_reason() -> None:
    pooled = arm(name="pooled", failed={"": "diverged: lower it"})
    local = arm(name="local", failed={"b": "one class"})
    assert warnings_of(study("binary"), [pooled, local], {"pooled": {}}) == (
        "pooled: could not be trained: diverged: lower it",
        "local, b: could not be trained: one class",
    )


def test_a_thousand_sites_do_not_give_a_thousand_lines() -> None:
    refused = {f"site-{number}": "no answer" for number in range(1000)}
    found = warnings_of(study("binary"), [arm(refused)], {})
    assert len(found) == MOST_WARNINGS
    assert found[-1] == f"and {1000 - MOST_WARNINGS + 1} more warnings of this kind"
