"""Stacked models against torch's own differentiation, one site and one row after another.

In float64, so that a mistake cannot hide in rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedward.common.models.registry import parse_model
from fedward.common.models.state import build_module
from fedward.simulations.engines.stacked.program import Program, Stack, UnknownLayer

EXACT = 1e-10
SITES, ROWS = 3, 5
Build = Callable[[], nn.Module]
PICTURE = (2, 12, 10)


def registry(shape: tuple[int, ...], **table: object) -> Build:
    return lambda: build_module(parse_model(table), shape, 3, seed=1)


MODELS: dict[str, tuple[tuple[int, ...], Build]] = {
    "mlp": ((6,), registry((6,), name="mlp", hidden=[7, 4])),
    "logistic": ((6,), registry((6,), name="logistic")),
    "no bias": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)),
    ),
    "nested": (
        (6,),
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(6, 5), nn.GELU()), nn.Identity(), nn.Linear(5, 3)
        ),
    ),
    "cnn": (PICTURE, registry(PICTURE, name="cnn", channels=[8, 16], pool=2)),
    "cnn with hidden layers": (
        PICTURE,
        registry(PICTURE, name="cnn", channels=[16], pool=2, hidden=[6, 5]),
    ),
    "convolutions of other kinds": (
        PICTURE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 3, 2, dilation=(1, 2)),
            nn.Flatten(),
            nn.Linear(9, 3),
        ),
    ),
    "normalised without factors": (
        PICTURE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.GroupNorm(2, 4, affine=False, eps=1e-3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(320, 3),
        ),
    ),
    "normalised rows": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3)),
    ),
}


class World:
    """A model at several sites, and the gradients of its rows by torch, one row at a time."""

    def __init__(self, name: str, *, turned: bool = False) -> None:
        shape, build = MODELS[name]
        torch.manual_seed(5)
        self.module = build().double()
        self.program = Program(self.module, turned=turned)
        shapes = [(SITES, *weight.shape) for weight in self.module.parameters()]
        self.weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        self.inputs = torch.randn(SITES, ROWS, *shape, dtype=torch.float64)
        self.along = torch.randn(SITES, ROWS, 3, dtype=torch.float64)

    @property
    def stack(self) -> Stack:
        flat = torch.cat([weight.flatten(1) for weight in self.kept], dim=1)
        return self.program.views(flat, [weight[0] for weight in self.kept])

    @property
    def kept(self) -> list[Tensor]:
        """The weights in the program's form."""
        names = [name for name, _ in self.module.named_parameters()]
        return [
            weight.mT.contiguous() if name in self.program.turned else weight
            for name, weight in zip(names, self.weights, strict=True)
        ]

    def as_given(self, flat: Tensor) -> Tensor:
        """`[S, parameters]` from the program's form into the module's."""
        views = self.program.views(flat, [weight[0] for weight in self.kept])
        parts = [part for layer in views for part in layer]
        pairs = zip(parts, self.weights, strict=True)
        own = [part if part.shape == w.shape else part.mT for part, w in pairs]
        return torch.cat([part.flatten(1) for part in own], dim=1)

    def zeros(self) -> tuple[Tensor, Stack]:
        flat = torch.zeros(SITES, sum(w[0].numel() for w in self.weights), dtype=torch.float64)
        return flat, self.program.views(flat, [weight[0] for weight in self.kept])

    def row(self, site: int, row: int) -> tuple[Tensor, Tensor]:
        """Output, and gradient of `along · output` as one vector."""
        with torch.no_grad():
            for parameter, weight in zip(self.module.parameters(), self.weights, strict=True):
                parameter.copy_(weight[site])
        self.module.zero_grad()
        outputs = self.module(self.inputs[site, row : row + 1])[0]
        outputs.backward(self.along[site, row])
        grads = [p.grad.flatten() for p in self.module.parameters() if p.grad is not None]
        return outputs.detach(), torch.cat(grads)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Of all: `[S, B, outputs]` and `[S, B, parameters]`."""
        found = [[self.row(site, row) for row in range(ROWS)] for site in range(SITES)]
        outputs, grads = ([[pair[i] for pair in site] for site in found] for i in (0, 1))
        return (
            torch.stack([torch.stack(site) for site in outputs]),
            torch.stack([torch.stack(site) for site in grads]),
        )

    @torch.no_grad()
    def added(self, scale: float, rows: Tensor | None) -> Tensor:
        """What the program adds to zeros: `[S, parameters]`."""
        _, contexts = self.program.forward(self.inputs, self.stack)
        flat, into = self.zeros()
        for index, layer, context, gradient in self.program.backward(
            self.along, self.stack, contexts
        ):
            layer.add_gradient(into[index], context, gradient, scale=scale, rows=rows)
        return self.as_given(flat)

    @torch.no_grad()
    def squares(self, same: Tensor | None) -> Tensor:
        _, contexts = self.program.forward(self.inputs, self.stack)
        return sum(
            (
                layer.squares(context, gradient, same)
                for _, layer, context, gradient in self.program.backward(
                    self.along, self.stack, contexts
                )
            ),
            start=torch.zeros(SITES, ROWS, dtype=torch.float64),
        )


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients(name: str, turned: bool) -> None:
    world = World(name, turned=turned)
    outputs, single = world.rows()
    assert world.program.names == tuple(key for key, _ in world.module.named_parameters())
    assert_equal(world.program.forward(world.inputs, world.stack)[0].detach(), outputs)
    assert_equal(world.added(-0.5, None), -0.5 * single.sum(1))


@pytest.mark.parametrize("name", MODELS)
def test_each_row_can_count_another_much(name: str) -> None:
    world = World(name)
    _, single = world.rows()
    factors = torch.rand(SITES, ROWS, dtype=torch.float64)
    factors[0, 1] = 0.0
    assert_equal(world.added(1.5, factors), 1.5 * (factors.unsqueeze(2) * single).sum(1))


@pytest.mark.parametrize("name", MODELS)
def test_squared_norms_of_rows(name: str) -> None:
    world = World(name)
    _, single = world.rows()
    assert_equal(world.squares(None), single.square().sum(2))


@pytest.mark.parametrize("name", MODELS)
def test_squared_norms_of_patients_with_several_rows(name: str) -> None:
    world = World(name)
    _, single = world.rows()
    owner = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
    same = (owner.unsqueeze(2) == owner.unsqueeze(1)).double()
    inner = world.squares(same)
    for site in range(SITES):
        for patient in owner[site].unique():
            mine = owner[site] == patient
            norm = single[site, mine].sum(0).square().sum()
            np.testing.assert_allclose(inner[site, mine].sum(), norm, rtol=EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_were_yielded_may_be_changed(name: str) -> None:
    """Plain SGD adds gradients straight to the weights on its way back."""
    world = World(name)
    _, single = world.rows()
    flat = torch.cat([weight.flatten(1) for weight in world.weights], dim=1)
    stack = world.program.views(flat, [weight[0] for weight in world.weights])
    before = flat.clone()
    with torch.no_grad():
        _, contexts = world.program.forward(world.inputs, stack)
        for index, layer, context, gradient in world.program.backward(world.along, stack, contexts):
            layer.add_gradient(stack[index], context, gradient, scale=-0.1, rows=None)
    assert_equal(flat, before - 0.1 * single.sum(1))


def test_every_site_gets_its_own_copy_of_the_weights() -> None:
    program = Program(nn.Linear(2, 1))
    weights = [torch.ones(1, 2), torch.zeros(1)]
    stack = program.stack(weights, 3)
    stack[0][0][1] += 5.0
    assert stack[0][0].tolist() == [[[1.0, 1.0]], [[6.0, 6.0]], [[1.0, 1.0]]]
    assert weights[0].tolist() == [[1.0, 1.0]]


class MyLinear(nn.Linear):
    """Nobody knows what it computes."""


class MyFlatten(nn.Flatten):
    """Nobody knows what it computes."""


class MyModel(nn.Module):
    """Layers that are called in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)


def tied() -> nn.Module:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), other)


def twice() -> nn.Module:
    one = nn.Linear(3, 3)
    return nn.Sequential(one, nn.ReLU(), one)


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    module[0].weight.requires_grad_(False)
    return module


def buffered() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].register_buffer("seen", torch.zeros(1))
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return module


def hooked_whole() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module.register_forward_pre_hook(lambda _module, inputs: 2 * inputs[0])
    return module


def with_more() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].register_parameter("more", nn.Parameter(torch.zeros(1)))
    return module


STRANGE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), "BatchNorm2d"),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout()), "Dropout"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "LayerNorm"),
    "a linear layer of somebody": (lambda: nn.Sequential(MyLinear(3, 3)), "MyLinear"),
    "a flatten of somebody": (lambda: nn.Sequential(MyFlatten(), nn.Linear(3, 3)), "MyFlatten"),
    "a model of somebody": (MyModel, "MyModel"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "Conv2d"),
    "reflection": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")),
        "Conv2d",
    ),
    "padding in words": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), "Conv2d"),
    "partly flat": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(3, 3)), "Flatten"),
    "in place": (lambda: nn.Sequential(nn.Linear(3, 3), nn.SiLU(inplace=True)), "SiLU"),
    "two outputs": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, return_indices=True)),
        "MaxPool2d",
    ),
    "tied weights": (tied, "shared, frozen or statistics"),
    "a layer twice": (twice, "shared, frozen or statistics"),
    "a frozen weight": (frozen, "shared, frozen or statistics"),
    "a buffer": (buffered, "shared, frozen or statistics"),
    "a hook": (hooked, "Linear"),
    "a hook on everything": (hooked_whole, "Sequential"),
    "another weight": (with_more, "Linear"),
    "nothing to train": (lambda: nn.Sequential(nn.Flatten()), "no weights"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_known_is_refused_by_name(name: str) -> None:
    build, words = STRANGE[name]
    with pytest.raises(UnknownLayer, match=words):
        Program(build())


def test_an_activation_may_occur_twice() -> None:
    act = nn.Tanh()
    module = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 2), act)
    inputs = torch.randn(1, 4, 3)
    program = Program(module)
    outputs, _ = program.forward(inputs, program.stack(list(module.parameters()), 1))
    torch.testing.assert_close(outputs[0], module(inputs[0]))
