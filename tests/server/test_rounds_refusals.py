"""What a run does with sites that fail: a right error, every site named, nothing hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedward.common import records
from fedward.common.errors import (
    DataError,
    FedwardError,
    PrivacyError,
    RoundError,
    StudyError,
    TrainingError,
)
from fedward.common.metrics import evaluate
from fedward.common.study import Study
from fedward.server.replies import TooFew
from fedward.server.rounds import Outcome
from fedward.simulations.engines.flaky import (
    Fault,
    Trouble,
    changed,
    empty,
    lost,
    not_a_number,
    refused,
    renamed,
    run_flaky,
    scaled,
    wrong_name,
    wrong_shape,
)
from fedward.simulations.fakes import MemoryCheckpoints, make_cohorts, make_sites, small_study

SITES = 4


def run(faults: list[Fault], **changes: Any) -> Outcome:
    study = small_study(**changes)
    return run_flaky(study, make_sites(study, make_cohorts(study, SITES, patients=24)), faults)


def everywhere(trouble: Trouble, kind: str = records.TRAIN) -> list[Fault]:
    return [Fault(f"site-{index + 1}", trouble, kind) for index in range(SITES)]


def content(change: Callable[[RecordDict], None]) -> Trouble:
    """The content of a reply is changed in place."""

    def trouble(request: Message, reply: Message) -> list[Message]:
        found = RecordDict(dict(reply.content))
        change(found)
        return [Message(found, reply_to=request)]

    return trouble


def garbage(found: RecordDict) -> None:
    array = Array("float32", (3,), "numpy.ndarray", b"this is not an array")
    found[records.ARRAYS] = ArrayRecord({"weight": array, "bias": array})


def pickled(found: RecordDict) -> None:
    """An array of objects would be code: it must not even be looked at."""
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    array = Array("object", (1,), "numpy.ndarray", stream.getvalue())
    found[records.ARRAYS] = ArrayRecord({"weight": array, "bias": array})


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "refusal": (refused(5, "too few patients"), "too few patients"),
    "refusal over lines": (refused(5, "too few\n patients"), "too few patients"),
    "refusal without a word": (refused(5, ""), "gave no reason"),
    "no reply": (lost, "no answer before the deadline"),
    "NaN": (not_a_number, "tensor weight holds NaN or infinite values"),
    "infinite": (scaled(float("inf")), "holds NaN or infinite values"),
    "wrong shape": (wrong_shape, r"tensor weight has shape \(1, 1, 3\)"),
    "wrong name": (wrong_name, "tensor weight is missing"),
    "one tensor more": (
        changed(lambda a: {**a, "more": np.zeros(2, np.float32)}),
        "tensor more is unexpected",
    ),
    "one tensor less": (changed(lambda a: {"weight": a["weight"]}), "tensor bias is missing"),
    "no tensors": (changed(lambda _: {}), "tensor weight is missing"),
    "another type": (
        changed(lambda a: {k: v.astype(np.float64) for k, v in a.items()}),
        "has type float64",
    ),
    "another order": (changed(lambda a: dict(reversed(a.items()))), "stands where"),
    "no records": (empty, "has no arrays"),
    "garbage": (content(garbage), "arrays that cannot be read"),
    "pickle": (content(pickled), "arrays that cannot be read"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_one_site_of_four_fails_and_the_run_goes_on(name: str) -> None:
    trouble, reason = TROUBLES[name]
    outcome = run([Fault("site-3", trouble, round=2)], training={"rounds": 3})
    first, second, third = outcome.history
    assert first.refused == third.refused == {}
    assert list(second.refused) == ["site-3"]
    assert second.participants == ("site-1", "site-2", "site-4")
    assert set(second.drift) == set(second.participants)
    with pytest.raises(RoundError, match=reason):
        raise RoundError(second.refused["site-3"], hint="")
    assert "\n" not in second.refused["site-3"]


def test_a_site_that_fails_counts_as_if_it_had_not_been_there() -> None:
    study = small_study(training={"rounds": 1})
    cohorts = make_cohorts(study, SITES)
    faulty = run_flaky(study, make_sites(study, cohorts), [Fault("site-3", not_a_number)])
    rest = [cohort for cohort in cohorts if cohort.site != "site-3"]
    without = run_flaky(study, make_sites(study, rest))
    for name, value in without.weights.items():
        assert (faulty.weights[name] == value).all()


@pytest.mark.parametrize("name", TROUBLES)
def test_all_sites_fail_and_each_is_named(name: str) -> None:
    trouble, reason = TROUBLES[name]
    expected = DataError if name.startswith("refusal") else TooFew
    with pytest.raises(expected, match=reason) as caught:
        run(everywhere(trouble))
    assert type(caught.value) is expected
    assert "round 1 stopped, 0 of 1 needed sites answered" in str(caught.value)
    for index in range(SITES):
        assert f"site-{index + 1}" in str(caught.value)


def test_many_failing_sites_are_all_named() -> None:
    study = small_study()
    sites = make_sites(study, make_cohorts(study, 8, patients=12))
    faults = [Fault(site.name, lost) for site in sites]
    with pytest.raises(RoundError) as caught:
        run_flaky(study, sites, faults)
    assert all(site.name in str(caught.value) for site in sites)


def test_fewer_than_the_quorum_end_the_run() -> None:
    faults = [Fault("site-1", lost, round=2), Fault("site-4", not_a_number, round=2)]
    assert len(run(faults, aggregation={"min_sites": 2}).history) == 2
    with pytest.raises(
        RoundError, match=r"round 2 stopped, 2 of 3 .*site-1: no answer.*; site-4: .*NaN"
    ) as caught:
        run(faults, aggregation={"min_sites": 3})
    assert "site-2" not in str(caught.value)


def test_refusals_of_different_kinds_are_a_round_error() -> None:
    faults = [Fault(f"site-{i}", refused(code, "no")) for i, code in enumerate((5, 5, 6, 7), 1)]
    with pytest.raises(RoundError) as caught:
        run(faults)
    assert type(caught.value) is TooFew


@pytest.mark.parametrize("code", [0, 1, 2, 1001])
def test_a_code_that_is_not_ours_is_a_round_error(code: int) -> None:
    with pytest.raises(RoundError):
        run(everywhere(refused(code, "no")))


def test_training_that_diverges_everywhere_is_said_with_its_exit_code() -> None:
    with pytest.raises(TrainingError, match="local training diverged") as caught:
        run(
            [],
            training={"learning_rate": 1e38, "rounds": 6, "local_epochs": 20},
            model={"name": "mlp"},
        )
    assert caught.value.exit_code == 7


def test_privacy_that_one_site_cannot_keep_is_not_hidden() -> None:
    fault = [Fault("site-2", refused(6, "budget spent"))]
    assert run(fault).history[0].refused == {"site-2": "budget spent"}
    with pytest.raises(PrivacyError, match="budget spent"):
        run(everywhere(refused(6, "budget spent")))


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "fedadagrad", "server_learning_rate": 1e39},
        {"name": "fedavgm", "server_learning_rate": 1e39},
    ],
)
def test_a_model_that_overflows_at_the_server_is_refused(algorithm: dict[str, Any]) -> None:
    checkpoints = MemoryCheckpoints()
    study = small_study(algorithm=algorithm)
    sites = make_sites(study, make_cohorts(study, 2))
    with pytest.raises(TrainingError, match="diverged at the server"):
        run_flaky(study, sites, checkpoints=checkpoints)
    assert [state.round for state in checkpoints.states] == [0]


def test_finite_updates_whose_sum_overflows_are_refused_without_a_warning() -> None:
    big = changed(lambda a: {k: np.full_like(v, 3e38) for k, v in a.items()})
    outcome = run([Fault("site-1", big)], algorithm={"name": "fedmedian"})
    assert len(outcome.history) == 2
    with pytest.raises(TrainingError, match="diverged at the server"):
        run(everywhere(big), algorithm={"name": "fedavgm", "server_learning_rate": 2.0})


def test_a_huge_update_is_refused_if_the_study_bounds_them() -> None:
    fault = [Fault("site-1", scaled(1e6))]
    bounded = run(fault, aggregation={"max_update_norm": 50.0})
    for record in bounded.history:
        assert "max_update_norm" in record.refused["site-1"]
        assert all(drift.norm <= 50.0 for drift in record.drift.values())
    assert run(fault).history[0].refused == {}
    with pytest.raises(RoundError, match="max_update_norm"):
        run([], aggregation={"max_update_norm": 1e-6})


def test_what_else_a_site_says_is_not_listened_to() -> None:
    """A weight of its own, another metric, a second record: none of them reaches the strategy."""

    def boast(found: RecordDict) -> None:
        found[records.METRICS] = MetricRecord({records.WEIGHT: 1e9, "accuracy": 1.0})
        found["other"] = MetricRecord({"x": 1.0})
        found["extra"] = ArrayRecord({"x": Array(np.ones(2))})

    expected, found = run([]), run([Fault("site-2", content(boast))])
    for name, value in expected.weights.items():
        assert (found.weights[name] == value).all()


# --- introduction -------------------------------------------------------------------------------


def test_two_nodes_with_one_name_end_the_run() -> None:
    fault = Fault("site-2", renamed("site-1"), records.INTRODUCE)
    with pytest.raises(RoundError, match="two nodes introduced themselves as site site-1"):
        run([fault])


@pytest.mark.parametrize("name", ["", "overall", "two\nlines", "x" * 300])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    outcome = run([Fault("site-2", renamed(name), records.INTRODUCE)])
    assert list(outcome.history[0].refused) == ["node 3"]
    assert "site-2" not in outcome.history[0].participants


@pytest.mark.parametrize(
    "trouble",
    [
        empty,
        content(lambda c: c.__setitem__(records.CONFIG, ConfigRecord({records.SITE: 3}))),
    ],
)
def test_a_node_without_a_name_is_refused(trouble: Trouble) -> None:
    outcome = run([Fault("site-2", trouble, records.INTRODUCE)])
    assert outcome.history[0].refused == {"node 3": "the reply has no site"}
    assert outcome.history[1].refused == {}


def other_study() -> Study:
    return small_study(training={"rounds": 7})


def test_a_site_with_another_study_takes_no_part_and_is_named() -> None:
    study = small_study()
    cohorts = make_cohorts(study, 3)
    sites = [*make_sites(study, cohorts[:2]), *make_sites(other_study(), cohorts[2:])]
    outcome = run_flaky(study, sites)
    assert [record.participants for record in outcome.history] == [("site-1", "site-2")] * 2
    (reason,) = outcome.history[0].refused.values()
    assert "another study" in reason


def test_sites_that_all_hold_another_study_end_the_run() -> None:
    study = small_study()
    sites = make_sites(other_study(), make_cohorts(study, 2))
    with pytest.raises(StudyError, match=r"introduction stopped.*node 2, node 3: .*another study"):
        run_flaky(study, sites)


def test_nobody_is_there() -> None:
    with pytest.raises(RoundError, match=r"0 of 1 needed sites answered: connect more sites"):
        run_flaky(small_study(), [])


# --- preprocessing and evaluation ---------------------------------------------------------------

BAD_SUMS: dict[str, Trouble] = {
    "no records": empty,
    "lost": lost,
    "NaN": not_a_number,
    "negative": scaled(-1.0),
    "wrong shape": wrong_shape,
    "levels": content(
        lambda c: c.__setitem__(records.CONFIG, ConfigRecord({records.LEVELS: "nothing"}))
    ),
    "garbage": content(garbage),
}


@pytest.mark.parametrize("name", BAD_SUMS)
def test_sums_that_cannot_be_used_cost_that_site_its_part(name: str) -> None:
    fault = Fault("site-2", BAD_SUMS[name], records.STATISTICS)
    outcome = run([fault], preprocess={"standardise": "federated"}, aggregation={"weights": "size"})
    assert list(outcome.history[0].refused) == ["site-2"]
    for record in outcome.history:
        assert record.participants == ("site-1", "site-3", "site-4")
    with pytest.raises(FedwardError, match=r"preprocessing stopped, 0 of 1.*site-4"):
        run(everywhere(BAD_SUMS[name], records.STATISTICS), aggregation={"weights": "size"})


def says(released: float) -> Trouble:
    return content(
        lambda c: c.__setitem__(records.METRICS, MetricRecord({records.RELEASED: released}))
    )


BAD_COUNTS: dict[str, Trouble] = {
    "no records": empty,
    "lost": lost,
    "NaN": not_a_number,
    "negative": scaled(-1.0),
    "wrong shape": wrong_shape,
    "wrong name": wrong_name,
    "garbage": content(garbage),
    "maybe": says(0.5),
    "refusal": refused(7, "scores are not finite"),
}


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_counts_that_cannot_be_used_are_left_out_and_reported(name: str) -> None:
    fault = Fault("site-2", BAD_COUNTS[name], records.EVALUATE)
    record = run([fault], evaluation={"min_cell": 1}).history[-1]
    assert record.refused["site-2"].startswith("evaluation: ")
    assert record.participants == tuple(f"site-{index + 1}" for index in range(SITES))
    assert set(record.evaluation) == {"site-1", "site-3", "site-4", "overall"}


def test_a_site_that_fails_twice_keeps_its_first_reason() -> None:
    record = run([Fault("site-2", lost, records.EVALUATE), Fault("site-2", not_a_number)]).history[
        -1
    ]
    assert "NaN" in record.refused["site-2"]


def test_evaluation_that_fails_everywhere_does_not_cost_the_model() -> None:
    record = run(everywhere(lost, records.EVALUATE)).history[-1]
    assert record.evaluation == {"overall": {}}
    assert len(record.refused) == SITES


def test_counts_below_the_minimum_cell_stay_at_the_site() -> None:
    record = run([], evaluation={"min_cell": 500}).history[-1]
    assert record.evaluation == {"overall": {}}
    assert record.refused == {}


def test_overall_is_computed_from_added_counts_not_from_means() -> None:
    study = small_study(evaluation={"min_cell": 1})
    cohorts = make_cohorts(study, SITES, patients=24)
    outcome = run_flaky(study, make_sites(study, cohorts))
    counts = []
    for site in make_sites(study, cohorts):
        found = site.evaluate(outcome.weights, outcome.transform, round_number=2)
        assert found is not None
        counts.append(found)
    metrics = outcome.history[-1].evaluation
    for name, expected in evaluate(sum(counts[1:], start=counts[0])).items():
        assert metrics["overall"].get(name) == expected
    sites = [metrics[f"site-{index + 1}"]["auroc"] for index in range(SITES)]
    mean = np.mean([value for value in sites if value is not None])
    assert metrics["overall"]["auroc"] != pytest.approx(mean, abs=1e-6)


def test_a_site_that_both_answers_and_refuses_does_not_count() -> None:
    def both(request: Message, reply: Message) -> list[Message]:
        return [reply, *refused(5, "no")(request, reply)]

    for record in run([Fault("site-2", both)]).history:
        assert record.refused == {"site-2": "answered twice, and not the same"}


def test_all_sites_are_evaluated_also_those_that_did_not_train() -> None:
    study = small_study(
        training={"rounds": 1},
        aggregation={"participation": 0.5},
        evaluation={"min_cell": 1},
    )
    cohorts = make_cohorts(study, 4)
    outcome = run_flaky(study, make_sites(study, cohorts), [])
    record = outcome.history[-1]
    assert len(record.participants) == 2
    assert set(record.evaluation) == {*(cohort.site for cohort in cohorts), "overall"}
