"""From a torch module to a stacked model: a model declares nothing, its layers are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedward.simulations.engines.stacked.layers import (
    Convolution,
    Dense,
    Flat,
    Layer,
    Rectifier,
    Scale,
    Shared,
    Trained,
)

_ALONE: tuple[type[nn.Module], ...] = (
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.ELU,
    nn.GELU,
    nn.LeakyReLU,
    nn.MaxPool2d,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
)
"""Modules without weights or state that treat each row alone."""


class UnknownLayer(Exception):  # noqa: N818  (no failure: another engine computes the model)
    """The model has a layer that cannot be stacked; the text names it."""


Stack = list[list[Tensor]]
"""Weights of all sites: for each trained layer, `[S, …]` tensors."""


class Program:
    """A model of many sites.

    Args:
        module: the model of one site, built of `nn.Sequential` and layers that are known here.

    Raises:
        UnknownLayer: it has another.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = list(_layers(module, ""))
        trained = [name for layer in self._layers for name in layer.names]
        given = list(module.named_parameters())
        free = all(weight.requires_grad for _, weight in given)
        if trained != [name for name, _ in given] or not free or list(module.buffers()):
            raise UnknownLayer("weights that are shared, frozen or statistics")
        self.names = tuple(trained)
        """Of the weights, in the module's order."""

    def stack(self, weights: Sequence[Tensor], sites: int) -> Stack:
        """The same weights for each site, ready to be changed."""
        values = iter(weights)
        return [
            [next(values).expand(sites, *shape).contiguous() for shape in shapes]
            for shapes in self._shapes(weights)
        ]

    def views(self, flat: Tensor, weights: Sequence[Tensor]) -> Stack:
        """Views of `[S, parameters]` in the form of `stack`."""
        values = iter(torch.split(flat, [weight.numel() for weight in weights], dim=1))
        return [
            [next(values).view(-1, *shape) for shape in shapes] for shapes in self._shapes(weights)
        ]

    def _shapes(self, weights: Sequence[Tensor]) -> list[list[torch.Size]]:
        shapes = iter(weight.shape for weight in weights)
        return [[next(shapes) for _ in layer.names] for layer in self._layers if layer.names]

    def forward(self, inputs: Tensor, stack: Stack) -> tuple[Tensor, list[Any]]:
        """Outputs `[S, B, outputs]`, and what `backward` needs."""
        own, contexts = iter(stack), []
        for layer in self._layers:
            inputs, context = layer.forward(inputs, next(own) if layer.names else ())
            contexts.append(context)
        return inputs, contexts

    def backward(
        self, gradient: Tensor, stack: Stack, contexts: list[Any]
    ) -> Iterator[tuple[int, Trained, Any, Tensor]]:
        """Trained layers from the last to the first, each with its output's gradient.

        Yields:
            Position in the stack, the layer, its context, the gradient `[S, B, …]`. Nothing needs
            the weights of a layer any more that was yielded: they may be changed.
        """
        position = len(stack)
        first = next(i for i, layer in enumerate(self._layers) if layer.names)
        for index in range(len(self._layers) - 1, first - 1, -1):
            layer, context = self._layers[index], contexts[index]
            weights: Sequence[Tensor] = ()
            arrived = gradient
            if layer.names:
                position -= 1
                weights = stack[position]
            if index > first:
                gradient = layer.backward(context, gradient, weights)
            if layer.names:
                yield position, cast("Trained", layer), context, arrived


def _layers(module: nn.Module, prefix: str) -> Iterator[Layer]:
    """The layers of a module.

    Raises:
        UnknownLayer: one is not known; of a subclass nobody knows what it computes.
    """
    kind = type(module)
    if kind is nn.Sequential:
        for name, child in module.named_children():
            yield from _layers(child, f"{prefix}{name}.")
        return
    names = tuple(f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False))
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        yield Dense(names)
    elif isinstance(module, nn.Conv2d) and kind is nn.Conv2d and _plain(module):
        yield Convolution(names, module)
    elif isinstance(module, nn.GroupNorm) and kind is nn.GroupNorm:
        normalise: Callable[[Tensor], Tensor] = partial(
            functional.group_norm, num_groups=module.num_groups, eps=module.eps
        )
        yield Shared(normalise)
        if names:
            yield Scale(names)
    elif kind is nn.ReLU:
        yield Rectifier()
    elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        yield Flat()
    elif kind in _ALONE:
        yield Shared(module)
    elif kind is not nn.Identity:
        raise UnknownLayer(f"a layer of type {kind.__name__}")


def _plain(module: nn.Conv2d) -> bool:
    return (
        module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
