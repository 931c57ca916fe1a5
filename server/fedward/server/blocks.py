"""A model cut into blocks of about equal size, so that nobody has to hold many models at once.

>>> like = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
>>> [[(p.name, p.start, p.stop) for p in block] for block in blocks(like, 4)]
[[('w', 0, 4)], [('w', 4, 6), ('b', 0, 2)]]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.common.tensors import Weights

BUDGET = 1 << 21
"""Values that may be held at a time, over all sites: 8 MiB of float32."""
LARGEST = 1 << 18
"""Values of the largest block: enough that what Flower does once per block does not count."""
SMALLEST = 1 << 12
"""Below this, with more than 500 sites, a block is more overhead than values."""


@dataclass(frozen=True)
class Part:
    """A contiguous part of one tensor.

    Attributes:
        name: of the tensor.
        start: first element, in the flattened tensor.
        stop: one past the last.
        shape: of the values in this part; that of the tensor if the part is all of it.
    """

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of this part of a contiguous array, in the part's shape."""
        return array.reshape(-1)[self.start : self.stop].reshape(self.shape)


Block = tuple[Part, ...]
"""Parts of different tensors, in the model's order."""


def block_size(sites: int) -> int:
    """How many values a block may have, so that all sites' blocks stay within `BUDGET`."""
    return min(max(BUDGET // max(sites, 1), SMALLEST), LARGEST)


def blocks(like: Weights, size: int) -> Iterator[Block]:
    """Cut a model into blocks of `size` values; the last has fewer. Every tensor is in one.

    Args:
        like: the model.
        size: at least 1.
    """
    block: list[Part] = []
    room = size
    for name, array in like.items():
        start = 0
        while True:
            stop = min(start + room, array.size)
            whole = stop - start == array.size
            block.append(Part(name, start, stop, array.shape if whole else (stop - start,)))
            room -= stop - start
            if room == 0:
                yield tuple(block)
                block, room = [], size
            if stop == array.size:
                break
            start = stop
    if block:
        yield tuple(block)


def cut(weights: Weights, block: Block) -> Weights:
    """Views of a block's parts of a model."""
    return {part.name: part.of(weights[part.name]) for part in block}


def empty_like(weights: Weights) -> Weights:
    """A model of the same form without values yet."""
    return {name: np.empty(value.shape, np.float32) for name, value in weights.items()}
