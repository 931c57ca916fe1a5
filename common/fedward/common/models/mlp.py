"""A multi-layer perceptron for tables."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedward.common.models.registry import ModelSpec, register

if TYPE_CHECKING:
    from torch import nn


@register
class MLP(ModelSpec):
    """`name = "mlp"`: linear layers of the widths in `hidden`, ReLU between them."""

    modalities: ClassVar[tuple[str, ...]] = ("tabular",)
    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)] = (
        64,
        32,
    )

    def build(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Linear, ReLU, …, Linear."""
        from torch import nn

        widths = (inputs[0], *self.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
