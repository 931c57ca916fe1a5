"""From a torch module to a stacked model: a model declares nothing, its layers are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedward.simulations.engines.stacked.layers import (
    Dense,
    Flat,
    Layer,
    Rectifier,
    Shared,
    Trained,
)
from fedward.simulations.engines.stacked.pictures import Convolution, Scale

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
        turned: whether matrices of dense layers are kept as `[S, inputs, outputs]`, which is
            faster. All weights and gradients that are given or made are then in that form.

    Raises:
        UnknownLayer: it has another.
    """

    def __init__(self, module: nn.Module, *, turned: bool = False) -> None:
        self._layers = list(_layers(module, ""))
        dense = [layer for layer in self._layers if isinstance(layer, Dense)]
        for layer in dense:
            layer.turned = turned
        self.turned = frozenset(layer.names[0] for layer in dense if turned)
        """Names of the matrices that are kept so."""
        trained = [name for layer in self._layers for name in layer.names]
        given = list(module.named_parameters())
        free = all(weight.requires_grad for _, weight in given)
        if trained != [name for name, _ in given] or not free or list(module.buffers()):
            raise UnknownLayer("weights that are shared, frozen or statistics")
        if not trained:
            raise UnknownLayer("no weights")
        self.names = tuple(trained)
        """Of the weights, in the module's order."""
        self.convolves = any(isinstance(layer, Convolution) for layer in self._layers)
        """Whether some layers go site by site."""

    def stack(self, weights: Sequence[Tensor], sites: int) -> Stack:
        """The same weights for each site, ready to be changed."""
        values = iter(weights)
        return [
            # Not `contiguous`: for one site that would be the given weights themselves.
            [next(values).repeat(sites, *(1,) * len(shape)) for shape in shapes]
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
    if type(module) is nn.Sequential and not _hooked(module):
        # Also those that occur twice, which `named_children` would leave out.
        for name, child in module.named_modules(remove_duplicate=False):
            if name and "." not in name:
                yield from _layers(child, f"{prefix}{name}.")
        return
    make = _MAKERS.get(type(module))
    own = tuple(name for name, _ in module.named_parameters(recurse=False))
    found = None
    if make is not None and own in _OWN and not _hooked(module):
        found = make(module, tuple(f"{prefix}{name}" for name in own))
    if found is None:
        raise UnknownLayer(f"a layer of type {type(module).__name__}")
    yield from found


Maker = Callable[[Any, tuple[str, ...]], list[Layer] | None]
"""`(module, names of its weights)` to its layers; None if its settings are not known."""
_OWN = ((), ("weight",), ("weight", "bias"))


def _hooked(module: nn.Module) -> bool:
    """Whether something else is computed before or after the module's own."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _dense(module: nn.Linear, names: tuple[str, ...]) -> list[Layer]:
    del module
    return [Dense(names)]


def _convolution(module: nn.Conv2d, names: tuple[str, ...]) -> list[Layer] | None:
    plain = module.groups == 1 and module.padding_mode == "zeros"
    return [Convolution(names, module)] if plain and not isinstance(module.padding, str) else None


def _group_norm(module: nn.GroupNorm, names: tuple[str, ...]) -> list[Layer]:
    normalise = partial(functional.group_norm, num_groups=module.num_groups, eps=module.eps)
    return [Shared(normalise), Scale(names)] if names else [Shared(normalise)]


def _rectifier(module: nn.ReLU, names: tuple[str, ...]) -> list[Layer]:
    del module, names
    return [Rectifier()]


def _flat(module: nn.Flatten, names: tuple[str, ...]) -> list[Layer] | None:
    del names
    return [Flat()] if (module.start_dim, module.end_dim) == (1, -1) else None


def _identity(module: nn.Identity, names: tuple[str, ...]) -> list[Layer]:
    del module, names
    return []


def _alone(module: nn.Module, names: tuple[str, ...]) -> list[Layer] | None:
    del names
    strange = getattr(module, "inplace", False) or getattr(module, "return_indices", False)
    return None if strange else [Shared(module)]


_MAKERS: dict[type[nn.Module], Maker] = {
    nn.Linear: _dense,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.ReLU: _rectifier,
    nn.Flatten: _flat,
    nn.Identity: _identity,
    **dict.fromkeys(_ALONE, _alone),
}
