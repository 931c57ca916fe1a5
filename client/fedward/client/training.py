"""Local training at a site: take the global weights, follow gradients for some steps, give weights.

Where a step's gradient comes from is plugged in (`GradientSource`): shuffled batches here,
patient-level private gradients in `private.py`. Everything after the gradient (proximal term,
optimiser) is the same code for both, and under privacy it is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedward.client.dataset import Dataset
from fedward.client.optimisers import Adam, Optimiser, Sgd, forget_gradients
from fedward.common.errors import TrainingError
from fedward.common.models.outputs import Kind, loss_per_example
from fedward.common.models.state import get_weights, set_weights
from fedward.common.privacy.randomness import Randomness
from fedward.common.study.schema import TrainingSection
from fedward.common.tensors import Weights


class GradientSource(Protocol):
    """Where the gradient of each local step comes from."""

    def fill(self, model: nn.Module) -> None:
        """Set `.grad` of every trainable parameter for the next step."""
        ...


@dataclass(frozen=True)
class LocalSettings:
    """How a site trains in one round.

    Attributes:
        steps: number of optimiser steps.
        optimiser: "sgd" or "adam"; its state starts afresh every round and never leaves the site.
        learning_rate: above 0.
        momentum: 0 ≤ momentum < 1, for "sgd".
        weight_decay: L2 penalty, 0 or more.
        proximal_mu: weight of ½‖w - w_global‖² in the loss (FedProx), 0 or more.
    """

    steps: int
    optimiser: str
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0

    @staticmethod
    def of(training: TrainingSection, *, steps: int, proximal_mu: float = 0.0) -> LocalSettings:
        """The settings that a study prescribes, for a site that takes `steps` steps a round."""
        return LocalSettings(
            steps=steps,
            optimiser=training.optimiser,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            proximal_mu=proximal_mu,
        )


def steps_per_round(training: TrainingSection, examples: int) -> int:
    """Local steps of one round: as given, or whole passes over `examples` rows."""
    if training.local_steps is not None:
        return training.local_steps
    return (training.local_epochs or 1) * math.ceil(examples / training.batch_size)


class ShuffledBatches:
    """Plain mini-batch gradients: all rows in random order, then in another one, and so on.

    Not private. The last batch of a pass may be smaller than `batch_size`.
    """

    def __init__(
        self, dataset: Dataset, kind: Kind, *, batch_size: int, randomness: Randomness
    ) -> None:
        self._dataset = dataset
        self._kind = kind
        self._batch_size = batch_size
        self._randomness = randomness
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def fill(self, model: nn.Module) -> None:
        """Mean gradient of the next batch."""
        inputs, target = self._dataset.batch(self._next_rows())
        loss = loss_per_example(self._kind, model(inputs), target).mean()
        loss.backward()  # type: ignore[no-untyped-call]

    def _next_rows(self) -> NDArray[np.int64]:
        if not len(self._order):
            self._order = self._randomness.order(len(self._dataset))
        rows, self._order = (
            self._order[: self._batch_size],
            self._order[self._batch_size :],
        )
        return rows


def train(
    model: nn.Module, weights: Weights, source: GradientSource, settings: LocalSettings
) -> Weights:
    """Train `model` from `weights` and return what it became; `model` is only a workspace.

    Raises:
        TrainingError: the result is not finite, that is: training diverged. The message says
            nothing about the data.
    """
    set_weights(model, weights)
    model.train()
    parameters = list(model.parameters())
    anchors = [parameter.detach().clone() for parameter in parameters]
    optimiser = _optimiser(parameters, settings)
    for _ in range(settings.steps):
        forget_gradients(parameters)
        source.fill(model)
        if settings.proximal_mu > 0.0:
            _pull_back(parameters, anchors, settings.proximal_mu)
        optimiser.step()
    result = get_weights(model)
    if not all(np.isfinite(value).all() for value in result.values()):
        raise diverged()
    return result


def diverged() -> TrainingError:
    """What is said where training diverged: nothing about the data."""
    return TrainingError(
        "local training diverged: the weights are not finite",
        hint="lower [training] learning_rate, or check the features for extreme values",
    )


def _optimiser(parameters: Sequence[nn.Parameter], settings: LocalSettings) -> Optimiser:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "adam":
        return Adam(parameters, learning_rate=rate, weight_decay=decay)
    return Sgd(parameters, learning_rate=rate, momentum=settings.momentum, weight_decay=decay)


@torch.no_grad()
def _pull_back(
    parameters: Sequence[nn.Parameter], anchors: Sequence[torch.Tensor], mu: float
) -> None:
    """Add the gradient of mu/2·‖w - w_global‖² (Li et al. 2020, equation 2)."""
    for parameter, anchor in zip(parameters, anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - anchor, alpha=mu)
