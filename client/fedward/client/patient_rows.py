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
        self._single = bool((np.diff(self._starts) == 1).all())

    def draw(self, randomness: Randomness) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the next step, and which of its patients (0, 1, … ascending) each belongs to."""
        sampled = self._plan.sample(self._patients, randomness)
        if self._single:  # a row for each patient: nothing to choose
            return self._order[sampled], np.arange(len(sampled))
        rows = [self._order[self._starts[p] : self._starts[p + 1]] for p in sampled]
        rows = [own for own in rows if len(own)]
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        owner = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        kept = self._plan.sample_rows(owner, randomness)
        return np.concatenate(rows)[kept], owner[kept]
