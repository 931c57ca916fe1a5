"""Layers with a leading site dimension: every site its own weights, one call for all.

Shapes, throughout: S sites, B rows each. Inputs and outputs are `[S, B, …]`, a weight is
`[S, *shape of the module's own]`. Backward is written out: what is not needed is not computed, and
gradients are added straight to where they belong.

Gradients of single rows are never made for dense layers. A row's squared gradient norm is the
product of those of its input and of its output gradient (Goodfellow 2015), and the inner product of
two rows' gradients, needed for patients with several rows, the product of the two inner products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Weights = Sequence[Tensor]
"""The weights of one layer, `[S, …]` each, in the module's order."""
CHANNELS_LAST = (0, 1, 3, 4, 2)
"""From `[S, B, channels, height, width]` to lines of channels."""
CHANNELS_FIRST = (0, 1, 4, 2, 3)
"""And back."""


class Layer(Protocol):
    """One step of a stacked model. `context` is what `forward` kept for `backward`."""

    names: tuple[str, ...]
    """Of its weights, in the module's state; empty if it has none."""

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, Any]:
        """Outputs, and a context."""
        ...

    def backward(self, context: Any, gradient: Tensor, weights: Weights) -> Tensor:
        """Gradient of the inputs from that of the outputs."""
        ...


class Trained(Layer, Protocol):
    """A layer that has weights."""

    def add_gradient(
        self, into: Weights, context: Any, gradient: Tensor, *, scale: float, rows: Tensor | None
    ) -> None:
        """Add `scale` times the sum over rows of the weights' gradients.

        Args:
            into: is changed.
            context: of `forward`.
            gradient: of the outputs.
            scale: factor of all.
            rows: `[S, B]`, a factor for each row; None for 1.
        """
        ...

    def squares(self, context: Any, gradient: Tensor, same: Tensor | None) -> Tensor:
        """`[S, B]`: inner product of each row's gradient with the sum of its patient's.

        Args:
            context: of `forward`.
            gradient: of the outputs.
            same: `[S, B, B]`, 1 where two rows are one patient's, else 0; None if no patient has
                two. Then the result is each row's squared norm.
        """
        ...


class Dense:
    """`nn.Linear` on `[S, B, inputs]`.

    Args:
        names: of its weights.
        turned: whether its matrix is kept as `[S, inputs, outputs]`, not as the module's own. The
            library multiplies by such matrices up to three times as fast.
    """

    def __init__(self, names: tuple[str, ...], *, turned: bool = False) -> None:
        self.names = names
        self.turned = turned

    def _matrix(self, weights: Weights) -> Tensor:
        """`[S, inputs, outputs]`."""
        return weights[0] if self.turned else weights[0].mT

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Gives x Wᵀ + b."""
        matrix = self._matrix(weights)
        if matrix.shape[2] == 1:  # one output: as a row times the inputs, three times as fast
            outputs = torch.bmm(matrix.mT, inputs.mT).mT
            return (outputs if len(weights) == 1 else outputs + weights[1].unsqueeze(1)), inputs
        if len(weights) == 1:
            return torch.bmm(inputs, matrix), inputs
        return torch.baddbmm(weights[1].unsqueeze(1), inputs, matrix), inputs

    def backward(self, context: Tensor, gradient: Tensor, weights: Weights) -> Tensor:
        """Gives g W."""
        del context
        matrix = self._matrix(weights).mT
        return gradient * matrix if matrix.shape[1] == 1 else torch.bmm(gradient, matrix)

    def add_gradient(
        self,
        into: Weights,
        context: Tensor,
        gradient: Tensor,
        *,
        scale: float,
        rows: Tensor | None,
    ) -> None:
        """See `Trained`."""
        if rows is not None:
            gradient = gradient * rows.unsqueeze(2)
        if self.turned:
            into[0].baddbmm_(context.mT, gradient, alpha=scale)
        else:
            into[0].baddbmm_(gradient.mT, context, alpha=scale)
        if len(into) == 2:
            into[1].add_(gradient.sum(1), alpha=scale)

    def squares(self, context: Tensor, gradient: Tensor, same: Tensor | None) -> Tensor:
        """See `Trained`."""
        bias = float(len(self.names) == 2)
        if same is None:
            return (context.square().sum(2) + bias) * gradient.square().sum(2)
        inner = torch.bmm(context, context.mT).add_(bias).mul_(torch.bmm(gradient, gradient.mT))
        return inner.mul_(same).sum(2)


class Rectifier:
    """`nn.ReLU`."""

    names: tuple[str, ...] = ()

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """max(x, 0)."""
        del weights
        outputs = inputs.relu()
        return outputs, outputs

    def backward(self, context: Tensor, gradient: Tensor, weights: Weights) -> Tensor:
        """Passes g on where x was above 0."""
        del weights
        passed: Tensor = torch.ops.aten.threshold_backward(gradient, context, 0)
        return passed


_PICTURES = 4
"""Dimensions of rows of pictures. Pooling is several times as fast if channels come last."""


class Shared:
    """A function without weights that treats every row alone, the same at every site.

    Args:
        function: of `[rows, …]`.
    """

    names: tuple[str, ...] = ()

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Of all rows of all sites at once."""
        del weights
        rows = inputs.flatten(0, 1).detach()
        if rows.dim() == _PICTURES:
            rows = rows.contiguous(memory_format=torch.channels_last)
        rows = rows.requires_grad_()
        with torch.enable_grad():
            outputs = self._function(rows)
        return _by_site(outputs.detach(), inputs), (rows, outputs)

    def backward(
        self, context: tuple[Tensor, Tensor], gradient: Tensor, weights: Weights
    ) -> Tensor:
        """By automatic differentiation of this one function."""
        del weights
        rows, outputs = context
        (found,) = torch.autograd.grad(outputs, rows, gradient.flatten(0, 1))
        return _by_site(found, gradient)


def _by_site(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(*like.shape[:2], *rows.shape[1:])


class Flat:
    """`nn.Flatten`."""

    names: tuple[str, ...] = ()

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, torch.Size]:
        """`[S, B, values]`."""
        del weights
        return inputs.flatten(2), inputs.shape

    def backward(self, context: torch.Size, gradient: Tensor, weights: Weights) -> Tensor:
        """As it was; of pictures, channels last."""
        del weights
        found = gradient.reshape(context)
        if found.dim() != len(CHANNELS_LAST):
            return found
        return found.permute(CHANNELS_LAST).contiguous().permute(CHANNELS_FIRST)
