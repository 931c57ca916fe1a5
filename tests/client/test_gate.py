"""The last door: what a reply may hold passes, and everything else stays."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.client.gate import Gate, Question, refusal
from fedward.common import records
from fedward.common.errors import (
    DataError,
    FedwardError,
    LinkError,
    PrivacyError,
    RoundError,
    RoundSpentError,
    SiteConfigError,
    TrainingError,
)
from fedward.common.study import Study, study_hash
from fedward.common.wire.body import Content, write_body
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

SITE = "site-1"
WEIGHTS = {"weight": np.zeros((1, 3), np.float32), "bias": np.zeros(1, np.float32)}
DP = {"mode": "dp", "epsilon": 3.0, "delta": 1e-3}


def asked(study: Study, folder: Path, action: str = records.TRAIN, number: int = 1) -> Question:
    early = action in (records.INTRODUCE, records.STATISTICS)
    config: dict[str, Any] = {records.STUDY_HASH: study_hash(study)}
    if not early:
        config[records.ROUND] = number
    arrays = {} if early else WEIGHTS
    body = write_body(folder / "task", Content(config, {}, arrays)).path
    return Question(study_hash(study), "run-1", 0 if early else number, action, body)


def gate(study: Study, *, paid: bool = True) -> Gate:
    return Gate(study, site=SITE, paid=lambda _run, _round, _group: paid)


def judge(study: Study, folder: Path, action: str, reply: Content, *, paid: bool = True) -> None:
    path = write_body(folder / "reply", reply).path
    gate(study, paid=paid).check(asked(study, folder, action), path)


def answers(study: Study) -> dict[str, Content]:
    """What an honest site says to each action."""
    site = make_sites(study, make_cohorts(study, 1, patients=80))[0]
    statistics = site.statistics()
    counts = np.zeros((2, study.evaluation.bins))
    counts[0, 2] = counts[1, 3] = 5.0
    one = {records.WEIGHT: 1.0}
    return {
        records.INTRODUCE: Content({records.SITE: SITE}),
        records.STATISTICS: Content(
            {records.LEVELS: statistics.levels_json}, {}, statistics.to_arrays()
        ),
        records.TRAIN: Content({}, one, {name: w + 0.5 for name, w in WEIGHTS.items()}),
        records.EVALUATE: Content(
            {}, {**one, records.RELEASED: 1.0}, {"hist": counts, "decisions": np.ones(1)}
        ),
    }


STUDY = small_study(preprocess={"standardise": "federated"})
HONEST = answers(STUDY)
PRIVATE = small_study(preprocess={"standardise": "federated"}, privacy=DP)


@pytest.mark.parametrize("action", list(HONEST))
def test_an_honest_reply_passes(action: str, tmp_path: Path) -> None:
    judge(STUDY, tmp_path, action, HONEST[action])


def test_an_evaluation_that_releases_nothing_passes(tmp_path: Path) -> None:
    nothing = Content({}, {records.WEIGHT: 1.0, records.RELEASED: 0.0})
    judge(STUDY, tmp_path, records.EVALUATE, nothing)


@pytest.mark.parametrize("action", list(HONEST))
@pytest.mark.parametrize("other", list(HONEST))
def test_a_reply_to_another_action_stays(action: str, other: str, tmp_path: Path) -> None:
    if action != other:
        with pytest.raises(RoundError):
            judge(STUDY, tmp_path, action, HONEST[other])


@pytest.mark.parametrize("action", list(HONEST))
def test_one_more_key_anywhere_stays(action: str, tmp_path: Path) -> None:
    honest = HONEST[action]
    for reply in (
        replace(honest, config={**honest.config, "note": "57 patients"}),
        replace(honest, metrics={**honest.metrics, "loss": 0.25}),
        replace(honest, arrays={**honest.arrays, "rows": np.zeros(3, np.float32)}),
    ):
        with pytest.raises(RoundError):
            judge(STUDY, tmp_path, action, reply)


@pytest.mark.parametrize("action", list(HONEST))
def test_one_key_less_stays(action: str, tmp_path: Path) -> None:
    honest = HONEST[action]
    for part in ("config", "metrics", "arrays"):
        for key in getattr(honest, part):
            rest = {k: v for k, v in getattr(honest, part).items() if k != key}
            with pytest.raises(RoundError):
                judge(STUDY, tmp_path, action, replace(honest, **{part: rest}))


def test_another_sites_name_stays(tmp_path: Path) -> None:
    with pytest.raises(RoundError):
        judge(STUDY, tmp_path, records.INTRODUCE, Content({records.SITE: "Meyer, Anna, 1957"}))


@pytest.mark.parametrize("weight", [0.0, 57.0, -1.0])
@pytest.mark.parametrize("action", [records.TRAIN, records.EVALUATE])
def test_a_weight_that_counts_patients_stays(action: str, weight: float, tmp_path: Path) -> None:
    honest = HONEST[action]
    reply = replace(honest, metrics={**honest.metrics, records.WEIGHT: weight})
    with pytest.raises(RoundError, match="weight of its own"):
        judge(STUDY, tmp_path, action, reply)


@pytest.mark.parametrize(
    "arrays",
    [
        {"bias": WEIGHTS["bias"], "weight": WEIGHTS["weight"]},
        {**WEIGHTS, "weight": np.zeros((3, 1), np.float32)},
        {**WEIGHTS, "weight": np.zeros((1, 3), np.float64)},
        {**WEIGHTS, "bias": np.zeros(2, np.float32)},
        {**WEIGHTS, "bias": np.full(1, np.nan, np.float32)},
        {**WEIGHTS, "weight": np.full((1, 3), np.inf, np.float32)},
        {},
    ],
)
def test_an_update_that_is_not_the_models_stays(arrays: Any, tmp_path: Path) -> None:
    with pytest.raises(RoundError, match="stopped"):
        judge(STUDY, tmp_path, records.TRAIN, Content({}, {records.WEIGHT: 1.0}, arrays))


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    limit=st.floats(1e-3, 2e3),
)
def test_the_norm_of_an_update_is_bounded(
    values: list[float], limit: float, tmp_path_factory: Any
) -> None:
    exact = math.sqrt(math.fsum(v * v for v in values))
    if abs(exact - limit) < 1e-3 * limit:
        return
    folder = tmp_path_factory.mktemp("norm")
    study = small_study(aggregation={"max_update_norm": limit})
    arrays = {
        "weight": np.array([values[:3]], np.float32),
        "bias": np.array(values[3:], np.float32),
    }
    reply = Content({}, {records.WEIGHT: 1.0}, arrays)
    if exact < limit:
        judge(study, folder, records.TRAIN, reply)
        return
    with pytest.raises(RoundError, match="max_update_norm"):
        judge(study, folder, records.TRAIN, reply)


def test_an_update_whose_distance_overflows_is_beyond_every_limit(tmp_path: Path) -> None:
    study = small_study(aggregation={"max_update_norm": 1e30})
    far = {name: np.full_like(w, 3e38) for name, w in WEIGHTS.items()}
    with pytest.raises(RoundError, match="max_update_norm"):
        judge(study, tmp_path, records.TRAIN, Content({}, {records.WEIGHT: 1.0}, far))


def test_an_array_larger_than_a_block_is_seen_to_its_end(tmp_path: Path) -> None:
    size = (1 << 19) + 3
    body = write_body(
        tmp_path / "task",
        Content({records.STUDY_HASH: study_hash(STUDY)}, {}, {"w": np.zeros(size, np.float32)}),
    ).path
    task = Question(study_hash(STUDY), "run-1", 1, records.TRAIN, body)
    values = np.zeros(size, np.float32)
    reply = Content({}, {records.WEIGHT: 1.0}, {"w": values})
    gate(STUDY).check(task, write_body(tmp_path / "good", reply).path)
    values[-1] = np.nan
    with pytest.raises(RoundError, match="NaN"):
        gate(STUDY).check(task, write_body(tmp_path / "bad", reply).path)


@given(cell=st.integers(0, 12), place=st.integers(0, 19), label=st.integers(0, 1))
def test_a_cell_leaves_whole_or_empty(
    cell: int, place: int, label: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("cell")
    hist = np.zeros((2, 20))
    hist[label, place] = cell
    honest = HONEST[records.EVALUATE]
    reply = replace(honest, arrays={"hist": hist, "decisions": np.ones(1)})
    if cell == 0 or cell >= STUDY.evaluation.min_cell:
        judge(STUDY, folder, records.EVALUATE, reply)
        return
    with pytest.raises(PrivacyError, match="below the study's minimum"):
        judge(STUDY, folder, records.EVALUATE, reply)


@pytest.mark.parametrize("cell", [4.5, -4.0, np.nan, np.inf])
def test_a_cell_that_is_no_count_stays(cell: float, tmp_path: Path) -> None:
    hist = np.zeros((2, 20))
    hist[0, 0] = cell
    reply = replace(HONEST[records.EVALUATE], arrays={"hist": hist, "decisions": np.ones(1)})
    with pytest.raises(FedwardError):
        judge(STUDY, tmp_path, records.EVALUATE, reply)


@pytest.mark.parametrize("shape", [(2, 22), (20, 2), (40,), (2, 10)])
def test_a_finer_histogram_than_the_studys_stays(shape: Any, tmp_path: Path) -> None:
    reply = replace(
        HONEST[records.EVALUATE], arrays={"hist": np.zeros(shape), "decisions": np.ones(1)}
    )
    with pytest.raises(RoundError):
        judge(STUDY, tmp_path, records.EVALUATE, reply)


def test_nothing_is_released_under_the_name_of_nothing(tmp_path: Path) -> None:
    honest = HONEST[records.EVALUATE]
    reply = replace(honest, metrics={records.WEIGHT: 1.0, records.RELEASED: 0.0})
    with pytest.raises(RoundError, match="what it releases"):
        judge(STUDY, tmp_path, records.EVALUATE, reply)


@pytest.mark.parametrize("count", [1.0, 2.0, 4.0, 57.0])
def test_sums_of_a_part_of_a_cell_stay(count: float, tmp_path: Path) -> None:
    honest = HONEST[records.STATISTICS]
    if count % STUDY.evaluation.min_cell == 0:
        count += 1
    reply = replace(honest, arrays={**honest.arrays, "patients": np.array([count])})
    with pytest.raises(RoundError, match="patients"):
        judge(STUDY, tmp_path, records.STATISTICS, reply)


def test_exact_sums_of_a_private_study_stay(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match="noise_variance"):
        judge(PRIVATE, tmp_path, records.STATISTICS, HONEST[records.STATISTICS])


@pytest.mark.parametrize("action", [records.STATISTICS, records.TRAIN, records.EVALUATE])
def test_what_the_ledger_was_not_charged_for_stays(action: str, tmp_path: Path) -> None:
    reply = answers(PRIVATE)[action]
    judge(PRIVATE, tmp_path, action, reply)
    with pytest.raises(PrivacyError, match="not charged"):
        judge(PRIVATE, tmp_path, action, reply, paid=False)


def test_the_ledger_is_asked_about_the_right_patients(tmp_path: Path) -> None:
    seen: list[tuple[str, int, str]] = []

    def paid(run: str, number: int, group: str) -> bool:
        seen.append((run, number, group))
        return True

    door = Gate(PRIVATE, site=SITE, paid=paid)
    honest = answers(PRIVATE)
    for action in honest:
        reply = write_body(tmp_path / "reply", honest[action]).path
        door.check(asked(PRIVATE, tmp_path, action, number=2), reply)
    assert seen == [("run-1", 0, "training"), ("run-1", 2, "training"), ("run-1", 2, "testing")]


@pytest.mark.parametrize(
    "error",
    [
        DataError("age has 3 bad cells", hint="look"),
        PrivacyError("epsilon would be 7.04", hint="less noise"),
        SiteConfigError("column WEIGHT_LB", hint="map it"),
        TrainingError("training diverged", hint="lower it"),
        FedwardError("what 42", hint="why"),
    ],
)
def test_a_refusal_leaves_in_words_that_tell_nothing(error: FedwardError, tmp_path: Path) -> None:
    said = refusal(error)
    if type(error) is not FedwardError:
        judge(STUDY, tmp_path, records.TRAIN, said)
    assert not any(digit in str(said.config[records.ERROR_REASON]) for digit in "0123456789")


@pytest.mark.parametrize(
    "config",
    [
        {records.ERROR_CODE: 5, records.ERROR_REASON: "age has 3 bad cells"},
        {records.ERROR_CODE: 6, records.ERROR_REASON: "epsilon would be 7.04"},
        {records.ERROR_CODE: 0, records.ERROR_REASON: "fine"},
        {records.ERROR_CODE: 99, records.ERROR_REASON: "what"},
        {records.ERROR_CODE: True, records.ERROR_REASON: "what"},
        {records.ERROR_CODE: 8, records.ERROR_REASON: "x" * 501},
        {records.ERROR_CODE: 8, records.ERROR_REASON: "two\nlines"},
        {records.ERROR_CODE: 8, records.ERROR_REASON: ""},
        {records.ERROR_CODE: 8},
        {records.ERROR_REASON: "what"},
        {records.ERROR_CODE: 8, records.ERROR_REASON: "no", records.SITE: SITE},
    ],
)
def test_a_refusal_in_words_of_its_own_stays(config: Any, tmp_path: Path) -> None:
    with pytest.raises(RoundError):
        judge(STUDY, tmp_path, records.TRAIN, Content(config))


def test_a_refusal_with_arrays_stays(tmp_path: Path) -> None:
    said = refusal(RoundError("no", hint="x"))
    with pytest.raises(RoundError):
        judge(STUDY, tmp_path, records.TRAIN, replace(said, arrays=WEIGHTS))


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"\xff" * 8 + b"{}"])
def test_what_is_no_body_stays(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "reply").write_bytes(data)
    with pytest.raises(LinkError):
        gate(STUDY).check(asked(STUDY, tmp_path), tmp_path / "reply")


# What may be asked at all.


def test_what_the_study_asks_is_let_in(tmp_path: Path) -> None:
    for action in HONEST:
        for number in (1, 2):
            gate(STUDY).check_task(asked(STUDY, tmp_path, action, number), last_round=1)


@pytest.mark.parametrize(
    ("change", "last"),
    [
        ({"study": "0" * 64}, 0),
        ({"action": "train.secret"}, 0),
        ({"round": 0}, 0),
        ({"round": 3}, 0),
        ({"round": -1}, 0),
        ({"round": 2}, 0),
        ({}, 2),
    ],
)
def test_what_the_study_cannot_ask_is_refused(change: Any, last: int, tmp_path: Path) -> None:
    question = replace(asked(STUDY, tmp_path), **change)
    with pytest.raises(RoundError):
        gate(STUDY).check_task(question, last_round=last)


@pytest.mark.parametrize("action", [records.TRAIN, records.EVALUATE])
def test_a_round_that_is_over_and_was_paid_for_is_spent(action: str, tmp_path: Path) -> None:
    """The server goes on without it; one that was not paid for may not be said to be spent."""
    private = small_study(privacy={"mode": "dp", "epsilon": 3.0, "delta": 1e-3})
    for study, paid, kind in (
        (private, True, RoundSpentError),
        (private, False, RoundError),
        (STUDY, True, RoundError),
    ):
        question = asked(study, tmp_path, action)
        with pytest.raises(kind, match="is over at this site"):
            gate(study, paid=paid).check_task(question, last_round=2)
        gate(study, paid=paid).check_task(question, last_round=1)


@pytest.mark.parametrize(
    ("algorithm", "given", "let_in"),
    [
        ({"name": "fedprox", "mu": 0.1}, {records.PROXIMAL_MU: 0.1}, True),
        ({"name": "fedprox", "mu": 0.1}, {records.PROXIMAL_MU: 0.2}, False),
        ({"name": "fedprox", "mu": 0.1}, {}, False),
        ({"name": "fedavg"}, {}, True),
        ({"name": "fedavg"}, {records.PROXIMAL_MU: 1e6}, False),
        ({"name": "fedavg"}, {records.PROXIMAL_MU: "0"}, False),
    ],
)
def test_sites_train_as_the_study_says_and_not_as_the_server_says(
    algorithm: dict[str, Any], given: dict[str, Any], let_in: bool, tmp_path: Path
) -> None:
    study = small_study(algorithm=algorithm)
    question = asked(study, tmp_path)
    config = {records.STUDY_HASH: study_hash(study), records.ROUND: 1, **given}
    write_body(question.body, Content(config, {}, WEIGHTS))
    if let_in:
        gate(study).check_task(question, last_round=0)
        return
    with pytest.raises(RoundError, match="another training"):
        gate(study).check_task(question, last_round=0)


def test_a_body_about_another_study_is_refused(tmp_path: Path) -> None:
    question = asked(small_study(training={"seed": 9}), tmp_path)
    with pytest.raises(RoundError, match="names another study"):
        gate(STUDY).check_task(replace(question, study=study_hash(STUDY)), last_round=0)
