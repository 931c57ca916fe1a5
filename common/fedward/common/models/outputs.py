"""From a model's raw output to a loss per example and to scores, by kind of task.

Shapes: `raw` is float32 `[batch, outputs]` (see `TaskSection.outputs`), `target` is float32
`[batch]` holding the class index (0.0 or 1.0, 0.0 … classes - 1) or the regression value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["binary", "multiclass", "regression"]


def loss_per_example(kind: Kind, raw: Tensor, target: Tensor) -> Tensor:
    """Loss of each example, `[batch]`: cross-entropy in nats, or half the squared error."""
    from torch.nn import functional

    if kind == "binary":
        return functional.binary_cross_entropy_with_logits(raw[:, 0], target, reduction="none")
    if kind == "multiclass":
        return functional.cross_entropy(raw, target.long(), reduction="none")
    return (raw[:, 0] - target).square() / 2


def loss_gradient(kind: Kind, raw: Tensor, target: Tensor) -> Tensor:
    """Gradient of each example's loss by its raw output, `[batch, outputs]`."""
    if kind == "multiclass":
        found, index = raw.softmax(dim=1), target.long().unsqueeze(1)
        return found.scatter_(1, index, found.gather(1, index) - 1.0)
    wanted = target.to(raw.dtype).unsqueeze(1)
    return (raw.sigmoid() if kind == "binary" else raw) - wanted


def scores(kind: Kind, raw: Tensor) -> Tensor:
    """What is reported.

    P(positive) `[batch, 1]`, class probabilities `[batch, classes]`, or the value `[batch, 1]`.
    """
    if kind == "binary":
        return raw.sigmoid()
    return raw.softmax(dim=1) if kind == "multiclass" else raw
