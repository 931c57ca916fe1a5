"""An attack on DP-SGD: is this patient in the batch? It may win no more often than ε allows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from fedward.client.dataset import Dataset, MatrixInputs
from fedward.client.private import PrivateGradients
from fedward.common.privacy import PrivacyPlan, SeededRandomness
from fedward.common.privacy.accounting import epsilon

RUNS = 2000
PLAN = PrivacyPlan(
    unit="patient",
    epsilon=2.0,
    delta=1e-5,
    max_grad_norm=1.0,
    noise_multiplier=2.2,
    sampling_probability=1.0,
    expected_batch=10,
    steps_per_round=1,
    rounds=1,
    max_rows_per_patient=4,
    statistics_noise_multiplier=None,
    evaluation_noise_multiplier=1.0,
    evaluations=1,
)


class Weakened(SeededRandomness):
    """A defect planted on purpose: noise of a fraction of what was promised."""

    share = 1.0

    def normal(self, size: int) -> NDArray[np.float64]:
        return self.share * super().normal(size)


def a_site(canary: bool) -> Dataset:
    """Ten patients, and a canary with four rows whose gradient points where nobody else's does."""
    rng = np.random.default_rng(0)
    rows = np.zeros((10, 4), dtype=np.float32)
    rows[:, :3] = rng.normal(size=(10, 3))
    patient = np.arange(10)
    if canary:
        rows = np.vstack([rows, np.tile(np.array([0, 0, 0, 50], np.float32), (4, 1))])
        patient = np.append(patient, [10] * 4)
    return Dataset(
        MatrixInputs(torch.from_numpy(rows)), torch.zeros(len(rows)), patient.astype(np.int64)
    )


def observations(canary: bool, plan: PrivacyPlan, noise_share: float) -> NDArray[np.float64]:
    """What the attacker sees in `RUNS` steps: the gradient in the canary's direction."""
    randomness = Weakened(7, "canary" if canary else "none")
    randomness.share = noise_share
    source = PrivateGradients(a_site(canary), plan, "binary", randomness)
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen = np.empty(RUNS)
    for run in range(RUNS):
        source.fill(model)
        assert model.weight.grad is not None
        seen[run] = float(model.weight.grad[0, 3]) * plan.expected_batch
    return seen


def attacked_epsilon(plan: PrivacyPlan, noise_share: float) -> float:
    """Lower bound on ε that the attack proves, at 1 error in 10,000 (Jagielski et al. 2020).

    The threshold is chosen on one half of the runs and judged on the other, by Clopper-Pearson.
    """
    with_canary = observations(True, plan, noise_share)
    without = observations(False, plan, noise_share)
    half = RUNS // 2
    choices = np.quantile(with_canary[:half], np.linspace(0.02, 0.98, 49))
    best = max(choices, key=lambda t: _bound(with_canary[:half], without[:half], t, plan.delta))
    return _bound(with_canary[half:], without[half:], float(best), plan.delta)


def _bound(
    inside: NDArray[np.float64], outside: NDArray[np.float64], threshold: float, delta: float
) -> float:
    hits, alarms = int((inside >= threshold).sum()), int((outside >= threshold).sum())
    runs = len(inside)
    level = 5e-5
    power = float(stats.beta.ppf(level, hits, runs - hits + 1)) if hits else 0.0
    error = float(stats.beta.ppf(1 - level, alarms + 1, runs - alarms)) if alarms < runs else 1.0
    return math.log(max(power - delta, 1e-12) / error)


@pytest.mark.parametrize("q", [1.0, 0.5])
def test_the_attack_wins_no_more_than_accounted(q: float) -> None:
    plan = dataclasses.replace(PLAN, sampling_probability=q)
    promised = epsilon(plan.total(), plan.delta)
    assert attacked_epsilon(plan, 1.0) <= promised


@pytest.mark.parametrize("noise_share", [0.0, 0.2])
def test_the_attack_finds_missing_noise(noise_share: float) -> None:
    promised = epsilon(PLAN.total(), PLAN.delta)
    assert attacked_epsilon(PLAN, noise_share) > promised
