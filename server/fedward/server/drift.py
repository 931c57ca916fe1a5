"""Client drift: how far each site pulled the model, and whether the others pulled the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedward.common.tensors import Weights
from fedward.server.history import Drift


class DriftSums:
    """Norm of each site's update and its cosine with the weighted mean update, block by block.

    Args:
        site_weights: aggregation weight of each site that takes part, in order.
    """

    def __init__(self, site_weights: Mapping[str, float]) -> None:
        self._weights = {site: np.float32(weight) for site, weight in site_weights.items()}
        self._mean = 0.0
        self._squares = dict.fromkeys(site_weights, 0.0)
        self._products = dict.fromkeys(site_weights, 0.0)

    def add(self, before: Weights, after: Mapping[str, Weights]) -> None:
        """Add a block.

        Args:
            before: the block of the weights that all trained from.
            after: the same block of what each site made of them.
        """
        # Updates of a diverging run overflow; its cosines are then undefined, which is right.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, old in before.items():
                self._add(old, [part[name] for part in after.values()])

    def _add(self, old: np.ndarray, after: Sequence[np.ndarray]) -> None:
        total = np.zeros_like(old)
        for weight, values in zip(self._weights.values(), after, strict=True):
            total += weight * (values - old)
        # float64: squares of float32 values neither overflow nor vanish there.
        mean = total.astype(np.float64)
        self._mean += float(np.vdot(mean, mean))
        for site, values in zip(self._weights, after, strict=True):
            update = (values - old).astype(np.float64)
            self._squares[site] += float(np.vdot(update, update))
            self._products[site] += float(np.vdot(update, mean))

    def result(self) -> dict[str, Drift]:
        """By site; the cosine is 0 if either update is zero, NaN if it overflowed."""
        return {
            site: Drift(norm=math.sqrt(self._squares[site]), cosine=self._cosine(site))
            for site in self._weights
        }

    def _cosine(self, site: str) -> float:
        lengths = math.sqrt(self._squares[site]) * math.sqrt(self._mean)
        if lengths == 0.0:
            return 0.0  # no direction: neither agreement nor contradiction
        return float(np.clip(self._products[site] / lengths, -1.0, 1.0))
