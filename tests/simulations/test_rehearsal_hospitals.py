"""Hospitals of a rehearsal: divided data keep every bit, made data are what the study demands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedward.client.loading import load_cohort
from fedward.client.site_config import load_site_config
from fedward.common.errors import StudyError
from fedward.common.study import Study, load_study
from fedward.common.table import FeatureTable
from fedward.simulations.cohorts import load_cohorts
from fedward.simulations.fakes import small_study
from fedward.simulations.rehearsal.hospitals import make_table, prepare_hospitals

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KEY = b"k" * 32


def test_divided_data_keep_every_bit(tmp_path: Path) -> None:
    path = EXAMPLES / "breast-cancer" / "study.toml"
    study = load_study(path)
    hospitals = prepare_hospitals(study, path.parent, tmp_path)
    expected = load_cohorts(study, path.parent)
    assert [hospital.name for hospital in hospitals] == [cohort.site for cohort in expected]
    for hospital, cohort in zip(hospitals, expected, strict=True):
        assert hospital.origin == "divided"
        found = load_cohort(study, load_site_config(hospital.site_file), key=KEY)
        assert isinstance(found.features, FeatureTable)
        assert isinstance(cohort.features, FeatureTable)
        np.testing.assert_array_equal(found.features.numeric, cohort.features.numeric)
        np.testing.assert_array_equal(found.target, cohort.target)
        np.testing.assert_array_equal(found.patient, cohort.patient)
        np.testing.assert_array_equal(found.test, cohort.test)


def test_more_hospitals_than_there_are_is_refused(tmp_path: Path) -> None:
    path = EXAMPLES / "breast-cancer" / "study.toml"
    with pytest.raises(StudyError, match="4 hospitals, not 5"):
        prepare_hospitals(load_study(path), path.parent, tmp_path, sites=5)


def test_fewer_are_the_first(tmp_path: Path) -> None:
    path = EXAMPLES / "breast-cancer" / "study.toml"
    hospitals = prepare_hospitals(load_study(path), path.parent, tmp_path, sites=2)
    assert [hospital.name for hospital in hospitals] == ["site-01", "site-02"]


REGRESSION = {
    "task": {"kind": "regression", "labels": [], "bounds": [1.0, 9.0]},
    "evaluation": {"metric": "rmse"},
}
THREE = {"task": {"kind": "multiclass", "labels": ["a", "b", "c"]}}


@pytest.mark.parametrize(
    "study",
    [
        small_study(),
        small_study(numeric=2, categorical=2),
        small_study(**THREE),
        small_study(**REGRESSION),
    ],
    ids=["binary", "categorical", "multiclass", "regression"],
)
def test_made_patients_are_what_the_study_demands(study: Study, tmp_path: Path) -> None:
    """Nothing is out of range, unknown, or missing: the strictest study accepts them."""
    strict = study.data.model_copy(
        update={"out_of_range": "refuse", "unknown_category": "refuse", "single_class": "refuse"}
    )
    study = study.model_copy(update={"data": strict})
    hospitals = prepare_hospitals(study, tmp_path, tmp_path, sites=3)
    assert [hospital.origin for hospital in hospitals] == ["made"] * 3
    cohorts = [load_cohort(study, load_site_config(h.site_file), key=KEY) for h in hospitals]
    for cohort in cohorts:
        share = cohort.test.mean()
        assert share == pytest.approx(study.evaluation.holdout, abs=0.02)
        assert len(np.unique(cohort.target[~cohort.test])) >= 2
    features = [cohort.features for cohort in cohorts]
    assert isinstance(features[0], FeatureTable)
    assert isinstance(features[1], FeatureTable)
    assert not np.array_equal(features[0].numeric, features[1].numeric)  # hospitals differ


def test_the_outcome_depends_on_the_features() -> None:
    cohort = make_table(small_study(), "north", patients=400)
    assert isinstance(cohort.features, FeatureTable)
    first = cohort.features.numeric[:, 0]
    assert first[cohort.target == 1].mean() - first[cohort.target == 0].mean() > first.std() / 2


def test_the_same_name_gives_the_same_patients() -> None:
    one, other = (make_table(small_study(), "north") for _ in range(2))
    assert isinstance(one.features, FeatureTable)
    assert isinstance(other.features, FeatureTable)
    np.testing.assert_array_equal(one.features.numeric, other.features.numeric)


def test_made_pictures_can_be_read(tmp_path: Path) -> None:
    study = small_study(
        numeric=0,
        data={"modality": "image", "features": []},
        preprocess={
            "standardise": "none",
            "impute": "federated",
            "image": {"height": 12, "width": 10, "channels": 3},
        },
        model={"name": "cnn"},
    )
    (hospital,) = prepare_hospitals(study, tmp_path, tmp_path, sites=1)
    cohort = load_cohort(study, load_site_config(hospital.site_file), key=KEY)
    assert len(cohort) == cohort.patients > 100
    assert 0 < cohort.test.mean() < 0.5
