"""A site's rows by what they are for, taken when they are asked for: nothing is kept twice.

A simulation has thousands of sites, and of most of them needs only some rows, and those once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedward.client.cohort import Cohort
from fedward.client.dataset import Dataset, join, to_dataset
from fedward.client.spending import Group
from fedward.client.statistics import site_statistics
from fedward.common.preprocess import Transform, fit_site, needs_site
from fedward.common.study.schema import Study


class SiteRows:
    """The rows of a site.

    Args:
        study: what they are for.
        cohorts: of the site, cleaned by the study's rules; what is fitted per site is fitted to
            each of them.
    """

    def __init__(self, study: Study, cohorts: tuple[Cohort, ...]) -> None:
        self._study = study
        self._cohorts = cohorts
        self._prepared: dict[Group, tuple[Transform, Dataset]] = {}

    @property
    def cohorts(self) -> int:
        """How many there are."""
        return len(self._cohorts)

    def __len__(self) -> int:
        """Rows that train."""
        return sum(int((~cohort.test).sum()) for cohort in self._cohorts)

    def training(self) -> Iterator[Cohort]:
        """Cleaned rows that train, of each cohort; copies."""
        return (self._units(cohort.training()) for cohort in self._cohorts)

    def prepared(self, group: Group, transform: Transform) -> Dataset:
        """Rows of a group of patients as the model sees them; kept until the transform changes."""
        known = self._prepared.get(group)
        if known is None or (known[0] is not transform and known[0] != transform):
            parts = [self._apply(group, transform, cohort) for cohort in self._cohorts]
            known = self._prepared[group] = transform, join(parts)
        return known[1]

    def forget(self) -> None:
        """Keep no prepared rows that train; they are made again when they are asked for."""
        self._prepared.pop("training", None)

    def _apply(self, group: Group, transform: Transform, cohort: Cohort) -> Dataset:
        if needs_site(self._study):
            training = self._units(cohort.training())
            own = site_statistics(self._study, training.features, training.patient)
            transform = fit_site(self._study, transform, own)
        chosen = cohort.training() if group == "training" else cohort.testing()
        return to_dataset(self._units(chosen), transform)

    def _units(self, cohort: Cohort) -> Cohort:
        """With each unit of privacy as a patient: every row, if the study says `record`."""
        if self._study.private and self._study.privacy.unit == "record":
            return replace(cohort, patient=np.arange(len(cohort)))
        return cohort
