"""A small convolutional network for 2-D images."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedward.common.models.registry import ModelSpec, register

if TYPE_CHECKING:
    from torch import nn

GROUP = 8
"""Channels per normalisation group; GroupNorm sees one example at a time, so it leaks nothing."""


@register
class SmallCNN(ModelSpec):
    """`name = "cnn"`: blocks of convolution, GroupNorm, 2×2 pooling and ReLU, then linear layers.

    `channels` gives the width of each block (multiples of 8); `pool` is the side of the grid that
    the last feature map is averaged to before the linear layers; `hidden` are the widths of those
    before the last, with ReLU between them.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["cnn"] = "cnn"
    channels: Annotated[
        tuple[Annotated[int, Field(ge=GROUP, le=512, multiple_of=GROUP)], ...],
        Field(min_length=1, max_length=6),
    ] = (16, 32)
    pool: Annotated[int, Field(ge=1, le=16)] = 4
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = ()

    def build(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Conv-GroupNorm-MaxPool-ReLU blocks, adaptive average pooling, linear layers."""
        from torch import nn

        halved = 2 ** len(self.channels)
        pooled = tuple(side // halved for side in inputs[1:]) == (self.pool, self.pool)
        # Pooling to the size that is there already changes nothing, and takes a sixth of a step.
        pooling = nn.Identity() if pooled else nn.AdaptiveAvgPool2d(self.pool)
        widths = (inputs[0], *self.channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, padding=1),
                nn.GroupNorm(after // GROUP, after),
                # The largest of four values cut off at 0 is the same either way round, and so is
                # its gradient; this way round there is a quarter to cut off.
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
        layers += [pooling, nn.Flatten()]
        dense = (widths[-1] * self.pool**2, *self.hidden)
        for before, after in pairwise(dense):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(dense[-1], outputs))
