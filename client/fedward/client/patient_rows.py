"""Which rows are in a private step: patients drawn by the site's plan, and rows of each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedward.client.dataset import Dataset
from fedward.common.privacy.plan import PrivacyPlan
from fedward.common.privacy.randomness import Randomness


class PatientRows:
    """The rows of a site's patients, to draw steps from.

    Args:
        dataset: training rows of one site.
        plan: says with which probability a patient is drawn, and how many rows of each.
    """

    def __init__(self, dataset: Dataset, plan: PrivacyPlan) -> None:
        self._plan = plan
        owner = np.arange(len(dataset)) if plan.unit == "record" else dataset.patient
        self._patients = len(dataset) if plan.unit == "record" else dataset.patients
        self._order = np.argsort(owner, kind="stable")
        self._starts = np.searchsorted(owner[self._order], np.arange(self._patients + 1))
        self.single = bool((np.diff(self._starts) == 1).all())
        """Whether no patient has two rows, or none."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """All rows, patient after patient."""
        return self._order

    def drawn(self, uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each patient is in a step, given a uniform number for each; any steps at once."""
        return self._plan.drawn(uniform)

    def draw(self, randomness: Randomness) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the next step, and which of its patients (0, 1, … ascending) each belongs to."""
        sampled = self._plan.sample(self._patients, randomness)
        if self.single:  # a row for each patient: nothing to choose
            return self._order[sampled], np.arange(len(sampled))
        rows = [self._order[self._starts[p] : self._starts[p + 1]] for p in sampled]
        rows = [own for own in rows if len(own)]
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        owner = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        kept = self._plan.sample_rows(owner, randomness)
        return np.concatenate(rows)[kept], owner[kept]
