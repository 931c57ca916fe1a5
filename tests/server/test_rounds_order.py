"""Neither the order of replies, nor that of sites, nor a resent reply changes a single bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fedward.common import records
from fedward.common.tensors import Weights
from fedward.server.rounds import Outcome
from fedward.simulations.engines.flaky import Fault, run_flaky, scaled, twice
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

ALGORITHMS: list[dict[str, Any]] = [
    {"name": "fedavg"},
    {"name": "fedadam", "server_learning_rate": 0.1},
    {"name": "fedavgm"},
    {"name": "fedmedian"},
    {"name": "fedtrimmedavg"},
]
ROUNDS = {"rounds": 3, "learning_rate": 2.0}


def same(left: Weights, right: Weights) -> bool:
    return list(left) == list(right) and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def run(algorithm: Mapping[str, Any], *, backwards: bool = False, **options: Any) -> Outcome:
    study = small_study(
        algorithm=algorithm,
        training=ROUNDS,
        aggregation={"weights": "size", "participation": 0.7},
        evaluation={"every": 1},
        preprocess={"standardise": "federated"},
        categorical=1,
    )
    cohorts = make_cohorts(study, 7, patients=16)
    sites = make_sites(study, cohorts[::-1] if backwards else cohorts)
    return run_flaky(study, sites, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: str(a["name"]))
def test_the_order_of_replies_changes_nothing(algorithm: dict[str, Any]) -> None:
    expected = run(algorithm)
    for seed in (1, 2):
        found = run(algorithm, shuffle=seed)
        assert same(found.weights, expected.weights)
        assert found.transform == expected.transform
        assert found.history == expected.history


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: str(a["name"]))
def test_the_order_of_sites_changes_nothing(algorithm: dict[str, Any]) -> None:
    expected, found = run(algorithm), run(algorithm, backwards=True)
    assert same(found.weights, expected.weights)
    assert found.history == expected.history


@pytest.mark.parametrize(
    "kind", [records.INTRODUCE, records.STATISTICS, records.TRAIN, records.EVALUATE]
)
def test_a_reply_that_arrives_twice_counts_once(kind: str) -> None:
    expected = run({"name": "fedavg"})
    faults = [Fault(f"site-{index}", twice, kind=kind) for index in (2, 5)]
    found = run({"name": "fedavg"}, faults=faults, shuffle=4)
    assert same(found.weights, expected.weights)
    assert found.history == expected.history


def test_two_different_replies_of_a_site_count_for_nothing_in_any_order() -> None:
    """Which of them came first is chance."""

    def both(request: Any, reply: Any) -> list[Any]:
        return [reply, *scaled(1.5)(request, reply)]

    found = [
        run({"name": "fedavg"}, faults=[Fault("site-2", both)], shuffle=seed) for seed in range(3)
    ]
    for outcome in found:
        assert same(outcome.weights, found[0].weights)
        assert any("twice" in record.refused.get("site-2", "") for record in outcome.history)
        assert all("site-2" not in record.participants for record in outcome.history)


def test_a_reply_of_nobody_who_was_asked_is_not_looked_at() -> None:
    expected = run({"name": "fedavg"})

    def stray(_request: Any, reply: Any) -> list[Any]:
        other = scaled(9.0)(_request, reply)[0]
        other.metadata.__dict__["_src_node_id"] = 999
        assert other.metadata.src_node_id == 999
        return [reply, other]

    found = run({"name": "fedavg"}, faults=[Fault("site-2", stray)])
    assert same(found.weights, expected.weights)
    assert found.history == expected.history
