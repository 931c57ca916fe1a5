"""Local optimisers are torch's own, to the bit, without what its classes bring along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedward.client.optimisers import Adam, Optimiser, Sgd, forget_gradients

STEPS = 7
Make = Callable[[list[nn.Parameter]], Any]

PAIRS: dict[str, tuple[Make, Make]] = {
    "sgd": (lambda p: Sgd(p, learning_rate=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "momentum": (
        lambda p: Sgd(p, learning_rate=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "momentum and penalty": (
        lambda p: Sgd(p, learning_rate=0.1, momentum=0.5, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.01),
    ),
    "adam": (lambda p: Adam(p, learning_rate=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adam and penalty": (
        lambda p: Adam(p, learning_rate=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
}


def model() -> nn.Module:
    """Small, with a convolution, whose weights may lie in another order in memory."""
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def follow(make: Make, *, without: int | None = None) -> list[torch.Tensor]:
    """Weights after some steps; in every second one, one parameter has no gradient."""
    module = model()
    parameters = list(module.parameters())
    optimiser: Optimiser = make(parameters)
    torch.manual_seed(4)
    for step in range(STEPS):
        forget_gradients(parameters)
        module(torch.randn(5, 2, 4, 4)).square().mean().backward()
        if without is not None and step % 2:
            parameters[without].grad = None
        optimiser.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("without", [None, 0, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_those_of_torch(name: str, without: int | None) -> None:
    own, torchs = (follow(make, without=without) for make in PAIRS[name])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, torchs, strict=True))
    assert not torch.equal(own[1], list(model().parameters())[1])


def test_training_does_not_import_torchs_compiler() -> None:
    """It takes as long to import as torch itself, in each process that trains."""
    program = """if True:
        import sys, torch
        from fedward.client.optimisers import Adam, Sgd
        for make in (Sgd, Adam):
            layer = torch.nn.Linear(2, 1)
            layer(torch.ones(3, 2)).sum().backward()
            make(list(layer.parameters()), learning_rate=0.1).step()
        sys.exit("torch._dynamo" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
