"""Optimisers of local training, by torch's functional interface.

What they compute is torch's own, to the bit. Its classes are left alone: the first that is made
imports torch's compiler, which takes as long as torch itself, and 77 MB, in every process that
trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

BETAS = (0.9, 0.999)
"""Of Adam, as Kingma and Ba (2014, algorithm 1) advise."""
EPS = 1e-8
"""Of Adam, in the denominator."""


class Optimiser(Protocol):
    """Follows gradients; its memory is of one round at one site."""

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        ...


class Sgd:
    """Stochastic gradient descent.

    Args:
        parameters: changed in place.
        learning_rate: above 0.
        momentum: 0 ≤ momentum < 1.
        weight_decay: L2 penalty, 0 or more.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._memory: list[Tensor | None] = [None] * len(self._parameters)

    @torch.no_grad()
    def step(self) -> None:
        """See `Optimiser`."""
        places = _with_gradient(self._parameters)
        memory = [self._memory[place] for place in places]
        sgd(
            [self._parameters[place] for place in places],
            _gradients(self._parameters),
            memory,
            foreach=False,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self._learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for place, own in zip(places, memory, strict=True):
            self._memory[place] = own


class Adam:
    """Adam with bias correction (Kingma and Ba 2014, algorithm 1).

    Args:
        parameters: changed in place.
        learning_rate: above 0.
        weight_decay: L2 penalty, 0 or more, added to the gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = [torch.tensor(0.0) for _ in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        """See `Optimiser`."""
        places = _with_gradient(self._parameters)
        adam(
            [self._parameters[place] for place in places],
            _gradients(self._parameters),
            [self._first[place] for place in places],
            [self._second[place] for place in places],
            [],
            [self._steps[place] for place in places],
            foreach=False,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self._learning_rate,
            weight_decay=self._weight_decay,
            eps=EPS,
            maximize=False,
        )


def forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Let no parameter have a gradient."""
    for parameter in parameters:
        parameter.grad = None


def _with_gradient(parameters: Sequence[nn.Parameter]) -> list[int]:
    return [place for place, own in enumerate(parameters) if own.grad is not None]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [own.grad for own in parameters if own.grad is not None]
