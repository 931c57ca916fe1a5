"""One model on the test rows of many sites, scored at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedward.client.dataset import Dataset, join
from fedward.client.site import Site
from fedward.common.preprocess import Transform
from fedward.common.tensors import Weights


class Scoring:
    """The test rows of sites of one study.

    Args:
        sites: at least one.
        transform: the frozen preprocessing.

    Attributes:
        each: of every site, in the given order.
        joined: of all of them, one site after another.

    Raises:
        DataError: a site's rows cannot be prepared.
    """

    def __init__(self, sites: Sequence[Site], transform: Transform) -> None:
        self.each: list[Dataset] = [site.testing(transform) for site in sites]
        self.joined = join(self.each)
        self._site = sites[0]
        self._ends = np.cumsum([len(own) for own in self.each])[:-1]

    def scores(self, weights: Weights) -> NDArray[np.float32]:
        """Scores `[rows, outputs]` of a model on the joined rows.

        Raises:
            RoundError: the weights are not those of the study's model.
        """
        return self._site.scores(weights, self.joined)

    def split(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What belongs to each site of values `[rows, …]` by joined row."""
        return np.split(values, self._ends)
