"""The training rows of all sites as one table: a site is a range of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedward.client.dataset import Dataset, Inputs, JoinedInputs, MatrixInputs

MOST_BYTES = 1 << 29
"""Pictures are decoded once if all of them fit into this."""
_AT_ONCE = 256


@dataclass(frozen=True)
class Table:
    """Rows of all sites, one site after another.

    Attributes:
        inputs: of the model.
        target: float32 `[rows]`.
        starts: int64 `[sites]`: where each site begins.
        sizes: int64 `[sites]`: how many rows it has.
    """

    inputs: Inputs
    target: Tensor
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @staticmethod
    def of(datasets: Iterable[Dataset], sizes: Sequence[int]) -> Table:
        """The rows of these sites; each is looked at once, so that it need not be kept.

        Args:
            datasets: of each site.
            sizes: how many rows each has.
        """
        rows = np.array(sizes, np.int64)
        starts, total = np.cumsum(rows) - rows, int(rows.sum())
        target, values, pictures = torch.empty(0), torch.empty(0), []
        for start, dataset in zip(starts.tolist(), datasets, strict=True):
            place, own = slice(start, start + len(dataset)), dataset.inputs
            target = target if len(target) else dataset.target.new_empty(total)
            target[place] = dataset.target
            if isinstance(own, MatrixInputs):
                values = values if len(values) else own.values.new_empty((total, *own.shape))
                values[place] = own.values
            else:
                pictures.append(own)
        inputs = in_memory(JoinedInputs(tuple(pictures))) if pictures else MatrixInputs(values)
        return Table(inputs, target, starts, rows)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `[rows, *shape]` and targets of the given rows."""
        if isinstance(self.inputs, MatrixInputs):
            return self.inputs.values.index_select(0, rows), self.target.index_select(0, rows)
        return self.inputs.take(rows.numpy()), self.target.index_select(0, rows)


def in_memory(inputs: Inputs) -> Inputs:
    """The same inputs as one tensor, if that is not too large."""
    size = 4 * len(inputs) * int(np.prod(inputs.shape, dtype=np.int64))
    if isinstance(inputs, MatrixInputs) or size > MOST_BYTES:
        return inputs
    values = torch.empty((len(inputs), *inputs.shape))
    for start in range(0, len(inputs), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(inputs)))
        values[start : start + len(rows)] = inputs.take(rows)
    return MatrixInputs(values)
