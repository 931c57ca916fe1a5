"""Where engines put what sites send: arrays that worker processes write and one process reads."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.common.tensors import Weights

MOST_KEPT = 1 << 26
"""Values of all single updates that are kept beside their sum: 256 MiB."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's weights, to see them as one vector and back.

    Attributes:
        shapes: of each, in the order in which they stand in the vector.
        turned: names of matrices that stand in it transposed.

    >>> layout = Layout.of({"w": np.zeros((2, 2), np.float32), "b": np.ones(1, np.float32)})
    >>> layout.vector({"w": np.zeros((2, 2)), "b": np.ones(1)})
    array([0., 0., 0., 0., 1.], dtype=float32)
    """

    shapes: Mapping[str, tuple[int, ...]]
    turned: frozenset[str] = frozenset()

    @staticmethod
    def of(weights: Weights, turned: frozenset[str] = frozenset()) -> Layout:
        """Of these weights."""
        return Layout({name: tuple(value.shape) for name, value in weights.items()}, turned)

    @property
    def size(self) -> int:
        """How many values there are."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())

    def vector(self, weights: Weights) -> NDArray[np.float32]:
        """float32 `[size]`."""
        parts = [
            np.asarray(weights[name].T if name in self.turned else weights[name], np.float32)
            for name in self.shapes
        ]
        return np.concatenate([part.reshape(-1) for part in parts] or [np.empty(0, np.float32)])

    def parts(self, vector: NDArray[np.float32]) -> Weights:
        """Views of a vector, matrices that are kept transposed as they are kept."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape, dtype=np.int64))
            kept = shape[::-1] if name in self.turned else shape
            found[name] = vector[start:stop].reshape(kept)
            start = stop
        return found

    def weights(self, vector: NDArray[np.float32]) -> Weights:
        """The weights that a vector is made of; views of it, or copies of what is transposed."""
        parts = self.parts(vector)
        return parts | {name: np.ascontiguousarray(parts[name].T) for name in self.turned}


class Results:
    """What the sites of a round sent, added up.

    Args:
        sites: how many there are.
        layout: of the model.
        workers: how many write.
        keep: also keep every single update.

    Attributes:
        before: float32 `[size]`: the weights that all begin from.
        share: float64 `[sites]`: aggregation weight of each site that is asked.
        square: float64 `[sites]`: squared norm of each update; NaN where training diverged.
        total: float64 `[workers, size]`: sums of updates, each times its share.
        updates: float32 `[sites, size]`: weights after training less those before; None if they
            are not kept.
    """

    def __init__(self, sites: int, layout: Layout, *, workers: int = 1, keep: bool = True) -> None:
        self.layout = layout
        self.before: NDArray[np.float32] = _shared((layout.size,), np.float32)
        self.share: NDArray[np.float64] = _shared((sites,), np.float64)
        self.square: NDArray[np.float64] = _shared((sites,), np.float64)
        self.total: NDArray[np.float64] = _shared((workers, layout.size), np.float64)
        self.updates: NDArray[np.float32] | None = None
        if keep:
            self.updates = _shared((sites, layout.size), np.float32)

    def moved(self, accepted: list[int]) -> NDArray[np.float64]:
        """Mean update of these sites, by their shares: float64 `[size]`."""
        share = float(self.share[accepted].sum())
        if not share:
            return np.zeros(self.layout.size)
        with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
            moved: NDArray[np.float64] = self.total.sum(axis=0) / share
        return moved


def _shared(shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """Zeros that processes which are forked from here on share; gone with the last of them."""
    size = int(np.prod(shape, dtype=np.int64))
    room = mmap.mmap(-1, max(1, size * np.dtype(kind).itemsize))
    return np.frombuffer(room, kind, size).reshape(shape)
