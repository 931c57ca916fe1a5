"""Loading the hospitals of a simulation: one file each, or one table divided by a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fedward.common.errors import DataError, SiteConfigError, StudyError
from fedward.common.study import Study
from fedward.simulations.cohorts import load_cohorts
from fedward.simulations.fakes import small_study


def a_study(**section: Any) -> Study:
    return small_study(numeric=1, simulation=section)


def write(folder: Path, name: str, *, rows: int = 80, lines: str = "") -> str:
    rng = np.random.default_rng(len(name))
    x = rng.normal(0.0, 1.0, rows)
    table = pl.DataFrame(
        {
            "patient": [f"{name}-{row}" for row in range(rows)],
            "x0": np.clip(x, -4.0, 4.0),
            "ward": ["abcd"[row % 4] for row in range(rows)],
            "ill": np.where(x + rng.normal(0.0, 0.3, rows) > 0.0, "yes", "no"),
        }
    )
    table.write_csv(folder / f"{name}.csv")
    (folder / f"{name}.toml").write_text(
        f'[site]\nname = "{name}"\n[source]\nkind = "csv"\npath = "{name}.csv"\n'
        f'[patients]\ncolumn = "patient"\n[target]\ncolumn = "ill"\n{lines}'
    )
    return f"{name}.toml"


def test_every_file_is_a_site(tmp_path: Path) -> None:
    study = a_study(sites=[write(tmp_path, "north"), write(tmp_path, "south")])
    cohorts = load_cohorts(study, tmp_path)
    assert [cohort.site for cohort in cohorts] == ["north", "south"]
    assert all(cohort.patients == 80 for cohort in cohorts)


def test_who_tests_depends_on_the_seed_alone(tmp_path: Path) -> None:
    study = a_study(sites=[write(tmp_path, "north")])
    other = small_study(numeric=1, training={"seed": 9}, simulation={"sites": ["north.toml"]})
    first, again, third = (load_cohorts(s, tmp_path)[0].test for s in (study, study, other))
    assert (first == again).all()
    assert (first != third).any()


def test_two_sites_with_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "north")
    (tmp_path / "copy.toml").write_text((tmp_path / "north.toml").read_text())
    with pytest.raises(SiteConfigError, match="two site files are called north"):
        load_cohorts(a_study(sites=["north.toml", "copy.toml"]), tmp_path)


def test_one_table_is_divided(tmp_path: Path) -> None:
    study = a_study(
        source=write(tmp_path, "whole"), partition={"kind": "iid", "sites": 3, "min_patients": 10}
    )
    cohorts = load_cohorts(study, tmp_path)
    assert len(cohorts) == 3
    assert sum(cohort.patients for cohort in cohorts) == 80


def test_a_column_that_is_no_feature_divides(tmp_path: Path) -> None:
    study = a_study(source=write(tmp_path, "whole"), partition={"kind": "column", "column": "ward"})
    cohorts = load_cohorts(study, tmp_path)
    assert [len(cohort) for cohort in cohorts] == [20] * 4


def test_a_feature_divides(tmp_path: Path) -> None:
    partition = {"kind": "feature-shift", "column": "x0", "sites": 2, "alpha": 0.1}
    study = a_study(source=write(tmp_path, "whole"), partition=partition)
    study = study.model_copy(
        update={"data": study.data.model_copy(update={"single_class": "allow"})}
    )
    assert len(load_cohorts(study, tmp_path)) == 2


def test_data_that_cannot_be_used_name_their_site(tmp_path: Path) -> None:
    name = write(tmp_path, "north")
    table = pl.read_csv(tmp_path / "north.csv").with_columns(ill=pl.lit("yes"))
    table.write_csv(tmp_path / "north.csv")
    with pytest.raises(DataError, match="site north: "):
        load_cohorts(a_study(sites=[name]), tmp_path)


def test_a_study_without_a_simulation_cannot_be_simulated(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no \[simulation\] section"):
        load_cohorts(small_study(), tmp_path)
