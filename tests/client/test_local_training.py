"""Local training against autograd of the whole loss, and against optimisers written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from fedward.client.dataset import Dataset, MatrixInputs
from fedward.client.training import LocalSettings, ShuffledBatches, steps_per_round, train
from fedward.common.errors import RoundError, TrainingError
from fedward.common.models.outputs import Kind, loss_per_example
from fedward.common.models.registry import parse_model
from fedward.common.models.state import build_module, get_weights
from fedward.common.privacy.randomness import SeededRandomness
from fedward.common.study.schema import TrainingSection
from fedward.common.tensors import Weights

ROWS = 21


def a_dataset(kind: Kind = "binary", rows: int = ROWS, scale: float = 1.0) -> Dataset:
    rng = np.random.default_rng(4)
    targets = {
        "binary": rng.integers(0, 2, rows),
        "multiclass": rng.integers(0, 3, rows),
        "regression": rng.normal(size=rows),
    }[kind]
    inputs = torch.from_numpy((scale * rng.normal(size=(rows, 3))).astype(np.float32))
    target = torch.from_numpy(targets.astype(np.float32))
    return Dataset(MatrixInputs(inputs), target, np.arange(rows))


def a_model(kind: Kind = "binary") -> nn.Module:
    spec = parse_model({"name": "mlp", "hidden": [4]})
    return build_module(spec, (3,), 3 if kind == "multiclass" else 1, seed=1)


def batches(data: Dataset, kind: Kind = "binary", size: int = 5, seed: int = 0) -> ShuffledBatches:
    return ShuffledBatches(data, kind, batch_size=size, randomness=SeededRandomness(seed))


def settings(**changes: Any) -> LocalSettings:
    plain: dict[str, Any] = {"steps": 7, "optimiser": "sgd", "learning_rate": 0.1}
    return LocalSettings(**{**plain, **changes})


def run(kind: Kind = "binary", seed: int = 0, size: int = 5, **changes: Any) -> Weights:
    model = a_model(kind)
    source = batches(a_dataset(kind), kind, size=size, seed=seed)
    return train(model, get_weights(model), source, settings(**changes))


def same(left: Weights, right: Weights) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[k], right[k]) for k in left)


class Recorded:
    """Plain batches that remember which rows they were, for an oracle to take the same."""

    def __init__(self, data: Dataset, kind: Kind, size: int) -> None:
        order: list[int] = []
        random = SeededRandomness(0)
        self.rows: list[NDArray[np.int64]] = []
        while len(self.rows) < 20:
            if not order:
                order = list(random.order(len(data)))
            self.rows.append(np.array(order[:size]))
            order = order[size:]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"proximal_mu": 0.9},
        {"momentum": 0.8},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.05, "proximal_mu": 2.0},
        {"optimiser": "adam", "learning_rate": 0.02},
        {"optimiser": "adam", "learning_rate": 0.02, "weight_decay": 0.1, "proximal_mu": 0.4},
    ],
    ids=str,
)
def test_steps_are_those_of_the_whole_loss(kind: Kind, changes: dict[str, Any]) -> None:
    """Oracle: autograd of mean loss + mu/2·‖w - w0‖² + decay/2·‖w‖², then SGD or Adam by hand."""
    how = settings(**changes)
    data, model = a_dataset(kind), a_model(kind)
    start = get_weights(model)
    names = [name for name, _ in model.named_parameters()]
    values = {n: torch.from_numpy(start[n]).double().requires_grad_() for n in names}
    first: dict[str, Any] = dict.fromkeys(names, 0.0)
    second: dict[str, Any] = dict.fromkeys(names, 0.0)
    rows = Recorded(data, kind, 5).rows
    for step in range(1, how.steps + 1):
        inputs, target = data.batch(rows[step - 1])
        raw = torch.func.functional_call(model.double(), values, (inputs.double(),))
        loss = loss_per_example(kind, raw, target.double()).mean()
        for n in names:
            anchor = torch.from_numpy(start[n]).double()
            loss = loss + how.proximal_mu / 2 * (values[n] - anchor).square().sum()
            loss = loss + how.weight_decay / 2 * values[n].square().sum()
        gradients = torch.autograd.grad(loss, list(values.values()))
        for n, g in zip(names, gradients, strict=True):
            if how.optimiser == "sgd":
                first[n] = how.momentum * first[n] + g
                move = first[n]
            else:
                first[n] = 0.9 * first[n] + 0.1 * g
                second[n] = 0.999 * second[n] + 0.001 * g**2
                corrected = first[n] / (1 - 0.9**step)
                move = corrected / (torch.sqrt(second[n] / (1 - 0.999**step)) + 1e-8)
            values[n] = (values[n] - how.learning_rate * move).detach().requires_grad_()
    found = run(kind, **changes)
    for n in names:
        np.testing.assert_allclose(found[n], values[n].detach().numpy(), rtol=2e-4, atol=2e-5)


def test_the_proximal_term_holds_the_model_near_the_global_one() -> None:
    start = get_weights(a_model())
    distances = []
    for mu in (0.0, 1.0, 9.0):
        found = run(proximal_mu=mu, steps=60)
        distances.append(sum(float(np.square(found[k] - start[k]).sum()) for k in start))
    assert distances[0] > distances[1] > distances[2] > 0.0


def test_what_the_model_held_before_does_not_matter() -> None:
    expected = run()
    model = a_model()
    start = get_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(99.0)
            parameter.grad = torch.ones_like(parameter)
    assert same(train(model, start, batches(a_dataset()), settings()), expected)


def test_same_randomness_same_result_and_other_randomness_another() -> None:
    assert same(run(), run())
    assert not same(run(), run(seed=1))


def test_the_given_weights_are_not_changed() -> None:
    model = a_model()
    start = get_weights(model)
    kept = {name: value.copy() for name, value in start.items()}
    train(model, start, batches(a_dataset()), settings())
    assert same(start, kept)


def test_no_steps_change_nothing() -> None:
    assert same(run(steps=0), get_weights(a_model()))


def test_settings_are_those_of_the_study() -> None:
    section = TrainingSection(
        rounds=2,
        local_epochs=3,
        batch_size=4,
        optimiser="sgd",
        learning_rate=0.25,
        momentum=0.5,
        weight_decay=0.125,
    )
    assert LocalSettings.of(section, steps=9, proximal_mu=0.75) == LocalSettings(
        9, "sgd", 0.25, 0.5, 0.125, 0.75
    )


# --- batches ------------------------------------------------------------------------------------


class Looking(nn.Module):
    """Remembers which rows it was shown; inputs hold the row's number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append([int(value) for value in inputs[:, 0]])
        return inputs * self.weight


@given(rows=st.integers(1, 30), size=st.integers(1, 35), passes=st.integers(1, 3))
def test_every_row_comes_once_in_each_pass(rows: int, size: int, passes: int) -> None:
    numbers = torch.arange(rows, dtype=torch.float32)[:, None]
    data = Dataset(MatrixInputs(numbers), torch.zeros(rows), np.arange(rows))
    source, model = batches(data, "regression", size), Looking()
    each = -(-rows // size)
    for _ in range(passes * each):
        source.fill(model)
    orders = []
    for start in range(0, passes * each, each):
        chunk = model.seen[start : start + each]
        assert all(len(batch) == size for batch in chunk[:-1])
        orders.append([row for batch in chunk for row in batch])
        assert sorted(orders[-1]) == list(range(rows))
    if rows > 10 and passes > 1:
        assert orders[0] != orders[1]


@given(rows=st.integers(1, 1000), size=st.integers(1, 64), epochs=st.integers(1, 5))
def test_an_epoch_is_as_many_steps_as_it_takes(rows: int, size: int, epochs: int) -> None:
    section = TrainingSection(rounds=1, local_epochs=epochs, batch_size=size, learning_rate=1.0)
    steps = steps_per_round(section, rows)
    assert (steps - epochs) * size < epochs * rows <= steps * size


def test_local_steps_are_taken_as_given() -> None:
    section = TrainingSection(rounds=1, local_steps=13, batch_size=4, learning_rate=1.0)
    assert steps_per_round(section, 1) == steps_per_round(section, 10_000) == 13


# --- refusals -----------------------------------------------------------------------------------


def test_divergence_is_refused_without_a_number_from_the_data() -> None:
    model = a_model("regression")
    source = batches(a_dataset("regression", scale=1e6), "regression")
    with pytest.raises(TrainingError, match="local training diverged") as caught:
        train(model, get_weights(model), source, settings(learning_rate=1e30))
    assert not any(character.isdigit() for character in str(caught.value))


def test_weights_that_are_not_finite_are_not_trained_from() -> None:
    model = a_model()
    start = get_weights(model)
    start["0.weight"][0, 0] = np.nan
    with pytest.raises(RoundError, match="NaN"):
        train(model, start, batches(a_dataset()), settings())
