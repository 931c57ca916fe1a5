"""The study file: the frozen, hashed protocol that every site approves."""

from fedward.common.study.load import (
    canonical_json,
    load_study,
    load_table,
    parse_study,
    simulation_hash,
    study_from,
    study_hash,
)
from fedward.common.study.schema import Study

__all__ = [
    "Study",
    "canonical_json",
    "load_study",
    "load_table",
    "parse_study",
    "simulation_hash",
    "study_from",
    "study_hash",
]
