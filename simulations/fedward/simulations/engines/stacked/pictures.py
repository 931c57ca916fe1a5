"""Layers of pictures, whose weights are few: gradients of single rows are made, `[S, B, values]`.

Channels come last in memory, in what these layers return as well: patches are then copied in whole
lines, and nothing has to be put into another order between layers. Shapes are those of `layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedward.simulations.engines.stacked.layers import CHANNELS_FIRST, CHANNELS_LAST, Weights


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
        return outputs.view(shape).permute(CHANNELS_FIRST), patches

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
        return lines.permute(CHANNELS_FIRST)

    def _patches(self, inputs: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`[S, B, places, values]`, and how many places there are down and across."""
        lines = inputs.permute(CHANNELS_LAST)
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


def _pair(value: int | str | tuple[int, ...]) -> tuple[int, int]:
    both = value if isinstance(value, tuple) else (value, value)
    return int(both[0]), int(both[1])


def _lines(gradient: Tensor) -> Tensor:
    """`[S, B, places, channels]` of a picture's gradient."""
    return gradient.permute(CHANNELS_LAST).flatten(2, 3)


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
