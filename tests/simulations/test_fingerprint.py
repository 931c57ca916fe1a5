"""The digest of a site's data: equal for equal data, different for any difference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedward.client.cohort import Cohort
from fedward.common.table import FeatureTable, ImageStack
from fedward.simulations.fakes import make_cohort, small_study
from fedward.simulations.fingerprint import fingerprint

STUDY = small_study(categorical=2)


def table(seed: int = 0) -> Cohort:
    return make_cohort(STUDY, "a", missing=0.1, rows_per_patient=2, seed=seed)


def images(rows: Any = (0, 1, 2, 3), pixels: Any = None) -> Cohort:
    made = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    count = len(rows)
    return Cohort(
        site="a",
        features=ImageStack(made if pixels is None else pixels, np.array(rows)),
        target=np.zeros(count, np.float32),
        patient=np.arange(count),
        test=np.zeros(count, bool),
    )


def changed(cohort: Cohort, name: str) -> Cohort:
    """The cohort with one thing different in one row."""
    features = cohort.features
    assert isinstance(features, FeatureTable)
    if name in ("numeric", "codes"):
        array = getattr(features, name).copy()
        array[3, 1] = 1 - array[3, 1] if array[3, 1] == array[3, 1] else 0
        return replace(cohort, features=replace(features, **{name: array}))
    if name == "levels":
        levels = (("x", "y", "z"), *features.levels[1:])
        return replace(cohort, features=replace(features, levels=levels))
    if name == "site":
        return replace(cohort, site="b")
    if name == "order":
        return cohort.take(np.arange(len(cohort))[::-1].copy())
    if name == "fewer":
        return cohort.take(np.arange(len(cohort) - 1))
    array = getattr(cohort, name).copy()
    array[3] = 1 - array[3] if name != "test" else not array[3]
    return replace(cohort, **{name: array})


def test_equal_data_are_equal_wherever_they_lie() -> None:
    rows = np.arange(len(table()))
    assert fingerprint(table()) == fingerprint(table()) == fingerprint(table().take(rows))
    assert len(fingerprint(table())) == 64
    features = table().features
    assert isinstance(features, FeatureTable)
    columns = replace(features, numeric=np.asfortranarray(features.numeric))
    assert fingerprint(replace(table(), features=columns)) == fingerprint(table())


CHANGES = ("numeric", "codes", "levels", "site", "order", "fewer", "target", "patient", "test")


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_shows(name: str) -> None:
    assert fingerprint(changed(table(), name)) != fingerprint(table())


def test_pictures_count_by_what_they_show_not_where_they_are_in_the_stack() -> None:
    whole = images().features
    assert isinstance(whole, ImageStack)
    moved = images(rows=(1, 2, 3, 4), pixels=np.roll(whole.pixels, 1, axis=0))
    assert fingerprint(moved) == fingerprint(images())
    one = whole.pixels.copy()
    one[2, 7, 7, 0] ^= 1
    assert fingerprint(images(pixels=one)) != fingerprint(images())
    unused = whole.pixels.copy()
    unused[5] = 0
    assert fingerprint(images(pixels=unused)) == fingerprint(images())


def test_pictures_are_read_piece_by_piece_to_the_last() -> None:
    pixels = np.zeros((5, 2048, 2048, 3), np.uint8)  # one picture and a third fill a piece
    rows = tuple(range(5))
    before = fingerprint(images(rows, pixels))
    pixels[4, -1, -1, -1] = 1
    assert fingerprint(images(rows, pixels)) != before
