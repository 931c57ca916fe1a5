"""Client drift: how far each site pulled the model, and whether the others pulled the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from fedward.common.tensors import Weights, cosine, difference, norm
from fedward.server.checkpoints import Drift
from fedward.server.replies import Replies, arrays_of


def measure_drift(
    replies: Replies, before: Weights, site_weights: Mapping[str, float]
) -> dict[str, Drift]:
    """Norm of each site's update and its cosine with the weighted mean update.

    Args:
        replies: checked updates.
        before: the weights they trained from.
        site_weights: aggregation weight of each site.

    Returns:
        By site; empty if nobody answered. Memory: one more model, whatever the number of sites.
    """
    total = {key: np.zeros_like(value) for key, value in before.items()}
    for site, message in replies.accepted.items():
        update = difference(cast("Weights", arrays_of(message)), before)
        # Updates of a diverging run overflow; its cosines are then undefined, which is right.
        with np.errstate(over="ignore", invalid="ignore"):
            for key, value in update.items():
                total[key] += np.float32(site_weights[site]) * value
    result = {}
    for site, message in replies.accepted.items():
        update = difference(cast("Weights", arrays_of(message)), before)
        result[site] = Drift(norm=norm(update), cosine=cosine(update, total))
    return result
