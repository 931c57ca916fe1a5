"""The patients at a site who match a study: cleaned rows, outcomes, who is kept for testing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward.common.table import Features


@dataclass(frozen=True)
class Cohort:
    """Cleaned rows of one site.

    Attributes:
        site: name of the site.
        features: cleaned features, before preprocessing.
        target: float32 `[rows]`: class index or regression value.
        patient: int64 `[rows]`: which patient a row belongs to, dense: 0 … patients - 1.
        test: bool `[rows]`: kept for testing; all rows of a patient agree.
        extra: further columns `[rows]` that a simulation divides sites by.
        identity: uint8 `[patients, 32]`: keyed hash of each patient's identifier, by `patient`;
            None where it was not asked for (`load_cohort`), or only their rows tell patients apart.
        identified_by: keyed hash of what tells patients apart; empty without `identity`.
    """

    site: str
    features: Features
    target: NDArray[np.float32]
    patient: NDArray[np.int64]
    test: NDArray[np.bool_]
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    identity: NDArray[np.uint8] | None = None
    identified_by: str = ""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def patients(self) -> int:
        """Number of patients: private, never logged and never sent."""
        return len(np.unique(self.patient))

    def take(self, rows: NDArray[np.int64], *, site: str | None = None) -> Cohort:
        """The given rows as a cohort of their own, patients renumbered from 0."""
        kept, patient = np.unique(self.patient[rows], return_inverse=True)
        return Cohort(
            site=site or self.site,
            features=self.features.take(rows),
            target=self.target[rows],
            patient=patient.astype(np.int64),
            test=self.test[rows],
            extra={name: column[rows] for name, column in self.extra.items()},
            identity=None if self.identity is None else self.identity[kept],
            identified_by=self.identified_by,
        )

    def training(self) -> Cohort:
        """The rows of patients that train."""
        return self.take(np.flatnonzero(~self.test))

    def testing(self) -> Cohort:
        """The rows of patients kept for testing."""
        return self.take(np.flatnonzero(self.test))
