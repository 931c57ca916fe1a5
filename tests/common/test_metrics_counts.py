"""Counts that leave a site: merging, the wire, small cells."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedward.common.errors import PrivacyError, RoundError
from fedward.common.metrics import DECISION_METRICS, Counts, count, evaluate, evaluate_each
from fedward.common.metrics.release import merge_cells
from fedward.common.models.outputs import Kind
from fedward.common.privacy.randomness import SeededRandomness

KINDS: tuple[Kind, ...] = get_args(Kind)
BOUNDS = (-1.0, 3.0)
CLASSES = 3


def some_rows(kind: Kind, rows: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(seed)
    if kind == "regression":
        return generator.normal(1, 2, rows), generator.normal(1, 2, rows)
    if kind == "binary":
        truth = generator.integers(0, 2, rows)
        return truth, generator.beta(0.5 + truth, 1.5 - truth)
    truth = generator.integers(0, CLASSES, rows)
    raw = np.exp(generator.normal(size=(rows, CLASSES)) + 1.5 * np.eye(CLASSES)[truth])
    return truth, raw / raw.sum(axis=1, keepdims=True)


def counted(kind: Kind, rows: int = 200, seed: int = 0, **more: Any) -> Counts:
    arguments: dict[str, Any] = {"bins": 20, "bounds": BOUNDS, **more}
    return count(kind, *some_rows(kind, rows, seed), **arguments)


def assert_same(one: Counts, other: Counts) -> None:
    assert one.cells.keys() == other.cells.keys()
    for name, cell in one.cells.items():
        np.testing.assert_allclose(cell, other.cells[name], atol=1e-9)


# --- merging and the wire ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 200), max_size=64))
def test_adding_sites_is_counting_all_rows(kind: Kind, cuts: list[int]) -> None:
    truth, score = some_rows(kind, 200, 1)
    edges = [0, *sorted(cuts), 200]
    parts = [
        count(kind, truth[a:b], score[a:b], bins=20, bounds=BOUNDS) for a, b in pairwise(edges)
    ]
    whole = count(kind, truth, score, bins=20, bounds=BOUNDS)
    total = sum(parts[1:], start=parts[0])
    assert_same(total, whole)
    assert total.homes is not None
    assert evaluate(total) == pytest.approx(evaluate(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_survive_the_wire_but_patients_do_not_travel(kind: Kind) -> None:
    counts = counted(kind)
    arrays = counts.to_arrays()
    outputs = CLASSES if kind == "multiclass" else 1
    back = Counts.from_arrays(kind, arrays, outputs=outputs, bins=20, bounds=BOUNDS)
    assert_same(counts, back)
    assert evaluate(back) == evaluate(counts)
    assert back.homes is None
    with pytest.raises(PrivacyError, match="unknown"):
        back.coarsen(10)
    with pytest.raises(PrivacyError, match="no limit"):
        back.noised(1.0, SeededRandomness(0))


def damaged(kind: Kind, damage: str) -> dict[str, NDArray[Any]]:
    arrays = counted(kind).to_arrays()
    name = "sums" if kind == "regression" else "hist"
    if damage == "missing":
        del arrays[name]
    elif damage == "extra":
        arrays["more"] = np.zeros(1)
    elif damage == "shape":
        arrays[name] = arrays[name][..., :-1]
    elif damage == "flag":
        arrays["decisions"] = np.array([0.5])
    else:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = float(damage)
    return arrays


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "flag", "nan", "inf", "1e200"])
def test_damaged_counts_are_refused(kind: Kind, damage: str) -> None:
    outputs = CLASSES if kind == "multiclass" else 1
    with pytest.raises(RoundError):
        Counts.from_arrays(
            kind, damaged(kind, damage), outputs=outputs, bins=20, bounds=BOUNDS, noised=True
        )


def test_negative_counts_need_noise_and_bounds_must_be_the_studys() -> None:
    arrays = damaged("binary", "-1.0")
    with pytest.raises(RoundError, match="negative"):
        Counts.from_arrays("binary", arrays, bins=20)
    assert Counts.from_arrays("binary", arrays, bins=20, noised=True).cells["hist"][0, 0] == -1
    sums = counted("regression").to_arrays()
    for bounds in (None, (-1.0, 4.0)):
        with pytest.raises(RoundError):
            Counts.from_arrays("regression", sums, bounds=bounds)


def test_counts_of_different_tasks_do_not_add() -> None:
    one = counted("binary")
    for other in (counted("multiclass"), counted("binary", bins=10), counted("regression")):
        with pytest.raises(RoundError):
            _ = one + other
    with pytest.raises(RoundError):
        _ = counted("regression") + counted("regression", bounds=(0.0, 1.0))


# --- small cells ---------------------------------------------------------------------------------


def distinct(rows: NDArray[np.bool_], patient: NDArray[np.int64]) -> int:
    return len(np.unique(patient[rows]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(1, 12),
)
def test_merged_cells_are_big_enough_and_keep_the_total(
    bins: list[tuple[int, int]], min_cell: int
) -> None:
    patients = np.array([float(p) for p, _ in bins])
    weight = patients + np.array([float(extra) for _, extra in bins])  # more rows than patients
    merged = merge_cells(weight, patients, min_cell)
    assert merged.sum() == weight.sum()
    assert (merged >= 0).all()
    assert ((merged == 0) | (weight > 0)).all()  # never where nothing was
    if patients.sum() >= min_cell:
        # Each cell stands for a run of whole bins: recover it from cumulative weights.
        edges = np.concatenate([[0.0], np.cumsum(merged[merged > 0])])
        ends = np.searchsorted(np.cumsum(weight), edges[1:])
        held = np.diff(np.concatenate([[0.0], np.cumsum(patients)[ends]]))
        # Empty bins at a run's end hold nobody, so the first bin that reaches the weight will do.
        assert (held >= min_cell).all()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.integers(2, 12),
    st.sampled_from(["binary", "multiclass"]),
)
def test_no_cell_of_few_patients_leaves(
    rows: int, seed: int, per_patient: int, min_cell: int, kind: Kind
) -> None:
    truth, score = some_rows(kind, rows, seed)
    patient = np.arange(rows) // per_patient
    counts = count(kind, truth, score, bins=20, patient=patient)
    coarse = counts.coarsen(min_cell)
    sizes = [distinct(truth == k, patient) for k in np.unique(truth)]
    if min(sizes) < min_cell:
        assert coarse is None
        return
    if coarse is None:  # one-vs-rest: "not class k" may be few as well
        assert kind == "multiclass"
        assert min(distinct(truth != k, patient) for k in range(CLASSES)) < min_cell
        return
    assert coarse.homes is None
    for name, cell in coarse.cells.items():
        # A patient has at most `per_patient` rows, so fewer rows would mean too few patients.
        assert ((cell == 0) | (cell >= min_cell)).all(), name
    np.testing.assert_allclose(coarse.cells["hist"].sum(axis=-1), counts.cells["hist"].sum(axis=-1))
    fine = evaluate(counts)
    for name in DECISION_METRICS:
        if not coarse.decisions:
            assert evaluate(coarse)[name] is None
        elif kind == "binary" or name in ("accuracy", "balanced_accuracy", "sensitivity"):
            assert evaluate(coarse)[name] == pytest.approx(fine[name]), name


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 6))
def test_a_patient_is_counted_once_per_class(
    rows: int, seed: int, patients: int, min_cell: int
) -> None:
    truth, score = some_rows("multiclass", rows, seed)
    patient = np.random.default_rng(seed).integers(0, patients, rows) - 3
    counts = count("multiclass", truth, score, bins=20, patient=patient)
    assert counts.homes is not None
    for k in range(CLASSES):
        for side in (0, 1):
            known = counts.homes["hist"][k, side].sum()
            assert known == distinct((truth == k) == side, patient)
    coarse = counts.coarsen(min_cell)
    if coarse is None or not coarse.decisions:
        return
    for k in range(CLASSES):
        for said in range(CLASSES):
            shown = coarse.cells["confusion"][k, said]
            if shown and shown == counts.cells["confusion"][k, said]:
                here = (truth == k) & (score.argmax(axis=1) == said)
                assert distinct(here, patient) >= min_cell


def test_many_rows_of_few_patients_are_still_few() -> None:
    truth, score = some_rows("binary", 400, 5)
    assert count("binary", truth, score, patient=np.arange(400) % 9).coarsen(10) is None
    # Nine patients with 40 positives each: a cell of 40 rows must not leave on its own.
    score = np.where(np.arange(400) < 360, 0.9, 0.1)
    patient = np.where(np.arange(400) < 360, np.arange(400) // 40, np.arange(400))
    coarse = count("binary", np.ones(400), score, bins=20, patient=patient).coarsen(10)
    assert coarse is not None
    assert not coarse.decisions
    assert np.count_nonzero(coarse.cells["hist"]) == 1


def test_decisions_are_withheld_rather_than_guessed() -> None:
    truth = np.repeat([0, 1], 50)
    score = np.where(truth == 1, 0.8, 0.2)
    assert evaluate(count("binary", truth, score).coarsen(10) or Counts("binary", {}))[
        "accuracy"
    ] == pytest.approx(1.0)
    score[:3] = 0.9  # three false alarms: too few to show, too many to hide
    coarse = count("binary", truth, score).coarsen(10)
    assert coarse is not None
    assert evaluate(coarse)["accuracy"] is None
    assert evaluate(coarse)["auroc"] == pytest.approx(1.0, abs=0.08)
    shown = count("binary", truth, truth * 0.8)
    for merged in (coarse + shown, shown + coarse):
        assert evaluate(merged)["accuracy"] is None


def test_small_wrong_answers_are_pooled_within_their_class() -> None:
    # Class 0: 30 right, 6 called 1 and 5 called 2; the others all right.
    truth = np.concatenate([np.zeros(41), np.ones(20), np.full(20, 2)]).astype(int)
    said = np.concatenate([np.zeros(30), np.ones(6), np.full(5, 2), truth[41:]]).astype(int)
    score = np.full((81, 3), 0.1) + 0.7 * np.eye(3)[said]
    coarse = count("multiclass", truth, score).coarsen(10)
    assert coarse is not None
    assert coarse.cells["confusion"].tolist() == [[30, 11, 0], [0, 20, 0], [0, 0, 20]]


def test_no_small_wrong_answer_is_left_over_beside_a_pool() -> None:
    # Class 0: 30 right, and six called each of four others; two of those would make a pool of 12.
    truth = np.concatenate([np.zeros(54), np.repeat(np.arange(1, 5), 20)]).astype(int)
    said = np.concatenate([np.zeros(30), np.repeat(np.arange(1, 5), 6), truth[54:]]).astype(int)
    score = np.full((len(truth), 5), 0.1) + 0.5 * np.eye(5)[said]
    coarse = count("multiclass", truth, score).coarsen(10)
    assert coarse is not None
    assert coarse.cells["confusion"][0].tolist() == [30, 24, 0, 0, 0]


def test_a_coarse_auroc_is_near_the_fine_one() -> None:
    counts = counted("binary", rows=2_000, bins=100)
    coarse = counts.coarsen(10)
    assert coarse is not None
    assert evaluate(coarse)["auroc"] == pytest.approx(evaluate(counts)["auroc"], abs=0.01)


def test_regression_of_few_patients_is_suppressed() -> None:
    assert counted("regression", rows=9).coarsen(10) is None
    assert counted("regression", rows=90, patient=np.arange(90) % 9).coarsen(10) is None
    assert counted("regression", rows=10).coarsen(10) is not None
    assert counted("regression", rows=0).coarsen(10) is not None  # nobody is not a few


@pytest.mark.parametrize("kind", KINDS)
def test_many_are_evaluated_as_each_alone(kind: Kind) -> None:
    """Also without rows, with one class, of other resolutions, and with hidden decisions."""
    one_class = counted(kind, rows=4)
    if kind == "binary":
        one_class = count(kind, [1, 1], [[0.2], [0.9]], bins=20)
    small = counted(kind, rows=30).coarsen(10)
    all_of_them = [
        *(counted(kind, seed=seed) for seed in range(4)),
        *(counted(kind, rows=0), one_class, counted(kind, bins=10)),
        *([] if small is None else [small]),
    ]
    for counts, found in zip(all_of_them, evaluate_each(all_of_them), strict=True):
        assert found == {
            name: None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)
            for name, value in evaluate(counts).items()
        }
    assert evaluate_each([]) == []
