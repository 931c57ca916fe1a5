"""DP-SGD against an oracle that takes one patient at a time by plain autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedward.client.dataset import Dataset, ImageInputs, MatrixInputs
from fedward.client.private import PrivateGradients
from fedward.common.errors import PrivacyError
from fedward.common.models.outputs import Kind, loss_per_example
from fedward.common.models.registry import parse_model
from fedward.common.models.state import build_module
from fedward.common.privacy import PrivacyPlan, SeededRandomness
from fedward.common.table import ImageStack

PLAN = PrivacyPlan(
    unit="patient",
    epsilon=3.0,
    delta=1e-3,
    max_grad_norm=0.5,
    noise_multiplier=1.5,
    sampling_probability=0.3,
    expected_batch=6,
    steps_per_round=10,
    rounds=2,
    max_rows_per_patient=3,
    statistics_noise_multiplier=None,
    evaluation_noise_multiplier=1.0,
    evaluations=1,
)


class Silent(SeededRandomness):
    """Samples as ever, adds no noise: to see the sum that noise would protect."""

    def normal(self, size: int) -> NDArray[np.float64]:
        return np.zeros(size)


def a_dataset(kind: Kind, shape: tuple[int, ...] = (5,), patients: int = 20) -> Dataset:
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(patients), rng.integers(1, 8, patients))
    rng.shuffle(patient)
    inputs = torch.from_numpy(rng.normal(size=(len(patient), *shape)).astype(np.float32))
    target = {
        "binary": rng.integers(0, 2, len(patient)),
        "multiclass": rng.integers(0, 4, len(patient)),
        "regression": rng.normal(size=len(patient)),
    }[kind]
    return Dataset(MatrixInputs(inputs), torch.from_numpy(target.astype(np.float32)), patient)


def logistic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 1)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.GroupNorm(1, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 1),
    )


def flat_gradient(model: nn.Module) -> NDArray[np.float64]:
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    return np.concatenate([g.double().numpy().ravel() for g in gradients if g is not None])


def oracle(
    model: nn.Module, dataset: Dataset, plan: PrivacyPlan, kind: Kind, random: SeededRandomness
) -> NDArray[np.float64]:
    """Algorithm 1 of Abadi et al. 2016 as it is written, a patient at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    drawn = np.flatnonzero(random.uniform(dataset.patients) < plan.sampling_probability)
    rows = [np.flatnonzero(dataset.patient == p) for p in drawn]
    if rows and max(len(own) for own in rows) > plan.max_rows_per_patient:
        keys = np.split(random.uniform(sum(map(len, rows))), np.cumsum([len(r) for r in rows])[:-1])
        rows = [
            own[np.argsort(key)[: plan.max_rows_per_patient]]
            for own, key in zip(rows, keys, strict=True)
        ]
    total = np.zeros(sum(p.numel() for p in parameters))
    for own in rows:
        inputs, target = dataset.batch(own)
        loss = loss_per_example(kind, model(inputs), target).mean()
        found = torch.autograd.grad(loss, parameters)
        gradient = np.concatenate([g.double().numpy().ravel() for g in found])
        total += gradient * min(1.0, plan.max_grad_norm / np.linalg.norm(gradient))
    noise = plan.noise_multiplier * plan.max_grad_norm * random.normal(len(total))
    return np.asarray((total + noise) / plan.expected_batch)


CASES: list[tuple[Callable[[], nn.Module], Kind, tuple[int, ...]]] = [
    (logistic, "binary", (5,)),
    (logistic, "regression", (5,)),
    (mlp, "multiclass", (5,)),
    (cnn, "binary", (2, 6, 6)),
]


@pytest.mark.parametrize(("build", "kind", "shape"), CASES)
@pytest.mark.parametrize("bound", [0.05, 0.5, 100.0])
@pytest.mark.parametrize("physical", [1, 2, 5, 256])
def test_agrees_with_one_patient_at_a_time(
    build: Callable[[], nn.Module],
    kind: Kind,
    shape: tuple[int, ...],
    bound: float,
    physical: int,
) -> None:
    plan = dataclasses.replace(PLAN, max_grad_norm=bound)
    dataset, model = a_dataset(kind, shape), build()
    source = PrivateGradients(dataset, plan, kind, SeededRandomness(5, "x"), physical)
    random = SeededRandomness(5, "x")
    for _ in range(4):
        source.fill(model)
        expected = oracle(model, dataset, plan, kind, random)
        np.testing.assert_allclose(flat_gradient(model), expected, rtol=2e-5, atol=2e-6 * bound)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_agree_too(channels: int) -> None:
    """As they are read: in memory they lie as no other input does."""
    spec = parse_model({"name": "cnn", "channels": [8, 16]})
    model = build_module(spec, (channels, 12, 12), 1, seed=0).train()
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (30, 12, 12, channels), dtype=np.uint8)
    one = np.full(channels, 0.5, np.float32)
    dataset = Dataset(
        ImageInputs(ImageStack(pixels, np.arange(30)), one, one),
        torch.from_numpy(rng.integers(0, 2, 30).astype(np.float32)),
        np.arange(30) // 2,
    )
    source = PrivateGradients(dataset, PLAN, "binary", SeededRandomness(5, "x"))
    random = SeededRandomness(5, "x")
    for _ in range(3):
        source.fill(model)
        expected = oracle(model, dataset, PLAN, "binary", random)
        np.testing.assert_allclose(flat_gradient(model), expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("physical", [1, 3, 7, 19])
def test_virtual_steps_are_one_step(physical: int) -> None:
    # A patient of up to 20 rows is larger than most of these physical batches.
    plan = dataclasses.replace(PLAN, sampling_probability=0.8, max_rows_per_patient=20)
    dataset = a_dataset("multiclass")
    whole, parts = mlp(), mlp()
    PrivateGradients(dataset, plan, "multiclass", Silent(1), 10_000).fill(whole)
    PrivateGradients(dataset, plan, "multiclass", Silent(1), physical).fill(parts)
    np.testing.assert_allclose(flat_gradient(whole), flat_gradient(parts), rtol=1e-4, atol=1e-7)


def clipped_sum(dataset: Dataset, plan: PrivacyPlan) -> NDArray[np.float64]:
    model = mlp()
    PrivateGradients(dataset, plan, "multiclass", Silent(1)).fill(model)
    return flat_gradient(model) * plan.expected_batch


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_one_patient_moves_the_sum_by_at_most_the_bound(rows: int, scale: float) -> None:
    plan = dataclasses.replace(PLAN, sampling_probability=1.0, max_rows_per_patient=20)
    others = a_dataset("multiclass")
    extreme = torch.full((rows, 5), scale)
    unlikely = mlp()(extreme).argmin(dim=1).float()  # a class whose loss is large at any scale
    joined = Dataset(
        MatrixInputs(torch.cat([others.inputs.take(np.arange(len(others))), extreme])),
        torch.cat([others.target, unlikely]),
        np.append(others.patient, np.full(rows, others.patients)),
    )
    moved = np.linalg.norm(clipped_sum(joined, plan) - clipped_sum(others, plan))
    assert moved <= plan.max_grad_norm * (1 + 1e-5)
    if scale >= 1.0:
        assert moved >= 0.99 * plan.max_grad_norm  # the bound is reached: the test can fail
        alone = dataclasses.replace(plan, unit="record", max_rows_per_patient=1)
        by_row = np.linalg.norm(clipped_sum(joined, alone) - clipped_sum(others, alone))
        assert by_row == pytest.approx(rows * plan.max_grad_norm, rel=0.01)


def test_at_most_k_rows_of_a_patient_count() -> None:
    # All rows of the one patient agree but for a mark in a column of their own.
    marks = torch.eye(6)
    dataset = Dataset(MatrixInputs(marks), torch.ones(6), np.zeros(6, dtype=np.int64))
    plan = dataclasses.replace(PLAN, sampling_probability=1.0, max_rows_per_patient=2)
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    source = PrivateGradients(dataset, plan, "binary", Silent(9))
    seen = np.zeros(6)
    for _ in range(200):
        source.fill(model)
        used = flat_gradient(model)[:6] != 0.0
        assert used.sum() == 2
        seen += used
    assert seen.min() > 40


def test_nobody_sampled_is_a_step_of_noise() -> None:
    plan = dataclasses.replace(PLAN, sampling_probability=1e-9)
    model = mlp()
    dataset = a_dataset("multiclass")
    PrivateGradients(dataset, plan, "multiclass", SeededRandomness(4)).fill(model)
    random = SeededRandomness(4)
    random.uniform(dataset.patients)
    noise = random.normal(len(flat_gradient(model))) * 0.75 / 6
    np.testing.assert_allclose(flat_gradient(model), noise, rtol=1e-6)


def test_same_seed_same_bits() -> None:
    dataset = a_dataset("multiclass")
    found = []
    for path in ("a", "a", "b"):
        model = mlp()
        source = PrivateGradients(dataset, PLAN, "multiclass", SeededRandomness(1, path))
        for _ in range(3):
            source.fill(model)
        found.append(flat_gradient(model))
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).all()


def test_noise_of_a_step_has_the_deviation_of_the_plan() -> None:
    torch.manual_seed(0)
    model = nn.Linear(100, 100)
    dataset = Dataset(
        MatrixInputs(torch.zeros(2, 100)), torch.zeros(2), np.arange(2, dtype=np.int64)
    )
    plan = dataclasses.replace(PLAN, sampling_probability=1e-9)
    source = PrivateGradients(dataset, plan, "multiclass", SeededRandomness(1))
    steps = []
    for _ in range(2):
        source.fill(model)
        steps.append(flat_gradient(model) * plan.expected_batch)
    deviation = plan.noise_multiplier * plan.max_grad_norm
    for noise in steps:
        # 10,100 values: the deviation is known to 0.7 %; 4 % is nearly six standard errors.
        assert noise.std() == pytest.approx(deviation, rel=0.04)
    assert abs(float(np.asarray(np.corrcoef(steps))[0, 1])) < 0.05


def test_the_model_stays_plain() -> None:
    model = mlp()
    PrivateGradients(a_dataset("multiclass"), PLAN, "multiclass", SeededRandomness(1)).fill(model)
    fresh = mlp()
    for module, like in zip(model.modules(), fresh.modules(), strict=True):
        assert vars(module).keys() == vars(like).keys()
        assert not module._forward_hooks
        assert not module._backward_hooks
    for parameter, like_parameter in zip(model.parameters(), fresh.parameters(), strict=True):
        assert not vars(parameter)
        assert torch.equal(parameter, like_parameter)


def test_frozen_and_unused_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(5, 5)
            self.frozen.requires_grad_(False)
            self.unused = nn.Linear(2, 2)
            self.last = nn.Linear(5, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.frozen(inputs))
            return found

    torch.manual_seed(0)
    model = Odd()
    PrivateGradients(a_dataset("binary"), PLAN, "binary", SeededRandomness(1)).fill(model)
    assert model.frozen.weight.grad is None
    assert model.unused.weight.grad is not None  # noise alone, like any other
    assert model.unused.weight.grad.abs().min() > 0


def test_patients_without_rows_are_nobody() -> None:
    dataset = Dataset(
        MatrixInputs(torch.ones(4, 5)), torch.ones(4), np.array([0, 0, 5, 5], dtype=np.int64)
    )
    plan = dataclasses.replace(PLAN, sampling_probability=1.0)
    model = logistic()
    PrivateGradients(dataset, plan, "binary", Silent(1)).fill(model)
    assert np.linalg.norm(flat_gradient(model)) == pytest.approx(2 * 0.5 / 6, rel=1e-5)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(5), nn.InstanceNorm1d(5, affine=True, track_running_stats=True)]
)
def test_layers_that_mix_patients_are_refused(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Linear(5, 1))
    source = PrivateGradients(a_dataset("binary"), PLAN, "binary", SeededRandomness(1))
    with pytest.raises(PrivacyError, match="GroupNorm"):
        source.fill(model)


def test_evaluation_mode_is_refused() -> None:
    source = PrivateGradients(a_dataset("binary"), PLAN, "binary", SeededRandomness(1))
    with pytest.raises(PrivacyError, match="training mode"):
        source.fill(logistic().eval())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_contributes_nothing(value: float) -> None:
    """To stop would answer a question about one patient; the others' sum stays as it was."""
    whole = a_dataset("binary")
    spoilt = whole.inputs.take(np.arange(len(whole)))
    spoilt[whole.patient == 3] = value
    plan = dataclasses.replace(PLAN, sampling_probability=1.0)
    others = np.flatnonzero(whole.patient != 3)
    _, patient = np.unique(whole.patient[others], return_inverse=True)
    without = Dataset(
        MatrixInputs(whole.inputs.take(others)), whole.target[others], patient.astype(np.int64)
    )
    with_it = Dataset(MatrixInputs(spoilt), whole.target, whole.patient)
    sums = []
    for dataset in (with_it, without):
        source = PrivateGradients(dataset, plan, "binary", SeededRandomness(1))
        model = logistic()
        model.train()
        parameters = list(model.parameters())
        rows = np.arange(len(dataset))
        order = np.argsort(dataset.patient, kind="stable")
        sums.append(source._clipped_sum(model, parameters, rows[order], dataset.patient[order]))
    torch.testing.assert_close(sums[0], sums[1])
    assert torch.isfinite(sums[0]).all()
