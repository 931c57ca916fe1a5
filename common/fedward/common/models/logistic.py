"""Logistic (or softmax, or linear) regression: one linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from fedward.common.models.registry import ModelSpec, register

if TYPE_CHECKING:
    from torch import nn


@register
class LogisticRegression(ModelSpec):
    """`name = "logistic"`: the model to beat on small tables."""

    modalities: ClassVar[tuple[str, ...]] = ("tabular",)
    name: Literal["logistic"] = "logistic"

    def build(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """One linear layer from the features to the logits."""
        from torch import nn

        return nn.Linear(inputs[0], outputs)
