"""Every algorithm against the formulas of its paper, computed site by site without Flower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.common.preprocess import fit, merge
from fedward.common.study import Study
from fedward.common.tensors import Weights
from fedward.server.preparation import first_weights
from fedward.server.rounds import Outcome
from fedward.simulations.engines.flaky import run_flaky
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

Vector = dict[str, NDArray[np.float64]]
Rule = Callable[[int, Vector, Sequence[Vector], NDArray[np.float64]], Vector]
"""`(round, global weights, local weights, shares)` to the next global weights."""


def wide(weights: Mapping[str, NDArray[Any]]) -> Vector:
    return {name: np.asarray(value, np.float64) for name, value in weights.items()}


def mean(parts: Sequence[Vector], shares: NDArray[np.float64]) -> Vector:
    return {name: sum(s * p[name] for s, p in zip(shares, parts, strict=True)) for name in parts[0]}


def by_hand(study: Study, cohorts: Sequence[Cohort], rule: Rule, *, mu: float = 0.0) -> Weights:
    """The whole run: sites are trained directly, their weights are combined by `rule`."""
    names = [cohort.site for cohort in cohorts]
    shares = np.full(len(names), 1.0)
    statistics = None
    if study.aggregation.weights == "size":
        parts = [site.statistics() for site in make_sites(study, cohorts)]
        statistics, shares = merge(parts), np.array([part.weight for part in parts])
    transform = fit(study, statistics)
    weights = first_weights(study, transform)
    for number in range(1, study.training.rounds + 1):
        local = [
            wide(site.train(weights, transform, round_number=number, proximal_mu=mu))
            for site in make_sites(study, cohorts)
        ]
        after = rule(number, wide(weights), local, shares / shares.sum())
        weights = {name: value.astype(np.float32) for name, value in after.items()}
    return weights


def run(study: Study, cohorts: Sequence[Cohort]) -> Outcome:
    return run_flaky(study, make_sites(study, cohorts))


def close(left: Weights, right: Weights, tolerance: float = 2e-6) -> bool:
    assert list(left) == list(right)
    return all(np.allclose(left[k], right[k], rtol=tolerance, atol=tolerance) for k in left)


def fedavg(_number: int, _old: Vector, local: Sequence[Vector], shares: Any) -> Vector:
    return mean(local, shares)


def median(_number: int, _old: Vector, local: Sequence[Vector], _shares: Any) -> Vector:
    result = {}
    for name in local[0]:
        ordered = np.sort(np.stack([part[name] for part in local]), axis=0)
        middle = len(local) // 2
        both = ordered[middle - 1] + ordered[middle]
        result[name] = ordered[middle] if len(local) % 2 else both / 2
    return result


def trimmed(cut: float) -> Rule:
    def rule(_number: int, _old: Vector, local: Sequence[Vector], _shares: Any) -> Vector:
        off = int(cut * len(local))
        assert off > 0
        ordered = {n: np.sort(np.stack([p[n] for p in local]), axis=0) for n in local[0]}
        return {n: values[off : len(local) - off].mean(axis=0) for n, values in ordered.items()}

    return rule


class Server:
    """Reddi et al. 2021, algorithm 2, and Hsu et al. 2019, with their state."""

    def __init__(self, kind: str, **settings: float) -> None:
        self.kind, self.settings = kind, settings
        self.m: Vector = {}
        self.v: Vector = {}

    def __call__(
        self, number: int, old: Vector, local: Sequence[Vector], shares: NDArray[np.float64]
    ) -> Vector:
        average = mean(local, shares)
        step = {name: average[name] - old[name] for name in old}
        return {name: old[name] + self._move(name, step[name], number) for name in old}

    def _move(self, name: str, delta: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        s = self.settings
        m, v = self.m.get(name, np.zeros_like(delta)), self.v.get(name, np.zeros_like(delta))
        if self.kind == "avgm":
            self.m[name] = s["momentum"] * m + delta
            return s["rate"] * self.m[name]
        b1, b2 = s.get("b1", 0.0), s.get("b2", 0.0)
        self.m[name] = b1 * m + (1 - b1) * delta
        self.v[name] = {
            "adagrad": v + delta**2,
            "yogi": v - (1 - b2) * delta**2 * np.sign(v - delta**2),
            "adam": b2 * v + (1 - b2) * delta**2,
        }[self.kind]
        rate = s["rate"]
        if s.get("corrected"):
            # Flower's own: Kingma and Ba 2014, section 2, one round ahead.
            rate *= np.sqrt(1 - b2 ** (number + 1)) / (1 - b1 ** (number + 1))
        return rate * self.m[name] / (np.sqrt(self.v[name]) + s["tau"])


TWO = {"b1": 0.8, "b2": 0.95, "tau": 0.01, "rate": 0.1}
TWO_KEYS = {"beta_1": 0.8, "beta_2": 0.95, "tau": 0.01, "server_learning_rate": 0.1}
ALGORITHMS: dict[str, tuple[dict[str, Any], Callable[[], Rule]]] = {
    "fedavg": ({}, lambda: fedavg),
    "fedprox": ({"mu": 0.7}, lambda: fedavg),
    "fedadam": (TWO_KEYS, lambda: Server("adam", corrected=1.0, **TWO)),
    "fedadam, as in the paper": (
        {**TWO_KEYS, "bias_correction": False},
        lambda: Server("adam", **TWO),
    ),
    "fedyogi": (TWO_KEYS, lambda: Server("yogi", **TWO)),
    "fedadagrad": (
        {"server_learning_rate": 0.1, "tau": 0.01},
        lambda: Server("adagrad", rate=0.1, tau=0.01),
    ),
    "fedavgm": (
        {"server_learning_rate": 0.8, "momentum": 0.6},
        lambda: Server("avgm", rate=0.8, momentum=0.6),
    ),
    "fedmedian": ({}, lambda: median),
    "fedtrimmedavg": ({"cut": 0.25}, lambda: trimmed(0.25)),
}


@pytest.mark.parametrize("weights", ["equal", "size"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_is_that_of_its_paper(name: str, weights: str) -> None:
    keys, rule = ALGORITHMS[name]
    study = small_study(
        algorithm={"name": name.split(",")[0], **keys},
        aggregation={"weights": weights},
        training={"rounds": 3, "learning_rate": 2.0},
    )
    cohorts = make_cohorts(study, 5, patients=16)
    expected = by_hand(study, cohorts, rule(), mu=keys.get("mu", 0.0))
    assert close(run(study, cohorts).weights, expected)


def test_the_oracles_differ_from_each_other() -> None:
    """Else agreement with one of them would say nothing."""
    study = small_study(training={"rounds": 3, "learning_rate": 2.0})
    cohorts = make_cohorts(study, 5, patients=16)
    mu = {"fedprox": 0.7}
    found = [
        by_hand(study, cohorts, rule(), mu=mu.get(n, 0.0)) for n, (_, rule) in ALGORITHMS.items()
    ]
    for index, left in enumerate(found):
        assert not any(close(left, right, 1e-4) for right in found[index + 1 :])


def test_size_weights_are_the_released_numbers_of_patients() -> None:
    study = small_study(aggregation={"weights": "size"})
    cohorts = make_cohorts(study, 3)
    sizes = [site.statistics().weight for site in make_sites(study, cohorts)]
    assert len(set(sizes)) == 3
    by_size = run(study, cohorts).weights
    equal = run(small_study(), cohorts).weights
    assert not close(by_size, equal, 1e-4)


def test_training_learns_the_signal() -> None:
    study = small_study(training={"rounds": 8, "learning_rate": 2.0})
    outcome = run(study, make_cohorts(study, 3, patients=120))
    first, last = outcome.history[0], outcome.history[-1]
    assert first.evaluation == {}
    auroc = last.evaluation["overall"]["auroc"]
    assert auroc is not None
    assert auroc > 0.9


@pytest.mark.parametrize(("every", "expected"), [(0, [5]), (2, [2, 4, 5]), (5, [5])])
def test_sites_are_evaluated_as_often_as_the_study_says(every: int, expected: list[int]) -> None:
    study = small_study(training={"rounds": 5}, evaluation={"every": every})
    history = run(study, make_cohorts(study, 2)).history
    assert [record.round for record in history if record.evaluation] == expected


@pytest.mark.parametrize(
    ("participation", "min_sites", "expected"),
    [(1.0, 1, 6), (0.5, 1, 3), (0.34, 1, 2), (0.01, 1, 1), (0.01, 4, 4)],
)
def test_the_right_number_of_sites_takes_part(
    participation: float, min_sites: int, expected: int
) -> None:
    study = small_study(
        training={"rounds": 2},
        aggregation={"participation": participation, "min_sites": min_sites},
    )
    history = run(study, make_cohorts(study, 6, patients=12)).history
    assert [len(record.participants) for record in history] == [expected] * 2


def draws(seed: int) -> list[tuple[str, ...]]:
    study = small_study(
        training={"rounds": 12, "seed": seed, "local_epochs": None, "local_steps": 1},
        aggregation={"participation": 0.34},
    )
    return [r.participants for r in run(study, make_cohorts(study, 6, patients=12)).history]


def test_participants_depend_on_seed_and_round_alone_and_everyone_comes_in() -> None:
    first = draws(5)
    assert first == draws(5)
    assert first != draws(6)
    assert len(set(first)) > 3
    assert {site for chosen in first for site in chosen} == {f"site-{i}" for i in range(1, 7)}


def test_drift_is_measured_against_the_weighted_mean_update() -> None:
    study = small_study(training={"rounds": 1}, aggregation={"weights": "size"})
    cohorts = make_cohorts(study, 3)
    record = run(study, cohorts).history[0]
    sites = make_sites(study, cohorts)
    shares = np.array([site.statistics().weight for site in sites])
    transform = fit(study, None)
    start = first_weights(study, transform)
    updates = []
    for site in sites:
        after = site.train(start, transform, round_number=1, proximal_mu=0.0)
        updates.append(np.concatenate([(after[k] - start[k]).ravel() for k in start]))
    average = shares @ np.stack(updates)
    for site, update in zip(sites, updates, strict=True):
        length = np.linalg.norm(update)
        cosine = update @ average / length / np.linalg.norm(average)
        assert record.drift[site.name].norm == pytest.approx(length, rel=1e-5)
        assert record.drift[site.name].cosine == pytest.approx(cosine, rel=1e-5)


def test_equal_weights_stay_equal_where_sites_send_their_sums() -> None:
    """Sums for preprocessing tell the server every site's size; it must not use it."""
    preprocess = {"standardise": "federated"}
    study = small_study(preprocess=preprocess, training={"rounds": 1})
    cohorts = make_cohorts(study, 3)
    outcome = run(study, cohorts)
    start = first_weights(study, outcome.transform)
    local = [
        wide(site.train(start, outcome.transform, round_number=1, proximal_mu=0.0))
        for site in make_sites(study, cohorts)
    ]
    expected = mean(local, np.full(3, 1 / 3))
    for name, value in outcome.weights.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


def test_first_weights_are_drawn_from_the_studys_seed() -> None:
    def drawn(seed: int) -> bytes:
        study = small_study(training={"seed": seed})
        return first_weights(study, fit(study))["weight"].tobytes()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
