"""What many sites need is their rows, and once more as the model sees them; no further copies."""

from __future__ import annotations

import tracemalloc

from fedward.client.cohort import Cohort
from fedward.common.preprocess import fit
from fedward.common.table import FeatureTable
from fedward.simulations.engines.executors import Stacked
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

SITES = 8
PATIENTS = 2_000


def size(cohort: Cohort) -> int:
    table = cohort.features
    assert isinstance(table, FeatureTable)
    arrays = (table.numeric, table.codes, cohort.target, cohort.patient, cohort.test)
    return sum(array.nbytes for array in arrays)


def test_sites_of_an_engine_keep_less_than_a_copy_of_their_rows() -> None:
    """The engine's own table is torch's, which is not traced."""
    study = small_study()
    cohorts = make_cohorts(study, SITES, patients=PATIENTS)
    transform = fit(study)
    Stacked(make_sites(study, make_cohorts(study, 1)), transform)  # imports
    tracemalloc.start()
    try:
        sites = make_sites(study, cohorts)
        engine = Stacked(sites, transform)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert engine.cost(0) > 0
    assert kept < 0.5 * sum(map(size, cohorts)), kept / sum(map(size, cohorts))
