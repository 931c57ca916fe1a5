"""The optimisers of a study, on the weights of many sites at once. Formulas are those of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from fedward.client.optimisers import BETAS, EPS
from fedward.client.training import LocalSettings
from fedward.simulations.engines.stacked.program import Stack


def is_plain(settings: LocalSettings) -> bool:
    """Whether a step is `w -= rate · gradient`, so that gradients can be added to the weights."""
    return (
        settings.optimiser == "sgd"
        and settings.momentum == settings.weight_decay == settings.proximal_mu == 0.0
    )


class Optimiser:
    """Steps of SGD with momentum, or of Adam; the first of a round begin without memory.

    Args:
        settings: of every site; the number of steps is not looked at.
        weights: `[S, …]`, changed in place.
        anchors: the global weights, for the proximal term.
    """

    def __init__(self, settings: LocalSettings, weights: Stack, anchors: list[Tensor]) -> None:
        self._settings = settings
        self._weights = list(chain.from_iterable(weights))
        self._anchors = anchors
        self._first = [torch.zeros_like(w) for w in self._weights] if self._remembers else []
        adam = settings.optimiser == "adam"
        self._second = [torch.zeros_like(w) for w in self._weights] if adam else []
        self._steps = 0

    @property
    def _remembers(self) -> bool:
        return self._settings.optimiser == "adam" or self._settings.momentum > 0.0

    def step(self, gradients: Stack, active: int) -> None:
        """Follow the gradients at the first `active` sites; they are changed.

        All active sites have taken the same number of steps before.
        """
        self._steps += 1
        settings = self._settings
        for index, gradient in enumerate(_each(gradients, active)):
            weight = self._weights[index][:active]
            if settings.proximal_mu > 0.0:
                gradient.add_(weight - self._anchors[index], alpha=settings.proximal_mu)
            if settings.weight_decay > 0.0:
                gradient.add_(weight, alpha=settings.weight_decay)
            if settings.optimiser == "adam":
                self._adam(index, weight, gradient, active)
            elif settings.momentum > 0.0:
                memory = self._first[index][:active]
                memory.mul_(settings.momentum).add_(gradient)
                weight.add_(memory, alpha=-settings.learning_rate)
            else:
                weight.add_(gradient, alpha=-settings.learning_rate)

    def _adam(self, index: int, weight: Tensor, gradient: Tensor, active: int) -> None:
        first, second = self._first[index][:active], self._second[index][:active]
        first.lerp_(gradient, 1.0 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
        corrections = [1.0 - beta**self._steps for beta in BETAS]
        scale = (second.sqrt() / math.sqrt(corrections[1])).add_(EPS)
        weight.addcdiv_(first, scale, value=-self._settings.learning_rate / corrections[0])


def _each(stack: Stack, active: int) -> Iterator[Tensor]:
    return (tensor[:active] for tensor in chain.from_iterable(stack))
