"""The shape of a source: a lazy table of local columns, and pictures if there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.site_config import SplitSection
from fedward.common.study.schema import ImageSection
from fedward.common.table import ImageStack

ROW = "row number of the source"
"""Column that every source's table has: position of the row before any filter, from 0."""


@dataclass(frozen=True)
class PictureFindings:
    """What the pictures of a source are like.

    Attributes:
        sizes: how many pictures there are of each "height×width".
        unreadable: rows (from 1) whose picture cannot be used, in order.
    """

    sizes: Mapping[str, int]
    unreadable: tuple[int, ...]


class Pictures(Protocol):
    """The images that belong to the rows of a source."""

    def stack(self, rows: NDArray[np.int64], image: ImageSection) -> ImageStack:
        """The pictures of the given source rows, prepared as the study demands.

        Raises:
            DataError: a picture cannot be used; the message names its row and nothing else.
        """
        ...

    def digests(self, rows: NDArray[np.int64]) -> list[str]:
        """Hashes that are equal for equal pictures; a picture that is not there equals no other."""
        ...

    def inspect(self, rows: NDArray[np.int64], image: ImageSection) -> PictureFindings:
        """Look at every picture without refusing any."""
        ...


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        label: what messages call it: the name of a file, never a path.
        table: the rows after the site's filter, with local columns and `ROW`.
        target: default name of the outcome's column, if the source prescribes one.
        split: the division that the source itself publishes.
        pictures: the images of the rows.
        large: too large to be read at once. Small tables are: polars' streaming engine takes
            seconds to plan hundreds of columns, whatever the number of rows.
    """

    label: str
    table: pl.LazyFrame
    target: str | None = None
    split: SplitSection | None = None
    pictures: Pictures | None = None
    large: bool = False

    def collect(self, table: pl.LazyFrame) -> pl.DataFrame:
        """Work out a table that was derived from this source's."""
        return table.collect(engine="streaming" if self.large else "in-memory")

    def columns(self) -> dict[str, pl.DataType]:
        """Local columns and their types, without `ROW`."""
        schema = dict(self.table.collect_schema())
        return {name: kind for name, kind in schema.items() if name != ROW}
