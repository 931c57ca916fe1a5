"""What a site's cleaned features look like in memory, before preprocessing: arrays, nothing else.

Sites of a simulation are row selections of one big table or stack; only `take` copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MISSING = -1
"""Code of an absent categorical value."""


@dataclass(frozen=True)
class FeatureTable:
    """Tabular features, cleaned and typed.

    Attributes:
        numeric: float32 `[rows, numeric features]`, in the order of `DataSection.numeric`
            (booleans are 0 and 1); NaN is missing.
        codes: int32 `[rows, categorical features]`, in the order of `DataSection.categorical`;
            `MISSING` is missing.
        levels: for each categorical feature, what its codes 0, 1, … stand for.
    """

    numeric: NDArray[np.float32]
    codes: NDArray[np.int32]
    levels: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, rows: NDArray[np.int64]) -> FeatureTable:
        """The given rows, in the given order."""
        return FeatureTable(self.numeric[rows], self.codes[rows], self.levels)


@dataclass(frozen=True)
class ImageStack:
    """Images of one size.

    Attributes:
        pixels: uint8 `[images, height, width, channels]`; may be a memory map.
        rows: int64, which images of `pixels` belong to this stack, in order.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> ImageStack:
        """The given rows, in the given order; pixels are shared, not copied."""
        return ImageStack(self.pixels, self.rows[rows])


Features = FeatureTable | ImageStack
