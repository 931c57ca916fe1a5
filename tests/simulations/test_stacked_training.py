"""Training many sites at once against plain loops over sites, steps, patients and rows.

In float64, so that a mistake cannot hide in rounding. The loops know nothing of `client.training`
or `client.private`: they are the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedward.client.dataset import Dataset, MatrixInputs
from fedward.client.patient_rows import PatientRows
from fedward.client.training import LocalSettings
from fedward.common.models.outputs import Kind, loss_per_example
from fedward.common.models.registry import parse_model
from fedward.common.models.state import build_module
from fedward.common.privacy.plan import PrivacyPlan
from fedward.common.privacy.randomness import Randomness, SeededRandomness
from fedward.simulations.engines.stacked.program import Program
from fedward.simulations.engines.stacked.schedule import drawn, shuffled
from fedward.simulations.engines.stacked.training import Chunk, Privacy, train_chunk
from fedward.simulations.engines.table import Table

EXACT = 1e-10
SIZES = (23, 4, 17, 1, 8)
BATCH = 4
SHAPES = {"mlp": (3,), "cnn": (1, 6, 6)}
TABLES: dict[str, dict[str, object]] = {
    "mlp": {"name": "mlp", "hidden": [6, 4]},
    "cnn": {"name": "cnn", "channels": [8], "pool": 1, "hidden": [3]},
}
Follow = Callable[[nn.Module], None]
"""Sets the gradient of the next step."""


def model(name: str) -> nn.Module:
    return build_module(parse_model(TABLES[name]), SHAPES[name], 1, seed=2).double()


def datasets(name: str, owners: list[NDArray[np.int64]] | None = None) -> list[Dataset]:
    torch.manual_seed(7)
    owners = owners or [np.arange(size) for size in SIZES]
    return [
        Dataset(
            MatrixInputs(torch.randn(len(owner), *SHAPES[name], dtype=torch.float64)),
            torch.randint(0, 2, (len(owner),)).double(),
            owner,
        )
        for owner in owners
    ]


def settings(**changes: object) -> LocalSettings:
    return replace(LocalSettings(steps=0, optimiser="sgd", learning_rate=0.1), **changes)


def steps_of(sets: list[Dataset], passes: int) -> NDArray[np.int64]:
    return np.array([passes * -(-len(own) // BATCH) for own in sets], np.int64)


def by_hand(module: nn.Module, follow: Follow, steps: int, asked: LocalSettings) -> Tensor:
    """What a site's weights become."""
    anchors = [p.detach().clone() for p in module.parameters()]
    optimiser: torch.optim.Optimizer = torch.optim.SGD(
        module.parameters(),
        lr=asked.learning_rate,
        momentum=asked.momentum,
        weight_decay=asked.weight_decay,
    )
    if asked.optimiser == "adam":
        optimiser = torch.optim.Adam(
            module.parameters(), lr=asked.learning_rate, weight_decay=asked.weight_decay
        )
    for _ in range(steps):
        optimiser.zero_grad()
        follow(module)
        for parameter, anchor in zip(module.parameters(), anchors, strict=True):
            assert parameter.grad is not None
            parameter.grad += asked.proximal_mu * (parameter.detach() - anchor)
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Shuffled:
    """Batches of a site, in the order that its stream gives."""

    def __init__(self, own: Dataset, kind: Kind, source: Randomness) -> None:
        self._own, self._kind, self._source = own, kind, source
        self._left: list[int] = []

    def __call__(self, module: nn.Module) -> None:
        self._left = self._left or self._source.order(len(self._own)).tolist()
        rows, self._left = self._left[:BATCH], self._left[BATCH:]
        losses = [loss(module, self._own, self._kind, row) for row in rows]
        (torch.stack(losses).sum() / len(rows)).backward()


def loss(module: nn.Module, own: Dataset, kind: Kind, row: int) -> Tensor:
    inputs, target = own.batch(np.array([row]))
    return loss_per_example(kind, module(inputs), target)[0]


class Private:
    """Algorithm 1 of Abadi et al. 2016 for patients, written out."""

    def __init__(self, own: Dataset, plan: PrivacyPlan, source: Randomness) -> None:
        self._own, self._plan, self._source = own, plan, source

    def __call__(self, module: nn.Module) -> None:
        plan, own = self._plan, self._own
        total = torch.zeros(sum(p.numel() for p in module.parameters()), dtype=torch.float64)
        sampled = np.flatnonzero(self._source.uniform(own.patients) < plan.sampling_probability)
        rows = [np.flatnonzero(own.patient == patient).tolist() for patient in sampled]
        if any(len(mine) > plan.max_rows_per_patient for mine in rows):
            numbers = iter(self._source.uniform(sum(len(mine) for mine in rows)).tolist())
            ranked = [sorted((next(numbers), row) for row in mine) for mine in rows]
            rows = [[row for _, row in mine[: plan.max_rows_per_patient]] for mine in ranked]
        for mine in rows:
            mean = sum(
                (self._gradient(module, row) for row in mine), start=torch.zeros_like(total)
            ) / len(mine)
            if bool(torch.isfinite(mean).all()):
                total += mean * min(1.0, plan.max_grad_norm / max(float(mean.norm()), 1e-300))
        total += (
            plan.noise_multiplier
            * plan.max_grad_norm
            * torch.from_numpy(self._source.normal(len(total)))
        )
        parts = torch.split(total / plan.expected_batch, [p.numel() for p in module.parameters()])
        for parameter, part in zip(module.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _gradient(self, module: nn.Module, row: int) -> Tensor:
        parameters = list(module.parameters())
        found = torch.autograd.grad(loss(module, self._own, "binary", row), parameters)
        return torch.cat([part.flatten() for part in found])


def sources(count: int) -> list[SeededRandomness]:
    return [SeededRandomness(9, f"site-{index}", 1) for index in range(count)]


def trained(
    name: str,
    sets: list[Dataset],
    asked: LocalSettings,
    steps: NDArray[np.int64],
    plans: list[PrivacyPlan] | None = None,
) -> list[Tensor]:
    """By `train_chunk`: of each site, in the order given."""
    order = np.argsort(-steps, kind="stable")
    table, module = Table.of(sets, [len(own) for own in sets]), model(name)
    streams = [sources(len(sets))[index] for index in order]
    starts, privacy = table.starts[order], None
    if plans is None:
        batches = shuffled(starts, table.sizes[order], steps[order], BATCH, streams)
    else:
        patients = [PatientRows(sets[index], plans[index]) for index in order]
        batches = drawn(starts, steps[order], patients, streams)
        privacy = Privacy([plans[index] for index in order], streams)
    program = Program(module, turned=plans is None)
    chunk = Chunk(program, table, "binary", asked, len(sets), batches, privacy)
    given = {
        name: p.detach().mT.contiguous() if name in program.turned else p.detach()
        for name, p in module.named_parameters()
    }
    stack = [w for layer in train_chunk(chunk, list(given.values())) for w in layer]
    turned = [name in program.turned for name in given]
    own = [w.mT if turn else w for w, turn in zip(stack, turned, strict=True)]
    flat = torch.cat([weight.flatten(1) for weight in own], dim=1)
    return [flat[place] for place in np.argsort(order)]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=EXACT, atol=EXACT)


WAYS: tuple[dict[str, object], ...] = (
    {},
    {"momentum": 0.9},
    {"weight_decay": 0.2},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"proximal_mu": 0.7},
    {"optimiser": "adam"},
    {"optimiser": "adam", "weight_decay": 0.1, "proximal_mu": 0.3},
)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_shuffled_batches(way: dict[str, object], name: str) -> None:
    """Sites of different sizes, three passes each: the last batch of most is short."""
    sets, asked = datasets(name), settings(**way)
    steps = steps_of(sets, 3)
    wanted = [
        by_hand(model(name), Shuffled(own, "binary", source), int(count), asked)
        for own, source, count in zip(sets, sources(len(sets)), steps, strict=True)
    ]
    assert_equal(trained(name, sets, asked, steps), wanted)


def test_as_many_steps_everywhere_and_passes_that_are_cut_off() -> None:
    sets, asked = datasets("mlp"), settings(momentum=0.9)
    steps = np.full(len(sets), 7)
    wanted = [
        by_hand(model("mlp"), Shuffled(own, "binary", source), 7, asked)
        for own, source in zip(sets, sources(len(sets)), strict=True)
    ]
    assert_equal(trained("mlp", sets, asked, steps), wanted)


@pytest.mark.parametrize("size", [5, 6, 7])
def test_a_short_batch_is_padded_by_its_own_rows(size: int) -> None:
    """By another's, ∞ · 0 = NaN would come from a row that is not in the batch."""
    starts, sizes, steps = np.array([10, 50]), np.array([size, 2 * BATCH]), np.array([2, 2])
    first, second = shuffled(starts, sizes, steps, BATCH, sources(2))
    order = sources(1)[0].order(size) + 10
    assert first.rows.tolist()[:BATCH] == order[:BATCH].tolist()
    assert second.rows.tolist()[: size - BATCH] == order[BATCH:].tolist()
    assert set(second.rows.tolist()[:BATCH]) == set(order[BATCH:].tolist())
    short = [1 / (size - BATCH)] * (size - BATCH) + [0.0] * (2 * BATCH - size)
    assert second.weight.tolist() == [short, [1 / BATCH] * BATCH]


def test_a_batch_is_no_wider_than_its_largest_site() -> None:
    both, one = shuffled(np.array([0, 9]), np.array([5, 3]), np.array([2, 1]), BATCH, sources(2))
    assert both.weight.shape == (2, BATCH)
    assert one.weight.tolist() == [[1.0]]


def plan(**changes: object) -> PrivacyPlan:
    made = PrivacyPlan(
        unit="patient",
        epsilon=1.0,
        delta=1e-3,
        max_grad_norm=0.5,
        noise_multiplier=0.8,
        sampling_probability=0.4,
        expected_batch=5,
        steps_per_round=6,
        rounds=1,
        max_rows_per_patient=2,
        statistics_noise_multiplier=None,
        evaluation_noise_multiplier=1.0,
        evaluations=1,
    )
    return replace(made, **changes)


OWNERS = {
    "a row each": [np.arange(size) for size in SIZES],
    "several rows": [
        np.repeat(np.arange(9), [1, 2, 3, 1, 1, 4, 2, 1, 5]),
        np.array([0, 1, 0, 2, 1, 0]),
        np.arange(12),
        np.zeros(3, np.int64),
    ],
}
PLANS = [
    plan(),
    plan(sampling_probability=0.9, noise_multiplier=0.3),
    plan(expected_batch=3, sampling_probability=0.2),
    plan(sampling_probability=0.05),  # hardly anybody, most steps nobody
    plan(sampling_probability=1.0, steps_per_round=3),
]


def privately(
    name: str, sets: list[Dataset], plans: list[PrivacyPlan], asked: LocalSettings
) -> None:
    steps = np.array([own.steps_per_round for own in plans], np.int64)
    wanted = [
        by_hand(model(name), Private(own, mine, source), mine.steps_per_round, asked)
        for own, mine, source in zip(sets, plans, sources(len(sets)), strict=True)
    ]
    for own in wanted:
        assert bool(torch.isfinite(own).all())
    assert_equal(trained(name, sets, asked, steps, plans), wanted)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("way", [{}, {"optimiser": "adam", "proximal_mu": 0.4}], ids=str)
@pytest.mark.parametrize("bound", [0.05, 1.0, 1e6], ids=["all clipped", "some", "none"])
def test_private_gradients(name: str, owners: str, way: dict[str, object], bound: float) -> None:
    sets = datasets(name, OWNERS[owners])
    plans = [replace(own, max_grad_norm=bound) for own in PLANS[: len(sets)]]
    privately(name, sets, plans, settings(**way))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_patient_whose_gradient_is_not_finite_counts_for_nothing(
    value: float, owners: str, name: str
) -> None:
    """And for nobody else: not for other patients, not as padding, not at other sites."""
    sets = datasets(name, OWNERS[owners])
    for own, rows in zip(sets, ([0], [1], [5], [0]), strict=False):
        assert isinstance(own.inputs, MatrixInputs)
        own.inputs.values[rows] = value
    plans = [replace(own, max_grad_norm=0.3) for own in PLANS[: len(sets)]]
    privately(name, sets, plans, settings())


@pytest.mark.parametrize("value", [1e100, 1e200])
def test_a_gradient_may_be_huge(value: float) -> None:
    """Clipped if its norm can be computed, nothing if not."""
    sets = datasets("mlp")
    for own in sets:
        assert isinstance(own.inputs, MatrixInputs)
        own.inputs.values[0] = value
    privately("mlp", sets, PLANS, settings())


def test_nobody_sampled_gives_noise_alone() -> None:
    sets = datasets("mlp", [np.arange(6), np.arange(3)])
    plans = [plan(sampling_probability=1e-12, steps_per_round=1)] * 2
    before = torch.cat([p.detach().flatten() for p in model("mlp").parameters()])
    found = trained("mlp", sets, settings(learning_rate=1.0), np.array([1, 1]), plans)
    for own, source, size in zip(found, sources(2), (6, 3), strict=True):
        source.uniform(size)
        noise = 0.8 * 0.5 * source.normal(len(before)) / 5
        np.testing.assert_allclose((before - own).numpy(), noise, rtol=0, atol=EXACT)


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_a_patient_that_cancel_break_no_bound(seed: int) -> None:
    """In float32 their inner products are rounding: the norm of the sum must not be lost in it."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(1, 8)) * 300.0).float().repeat(2, 1)
    residual = 5e4
    target = torch.tensor([residual, -residual * (1 - 10 ** -rng.uniform(2, 7))])
    own = Dataset(MatrixInputs(features), target, np.zeros(2, np.int64))
    linear = nn.Linear(8, 1)
    weights = [torch.zeros(1, 8), torch.zeros(1)]
    silent = plan(sampling_probability=1.0, steps_per_round=1, noise_multiplier=1e-12)
    table, asked = Table.of([own], [len(own)]), settings(learning_rate=1.0)
    drawn_from = PatientRows(own, silent)
    source = SeededRandomness(seed, "cancel")
    chunk = Chunk(
        program=Program(linear),
        table=table,
        kind="regression",
        settings=asked,
        sites=1,
        steps=drawn(np.zeros(1, np.int64), np.ones(1, np.int64), [drawn_from], [source]),
        privacy=Privacy([silent], [source]),
    )
    moved = torch.cat([w.flatten() for layer in train_chunk(chunk, weights) for w in layer])
    most = silent.max_grad_norm / silent.expected_batch
    assert float(moved.double().norm()) <= most * (1 + 1e-3)
