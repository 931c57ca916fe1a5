"""Which rows belong to one patient, and which patients are kept for testing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedward.client.content import IDENTITY
from fedward.client.examination import PATIENT, SPLIT
from fedward.client.site_config import SiteConfig
from fedward.client.sources import Source
from fedward.client.sources.tables import canonical
from fedward.client.split import assign_test
from fedward.common.study import Study


@dataclass(frozen=True)
class Division:
    """Rows by patient and by use.

    Attributes:
        patient: int64 `[rows]`: dense number of the patient, by order of identifiers.
        test: bool `[rows]`: kept for testing.
        unassigned: the split column has values that mean neither train nor test.
        straddling: some patient has rows on both sides.
        published: the division is the data's own, not the keyed hash's.
    """

    patient: NDArray[np.int64]
    test: NDArray[np.bool_]
    unassigned: bool = False
    straddling: bool = False
    published: bool = False

    @property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    @property
    def rows_per_patient(self) -> NDArray[np.int64]:
        """int64 `[patients]`."""
        return np.bincount(self.patient, minlength=self.patients).astype(np.int64)


def divide(
    study: Study, config: SiteConfig, source: Source, frame: pl.DataFrame, key: bytes
) -> Division:
    """Number the patients and say who is kept for testing.

    A published division is taken as it is; else patients are chosen by `split.assign_test`, by
    their identifier or, where each row is a patient of their own, by the content of their row. So
    one patient more or less moves no other.
    """
    ids = frame[PATIENT].fill_null("")
    unique = ids.unique().sort()
    patient = ids.rank("dense").cast(pl.Int64).to_numpy() - 1
    split = config.split or source.split
    if split is None and IDENTITY in frame.columns:
        return Division(patient, assign_test(frame[IDENTITY], study.evaluation.holdout, key))
    if split is None:
        test = assign_test(unique, study.evaluation.holdout, key)[patient]
        return Division(patient, test)
    tests = [canonical(value) for value in split.test]
    trains = [canonical(value) for value in split.train]
    test = frame[SPLIT].is_in(tests).fill_null(value=False).to_numpy()
    known = frame[SPLIT].is_in([*trains, *tests]).fill_null(value=False)
    tested = np.bincount(patient, weights=test, minlength=len(unique))
    rows = np.bincount(patient, minlength=len(unique))
    return Division(
        patient,
        test,
        unassigned=not bool(known.all()),
        straddling=bool(((tested > 0) & (tested < rows)).any()),
        published=True,
    )
