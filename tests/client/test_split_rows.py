"""Rows that are patients of their own: each keeps its side, whoever else is there."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedward.client.cohort import Cohort
from fedward.client.content import IDENTITY, with_identities
from fedward.client.loading import load_cohort
from fedward.client.site_config import SiteConfig
from fedward.client.split import assign_test
from fedward.common.study import Study
from fedward.common.study.load import EXAMPLE
from fedward.common.table import FeatureTable

KEY = b"secret"
FEATURES: list[dict[str, Any]] = [
    {"name": "x", "missing": "impute"},
    {"name": "drug", "type": "categorical", "missing": "impute"},
    {"name": "sex", "type": "categorical", "categories": ["male", "female"]},
    {"name": "smoker", "type": "boolean", "missing": "impute"},
]
Row = tuple[str, ...]
Sides = Counter[tuple[Any, ...]]


def study(**changes: Any) -> Study:
    table = tomllib.loads(EXAMPLE)
    table["data"] = {"modality": "tabular", "features": FEATURES, "single_class": "allow"}
    table["evaluation"] = {"holdout": 0.5}
    return Study.model_validate({**table, **changes})


def patients(count: int, seed: int = 0) -> list[Row]:
    """Rows x, drug, sex, smoker, died; each drug of few, so that a code can go with one row."""
    draw = random.Random(seed)
    return [
        (
            "" if draw.random() < 0.1 else f"{draw.gauss(0, 1):.3f}",
            draw.choice(["", *(f"drug {n}" for n in range(count // 2))]),
            draw.choice(["male", "female"]),
            draw.choice(["yes", "no", ""]),
            draw.choice(["yes", "no"]),
        )
        for _ in range(count)
    ]


def load(folder: Path, rows: Sequence[Row], **source: Any) -> Cohort:
    lines = ["x,drug,sex,smoker,died", *(",".join(row) for row in rows)]
    (folder / "p.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = {
        "site": {"name": "north"},
        "source": {"kind": "csv", "path": str(folder / "p.csv"), **source},
        "patients": {"one_row_per_patient": True},
    }
    return load_cohort(study(), SiteConfig.model_validate(table), key=KEY)


def sides(rows: Sequence[Row], test: Sequence[bool]) -> Sides:
    """How often each row is on each side: equal rows cannot be told apart."""
    return Counter(zip(rows, test, strict=True))


def by_content(folder: Path) -> Callable[[Sequence[Row]], Sides]:
    return lambda rows: sides(rows, load(folder, rows).test.tolist())


def by_position(rows: Sequence[Row]) -> Sides:
    """The wrong way: by number of the row."""
    return sides(rows, assign_test((str(n) for n in range(len(rows))), 0.5, KEY).tolist())


def moved(divide: Callable[[Sequence[Row]], Sides], rows: list[Row]) -> int:
    """Rows on another side in a neighbour: one row less, one more, another order."""
    whole = divide(rows)
    found = 0
    for place in range(0, len(rows), 7):
        fewer = divide(rows[:place] + rows[place + 1 :])
        found += (fewer - whole).total()
        found += (whole - fewer).total() - 1
    more = divide([("9", "new", "male", "no", "yes"), *rows])
    found += (whole - more).total() + (more - whole).total() - 1
    shuffled = random.Random(1).sample(rows, len(rows))
    return found + (divide(shuffled) - whole).total()


def test_one_row_more_or_less_and_another_order_move_no_other_row(tmp_path: Path) -> None:
    rows = patients(70)
    rows += rows[:9] * 3  # equal rows too
    assert moved(by_content(tmp_path), rows) == 0
    assert moved(by_position, rows) > 100  # the test would notice


def test_codes_that_follow_from_other_rows_do_not_count(tmp_path: Path) -> None:
    rows = [(f"{n}", "b" if n else "a", "male", "no", "yes") for n in range(60)]
    every, fewer = load(tmp_path, rows), load(tmp_path, rows[1:])
    for cohort, levels in ((every, ("a", "b")), (fewer, ("b",))):
        assert isinstance(cohort.features, FeatureTable)
        assert cohort.features.levels[0] == levels  # the code of b is another
    np.testing.assert_array_equal(fewer.test, every.test[1:])


def test_a_filter_moves_no_row(tmp_path: Path) -> None:
    rows = [row for row in patients(80) if row[0]]
    every = load(tmp_path, rows)
    some = load(tmp_path, rows, filter="x >= 0")
    kept = [float(row[0]) >= 0 for row in rows]
    np.testing.assert_array_equal(some.test, every.test[kept])
    np.testing.assert_array_equal(np.sort(some.patient), np.arange(len(some)))


def test_equal_rows_are_divided_like_others(tmp_path: Path) -> None:
    cohort = load(tmp_path, [("1", "a", "male", "no", "yes")] * 2000)
    assert len(cohort) == cohort.patients == 2000
    assert abs(cohort.test.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(2000)


def identities(rows: Sequence[tuple[float | None, str | None, str | None]]) -> list[str]:
    schema = {"n": pl.Float32, "a": pl.String, "b": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return with_identities(frame, ["n", "a", "b"])[IDENTITY].to_list()


CELL = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ab", '"', '", "', "\\", "null", "é"]))
NUMBER = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf")]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBER, CELL, CELL), max_size=12))
def test_identities_are_those_of_the_content(rows: list[tuple[Any, Any, Any]]) -> None:
    """Oracle: equality of the values; a missing number is NaN, and 0 has no sign."""
    found = identities(rows)
    assert len(set(found)) == len(rows)
    values = [("nan" if n is None or n != n else float(n), a, b) for n, a, b in rows]
    for place, identity in enumerate(found):
        content, number = identity.split(" ")
        assert int(number) == values[:place].count(values[place])
        alike = [other.split(" ")[0] == content for other in found]
        assert alike == [value == values[place] for value in values]


def test_identities_do_not_depend_on_versions_of_libraries() -> None:
    """The hash of known bytes: float64 little-endian, then the words as JSON."""
    # printf '\0\0\0\0\0\0\370\077["a", null]' | sha256sum
    expected = "259e8df093e8de46785e1d0f099bce85ceba143250321a2b1fb5dc296d802120"
    assert identities([(1.5, "a", None)]) == [f"{expected} 0"]


def test_many_rows_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[Any, Any, Any]] = [(float(n % 5), "a", None) for n in range(40)]
    whole = identities(rows)
    monkeypatch.setattr("fedward.client.content._ROWS_AT_ONCE", 7)
    assert identities(rows) == whole


def pictures(folder: Path, shades: Sequence[int]) -> Cohort:
    lines = ["file,died"]
    for place, shade in enumerate(shades):
        Image.new("L", (8, 8), shade).save(folder / f"{place}.png")
        lines.append(f"{place}.png,{'yes' if shade % 2 else 'no'}")
    (folder / "p.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = {
        "site": {"name": "north"},
        "source": {
            "kind": "images",
            "path": str(folder),
            "labels": str(folder / "p.csv"),
            "file": "file",
        },
        "patients": {"one_row_per_patient": True},
    }
    protocol = study(
        data={"modality": "image", "single_class": "allow"},
        preprocess={"image": {"height": 8, "width": 8}},
        model={"name": "cnn"},
    )
    return load_cohort(protocol, SiteConfig.model_validate(table), key=KEY)


def test_pictures_keep_their_sides_whatever_their_names(tmp_path: Path) -> None:
    shades = list(range(100, 160))
    every = dict(zip(shades, pictures(tmp_path, shades).test.tolist(), strict=True))
    assert {True, False} == set(every.values())
    for fewer in (shades[1:], shades[:30] + shades[31:], shades[::-1]):
        found = pictures(tmp_path, fewer).test.tolist()
        assert found == [every[shade] for shade in fewer]
