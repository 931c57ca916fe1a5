"""The frozen cohort: equal for equal data, and every kind of change is named, never counted."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fedward.client.cohort import Cohort
from fedward.client.loading import load_cohort
from fedward.client.manifest import (
    Manifest,
    check,
    load_manifest,
    manifest_of,
    manifest_path,
    save_manifest,
)
from fedward.client.site_config import load_site_config
from fedward.common.errors import DataError, PrivacyError, StateError
from fedward.common.study import Study
from fedward.common.table import ImageStack
from fedward.simulations.fakes import make_cohort, small_study

KEY = b"k" * 32
STUDY = small_study(
    numeric=2,
    categorical=1,
    privacy={"mode": "dp", "epsilon": 3.0, "delta": 1e-3},
    data={
        "features": [
            {"name": "x0", "min": -4.0, "max": 4.0, "missing": "impute"},
            {"name": "x1", "min": -4.0, "max": 4.0, "missing": "impute"},
            {
                "name": "c0",
                "type": "categorical",
                "categories": ["never", "former", "current"],
                "missing": "impute",
            },
        ]
    },
)


def table(patients: int = 40, rows: int = 2) -> pl.DataFrame:
    rng = np.random.default_rng(5)
    n = patients * rows
    return pl.DataFrame(
        {
            "who": [f"p{index // rows:03}" for index in range(n)],
            "x0": rng.normal(size=n).round(3),
            "x1": rng.normal(size=n).round(3),
            "c0": rng.choice(["never", "former", "current"], n),
            "ill": rng.choice(["no", "yes"], n),
        }
    )


def load(
    folder: Path, frame: pl.DataFrame, study: Study = STUDY, key: bytes = KEY, who: str = "who"
) -> Cohort:
    folder.mkdir(exist_ok=True)
    frame.write_csv(folder / "rows.csv")
    patients = "one_row_per_patient = true" if not who else f"column = '{who}'"
    (folder / "site.toml").write_text(
        f"[site]\nname = 'north'\n[source]\nkind = 'csv'\npath = 'rows.csv'\n[patients]\n{patients}"
    )
    return load_cohort(study, load_site_config(folder / "site.toml"), key=key, identify=True)


def freeze(folder: Path, frame: pl.DataFrame, **options: object) -> Manifest:
    return manifest_of(STUDY, load(folder, frame, **options), KEY)  # type: ignore[arg-type]


def set_value(frame: pl.DataFrame, row: int, column: str, value: object) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values))


# --- what it holds ------------------------------------------------------------------------------


def test_it_lists_every_patient_once_on_the_side_the_cohort_has_them(tmp_path: Path) -> None:
    cohort = load(tmp_path, table())
    manifest = manifest_of(STUDY, cohort, KEY)
    assert len(manifest.training) == cohort.training().patients
    assert len(manifest.testing) == cohort.testing().patients
    assert len(manifest.testing) > 0
    assert not manifest.training.keys() & manifest.testing.keys()


def test_nothing_in_it_can_be_tried_out_without_the_key(tmp_path: Path) -> None:
    one = freeze(tmp_path, table())
    text = one.to_json().decode()
    assert "p000" not in text
    assert "who" not in text
    other = manifest_of(STUDY, load(tmp_path, table(), key=b"o" * 32), b"o" * 32)
    assert not {**one.training, **one.testing}.keys() & {**other.training, **other.testing}.keys()
    everything = {**one.training, **one.testing}
    assert not set(everything.values()) & {*other.training.values(), *other.testing.values()}


def test_identities_follow_their_patients_when_rows_are_taken(tmp_path: Path) -> None:
    cohort = load(tmp_path, table())
    assert cohort.identity is not None
    by_row = cohort.identity[cohort.patient]
    rows = np.arange(len(cohort))[::-3].copy()
    taken = cohort.take(rows)
    assert taken.identity is not None
    assert (taken.identity[taken.patient] == by_row[rows]).all()
    assert len(taken.identity) == taken.patients


def test_a_patient_has_the_same_identity_in_another_study_and_file(tmp_path: Path) -> None:
    one = load(tmp_path / "a", table())
    fewer = table().filter(pl.col("who").is_in([f"p{i:03}" for i in range(5, 35)]))
    other = load(tmp_path / "b", fewer.drop("x1"), small_study(numeric=1))
    assert one.identity is not None
    assert other.identity is not None
    assert one.identified_by == other.identified_by != ""
    assert (one.identity[5:35] == other.identity).all()


def test_a_simulation_is_not_told_who_patients_are(tmp_path: Path) -> None:
    load(tmp_path, table())
    config = load_site_config(tmp_path / "site.toml")
    cohort = load_cohort(STUDY, config, key=KEY)
    assert cohort.identity is None
    assert cohort.identified_by == ""


# --- same data ----------------------------------------------------------------------------------


def test_the_same_data_in_another_order_are_the_same(tmp_path: Path) -> None:
    frame = table()
    one = freeze(tmp_path / "a", frame)
    other = freeze(tmp_path / "b", frame.sample(fraction=1.0, shuffle=True, seed=3))
    assert one.digest == other.digest
    assert one.members.id == other.members.id
    check(one, other)


@pytest.mark.parametrize("who", ["who", ""])
def test_a_missing_value_is_a_value_of_its_own(tmp_path: Path, who: str) -> None:
    frame = table(rows=1)
    one = freeze(tmp_path / "a", set_value(frame, 0, "x0", None), who=who)
    same = freeze(tmp_path / "b", set_value(frame, 0, "x0", None), who=who)
    zero = freeze(tmp_path / "c", set_value(frame, 0, "x0", 0.0), who=who)
    level = freeze(tmp_path / "d", set_value(frame, 0, "c0", None), who=who)
    check(one, same)
    assert len({one.digest, zero.digest, level.digest}) == 3


# --- other data ---------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], str]] = {
    "added": (
        lambda f: pl.concat([f, f.head(1).with_columns(who=pl.lit("new"))]),
        "patients were added",
    ),
    "removed": (lambda f: f.filter(pl.col("who") != "p007"), "patients are missing"),
    "one row less": (lambda f: f.slice(1), "records of patients have changed"),
    "number": (lambda f: set_value(f, 9, "x1", 0.1234), "records of patients have changed"),
    "word": (
        lambda f: set_value(f, 9, "c0", "never" if f["c0"][9] != "never" else "former"),
        "records of patients have changed",
    ),
    "outcome": (
        lambda f: set_value(f, 9, "ill", "no" if f["ill"][9] == "yes" else "yes"),
        "records of patients have changed",
    ),
    "rows swapped between patients": (
        lambda f: set_value(set_value(f, 0, "who", "p001"), 2, "who", "p000"),
        "records of patients have changed",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_change_is_refused_and_named_without_counts(
    tmp_path: Path, change: str
) -> None:
    alter, words = CHANGES[change]
    before = freeze(tmp_path / "a", table())
    after = freeze(tmp_path / "b", alter(table()))
    with pytest.raises(DataError) as caught:
        check(before, after)
    assert words in str(caught.value)
    assert not re.search(r"\d", str(caught.value))
    others = {words for _, words in CHANGES.values()} - {words}
    assert not any(other in str(caught.value) for other in others)


def test_patients_who_change_sides_are_refused(tmp_path: Path) -> None:
    cohort = load(tmp_path, table())
    with pytest.raises(DataError, match="moved between training and testing"):
        check(
            manifest_of(STUDY, cohort, KEY),
            manifest_of(STUDY, replace(cohort, test=~cohort.test), KEY),
        )


def test_another_identifier_study_or_site_is_refused(tmp_path: Path) -> None:
    cohort = load(tmp_path / "a", table())
    one = manifest_of(STUDY, cohort, KEY)
    renamed = load(tmp_path / "b", table().rename({"who": "mrn"}), who="mrn")
    with pytest.raises(DataError, match="told apart in another way"):
        check(one, manifest_of(STUDY, renamed, KEY))
    with pytest.raises(DataError, match="another study or site"):
        check(one, manifest_of(STUDY, replace(cohort, site="south"), KEY))
    other = STUDY.model_copy(
        update={"training": STUDY.training.model_copy(update={"learning_rate": 0.25})}
    )
    with pytest.raises(DataError, match="another study or site"):
        check(one, manifest_of(other, cohort, KEY))


# --- without identifiers ------------------------------------------------------------------------


def test_without_an_identifier_a_patient_is_known_by_their_row(tmp_path: Path) -> None:
    frame = table(rows=1)
    alike = pl.concat([frame, frame.head(1)])
    one = freeze(tmp_path / "a", frame, who="")
    two = freeze(tmp_path / "b", alike, who="")
    assert one.identified_by == ""
    before = {**one.training, **one.testing}
    after = {**two.training, **two.testing}
    assert len(after) == len(before) + 1, "equal rows are different patients"
    assert before.keys() < after.keys(), "one more moves no other"
    with pytest.raises(DataError, match="added"):
        check(one, two)


def test_records_are_not_patients() -> None:
    study = small_study(privacy={"mode": "dp", "unit": "record", "epsilon": 3.0, "delta": 1e-3})
    several = make_cohort(study, "north", rows_per_patient=4)
    with pytest.raises(PrivacyError, match="single records"):
        manifest_of(study, several, KEY)
    assert manifest_of(study, make_cohort(study, "north"), KEY).unit == "record"


def test_pictures_count_by_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    cohort = Cohort(
        "north",
        ImageStack(pixels, np.arange(6)),
        np.array([0, 1, 0, 1, 0, 1], np.float32),
        np.arange(6),
        np.array([False, False, False, False, True, True]),
    )
    one = manifest_of(STUDY, cohort, KEY)
    order = np.array([3, 1, 5, 0, 2, 4])
    check(one, manifest_of(STUDY, cohort.take(order), KEY))
    other = pixels.copy()
    other[2, 1, 1, 0] ^= 1
    changed = replace(cohort, features=ImageStack(other, np.arange(6)))
    with pytest.raises(DataError, match=r"added.*missing"):
        check(one, manifest_of(STUDY, changed, KEY))


# --- on disk ------------------------------------------------------------------------------------


def test_it_is_kept_as_it_is_and_for_its_owner_only(tmp_path: Path) -> None:
    manifest = freeze(tmp_path / "a", table())
    path = save_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path, manifest.study) == manifest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c | {"more": 1},
        lambda c: {k: v for k, v in c.items() if k != "unit"},
        lambda c: c | {"format": 2},
        lambda c: c | {"testing": c["training"]},
        lambda c: c | {"training": {"zz": "00"}},
        lambda c: [],
    ],
)
def test_a_manifest_that_was_touched_is_refused(tmp_path: Path, damage: Callable) -> None:  # type: ignore[type-arg]
    manifest = freeze(tmp_path / "a", table())
    path = save_manifest(tmp_path, manifest)
    path.write_text(json.dumps(damage(json.loads(path.read_bytes())), separators=(",", ":")))
    with pytest.raises(StateError):
        load_manifest(tmp_path, manifest.study)


def test_a_manifest_under_another_studys_name_is_refused(tmp_path: Path) -> None:
    manifest = freeze(tmp_path / "a", table())
    save_manifest(tmp_path, manifest).rename(manifest_path(tmp_path, "0" * 64))
    with pytest.raises(StateError, match="another study"):
        load_manifest(tmp_path, "0" * 64)
    with pytest.raises(StateError, match="approve"):
        load_manifest(tmp_path, manifest.study)
