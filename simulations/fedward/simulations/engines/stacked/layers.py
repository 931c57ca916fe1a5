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
from torch import Tensor, nn

Weights = Sequence[Tensor]
"""The weights of one layer, `[S, …]` each, in the module's order."""


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


class _RowWise:
    """Layers whose weights are few: gradients of single rows are made, `[S, B, values]`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._made: tuple[Tensor, list[Tensor]] | None = None

    def _of_rows(self, context: Tensor, gradient: Tensor) -> list[Tensor]:
        """The gradient of each weight for each row, `[S, B, values]`."""
        if self._made is None or self._made[0] is not gradient:
            self._made = (gradient, self._make(context, gradient))
        return self._made[1]  # norms are asked for first, sums come after

    def _make(self, context: Tensor, gradient: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def _sums(self, context: Tensor, gradient: Tensor) -> list[Tensor]:
        """The gradient of each weight over all rows, `[S, values]`."""
        return [single.sum(1) for single in self._make(context, gradient)]

    def _arranged(self, values: Tensor, like: Tensor) -> Tensor:
        """`[S, values]` in the form of a weight."""
        return values.view_as(like)

    def add_gradient(
        self, into: Weights, context: Tensor, gradient: Tensor, *, scale: float, rows: Tensor | None
    ) -> None:
        """See `Trained`."""
        if rows is None:
            totals = self._sums(context, gradient)
        else:
            made, self._made = self._of_rows(context, gradient), None
            totals = [torch.bmm(rows.unsqueeze(1), single).squeeze(1) for single in made]
        for target, total in zip(into, totals, strict=True):
            target.add_(self._arranged(total, target), alpha=scale)

    def squares(self, context: Tensor, gradient: Tensor, same: Tensor | None) -> Tensor:
        """See `Trained`."""
        parts = self._of_rows(context, gradient)
        if same is None:
            return torch.stack([torch.linalg.vecdot(part, part) for part in parts]).sum(0)
        patients = [torch.bmm(same, part) for part in parts]
        found = [
            torch.linalg.vecdot(one, whole) for one, whole in zip(parts, patients, strict=True)
        ]
        return torch.stack(found).sum(0)


class Convolution(_RowWise):
    """`nn.Conv2d` on `[S, B, channels, height, width]`, as products with the patches under it.

    Patches are needed for the gradients of single rows anyway; with them, a convolution of many
    sites is one call. Channels come last in memory, here and in what is returned: then patches are
    copied in whole lines, and nothing has to be put into another order.
    """

    def __init__(self, names: tuple[str, ...], module: nn.Conv2d) -> None:
        super().__init__(names)
        self._kernel = _pair(module.kernel_size)
        self._stride = _pair(module.stride)
        self._padding = _pair(module.padding)
        self._dilation = _pair(module.dilation)
        self._inputs = torch.Size()
        """Of the last inputs."""

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Outputs, and the patches: `[S, B, places, height · width · channels of the kernel]`."""
        self._inputs = inputs.shape
        patches, (high, wide) = self._patches(inputs)
        flat = patches.flatten(1, 2)
        matrix = weights[0].permute(0, 3, 4, 2, 1).flatten(1, 3)
        if len(weights) == 2:
            outputs = torch.baddbmm(weights[1].unsqueeze(1), flat, matrix)
        else:
            outputs = torch.bmm(flat, matrix)
        shape = (*inputs.shape[:2], high, wide, -1)
        return outputs.view(shape).permute(_CHANNELS_FIRST), patches

    def backward(self, context: Tensor, gradient: Tensor, weights: Weights) -> Tensor:
        """Site by site: the library's own is faster than adding up where patches overlap."""
        del context
        last = torch.channels_last
        found = torch.empty(self._inputs[1:], dtype=gradient.dtype, memory_format=last)
        parts = [
            torch.ops.aten.convolution_backward(
                *(own.contiguous(memory_format=last), found, weight.contiguous(memory_format=last)),
                *(None, self._stride, self._padding, self._dilation),
                *(False, (0, 0), 1, (True, False, False)),
            )[0]
            for own, weight in zip(gradient, weights[0], strict=True)
        ]
        if len(parts) == 1:
            only: Tensor = parts[0].unsqueeze(0)
            return only
        lines = torch.stack([part.permute(0, 2, 3, 1) for part in parts])
        return lines.permute(_CHANNELS_FIRST)

    def _patches(self, inputs: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`[S, B, places, values]`, and how many places there are down and across."""
        lines = inputs.permute(_CHANNELS_LAST)
        sites, rows, height, width, channels = lines.shape
        down, across = self._padding
        padded = lines.new_zeros(sites, rows, height + 2 * down, width + 2 * across, channels)
        padded[:, :, down : down + height, across : across + width] = lines
        high, wide = (
            (room - dilation * (kernel - 1) - 1) // stride + 1
            for room, kernel, stride, dilation in zip(
                padded.shape[2:4], self._kernel, self._stride, self._dilation, strict=True
            )
        )
        steps = padded.stride()
        places = [step * stride for step, stride in zip(steps[2:4], self._stride, strict=True)]
        taps = [step * dilation for step, dilation in zip(steps[2:4], self._dilation, strict=True)]
        found = padded.as_strided(
            (sites, rows, high, wide, *self._kernel, channels), (*steps[:2], *places, *taps, 1)
        )
        if channels < _LINE:
            # A line of a patch is too short to be copied well: place by place instead.
            found = found.permute(4, 5, 6, 0, 1, 2, 3).contiguous().permute(3, 4, 5, 6, 0, 1, 2)
            return found.flatten(4).flatten(2, 3), (high, wide)
        return found.reshape(sites, rows, high * wide, -1), (high, wide)

    def _make(self, context: Tensor, gradient: Tensor) -> list[Tensor]:
        sites, rows = gradient.shape[:2]
        flat = _lines(gradient)
        single = torch.bmm(flat.flatten(0, 1).mT, context.flatten(0, 1))
        parts = [single.view(sites, rows, -1)]
        return [*parts, flat.sum(2)] if len(self.names) == 2 else parts

    def _sums(self, context: Tensor, gradient: Tensor) -> list[Tensor]:
        flat = _lines(gradient).flatten(1, 2)
        parts = [torch.bmm(flat.mT, context.flatten(1, 2)).flatten(1)]
        return [*parts, flat.sum(1)] if len(self.names) == 2 else parts

    def _arranged(self, values: Tensor, like: Tensor) -> Tensor:
        if like.dim() == 2:
            return values
        sites, outputs, channels = like.shape[:3]
        return values.view(sites, outputs, *self._kernel, channels).permute(0, 1, 4, 2, 3)


_LINE = 4
"""Channels from which on a line of a patch is long enough to be copied as one."""
_CHANNELS_LAST = (0, 1, 3, 4, 2)
_CHANNELS_FIRST = (0, 1, 4, 2, 3)


def _pair(value: int | str | tuple[int, ...]) -> tuple[int, int]:
    both = value if isinstance(value, tuple) else (value, value)
    return int(both[0]), int(both[1])


def _lines(gradient: Tensor) -> Tensor:
    """`[S, B, places, channels]` of a picture's gradient."""
    return gradient.permute(_CHANNELS_LAST).flatten(2, 3)


class Scale(_RowWise):
    """The factors and offsets of `nn.GroupNorm`, for each channel of `[S, B, channels, …]`.

    The normalisation before them has no weights: see `Shared`.
    """

    def forward(self, inputs: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Gives x · factor + offset."""
        factor, offset = (_by_channel(weight, inputs) for weight in weights)
        return torch.addcmul(offset, inputs, factor), inputs

    def backward(self, context: Tensor, gradient: Tensor, weights: Weights) -> Tensor:
        """Gives g · factor."""
        del context
        return gradient * _by_channel(weights[0], gradient)

    def _make(self, context: Tensor, gradient: Tensor) -> list[Tensor]:
        if gradient.dim() == 3:
            return [gradient * context, gradient]
        places = tuple(range(3, gradient.dim()))
        return [(gradient * context).sum(places), gradient.sum(places)]


def _by_channel(weight: Tensor, like: Tensor) -> Tensor:
    return weight.view(weight.shape[0], 1, weight.shape[1], *(1,) * (like.dim() - 3))


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


class Pooling:
    """`nn.AdaptiveAvgPool2d`, which does nothing where the size is the wanted one already."""

    names: tuple[str, ...] = ()

    def __init__(self, module: nn.AdaptiveAvgPool2d) -> None:
        self._pool = Shared(module)
        size = module.output_size
        self._size = size if isinstance(size, tuple) else (size, size)

    def forward(
        self, inputs: Tensor, weights: Weights
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Of all rows of all sites at once."""
        if tuple(inputs.shape[-2:]) == self._size:
            return inputs, None
        return self._pool.forward(inputs, weights)

    def backward(
        self, context: tuple[Tensor, Tensor] | None, gradient: Tensor, weights: Weights
    ) -> Tensor:
        """By automatic differentiation, where there is something to differentiate."""
        return gradient if context is None else self._pool.backward(context, gradient, weights)


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
        if found.dim() != len(_CHANNELS_LAST):
            return found
        return found.permute(_CHANNELS_LAST).contiguous().permute(_CHANNELS_FIRST)
