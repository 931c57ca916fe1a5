"""A plan keeps the study's promise, runs what it accounts, and refuses what it cannot keep."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.errors import PrivacyError
from fedward.common.privacy import PrivacyPlan, SeededRandomness, make_plan
from fedward.common.privacy.accounting import epsilon, spent
from fedward.common.privacy.events import GaussianRelease, PrivacyEvent, SampledGaussian, compress
from fedward.common.privacy.plan import evaluations, needs_statistics
from fedward.common.study import Study, parse_study

TEMPLATE = """
[study]
name = "plan"
title = "A plan"
purpose = "Test the plan"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "died"
labels = ["no", "yes"]
[data]
modality = "tabular"
[[data.features]]
name = "age"
min = 0.0
max = 120.0
missing = "{missing}"
[preprocess]
standardise = "{standardise}"
impute = "{impute}"
[model]
name = "logistic"
[training]
rounds = {rounds}
{length}
batch_size = {batch}
learning_rate = 0.1
[algorithm]
name = "fedavg"
[privacy]
{privacy}
[aggregation]
weights = "{weights}"
[evaluation]
every = {every}
"""


def a_study(
    privacy: str = "epsilon = 3.0\ndelta = 1e-3",
    *,
    mode: str = "dp",
    rounds: int = 15,
    length: str = "local_steps = 100",
    batch: int = 4,
    weights: str = "equal",
    standardise: str = "bounds",
    impute: str = "bounds",
    missing: str = "refuse",
    every: int = 0,
) -> Study:
    return parse_study(
        TEMPLATE.format(
            privacy=f'mode = "{mode}"\n{privacy}',
            rounds=rounds,
            length=length,
            batch=batch,
            weights=weights,
            standardise=standardise,
            impute=impute,
            missing=missing,
            every=every,
        )
    )


def test_honest_epsilon_of_a_small_site() -> None:
    noise = "delta = 1e-2\nnoise_multiplier = 2.734\n"
    plan = make_plan(a_study(noise + "epsilon = 5.9"), patients=30)
    cost = spent(plan.total(), plan.delta)
    assert cost.epsilon == pytest.approx(5.80, abs=0.005)
    assert plan.total() == (SampledGaussian(4 / 30, 2.734, 1500),)
    with pytest.raises(PrivacyError, match=r"cost epsilon = 5\.80.* study's 1: .*\d\.\d\d"):
        make_plan(a_study(noise + "epsilon = 1.0"), patients=30)


def test_the_noise_that_a_refusal_names_fits() -> None:
    noise = "epsilon = 2.0\ndelta = 1e-2\nnoise_multiplier = "
    with pytest.raises(PrivacyError) as refusal:
        make_plan(a_study(noise + "1.0"), patients=30)
    named = refusal.value.hint.split("at least ")[1].split(",")[0]
    plan = make_plan(a_study(noise + named), patients=30)
    assert 1.9 < epsilon(plan.total(), plan.delta) <= 2.0


@settings(max_examples=6, deadline=None)
@given(
    patients=st.integers(10, 900),
    budget=st.floats(0.5, 8.0),
    weights=st.sampled_from(["equal", "size"]),
    every=st.integers(0, 7),
)
def test_both_kinds_of_patients_get_what_was_promised(
    patients: int, budget: float, weights: str, every: int
) -> None:
    study = a_study(f"epsilon = {budget}\ndelta = 1e-3", rounds=6, weights=weights, every=every)
    plan = make_plan(study, patients)
    assert 0.98 * budget <= epsilon(plan.total(), plan.delta) <= budget
    assert 0.98 * budget <= epsilon(plan.evaluation_total(), plan.delta) <= budget


def test_events_of_the_rounds_are_the_total() -> None:
    plan = make_plan(a_study(weights="size", every=4), patients=80)
    released: list[PrivacyEvent] = [plan.statistics_event(), *[plan.training_event()] * plan.rounds]
    assert compress(released) == compress(plan.total())
    assert compress([plan.evaluation_event()] * plan.evaluations) == plan.evaluation_total()


def test_statistics_take_their_share() -> None:
    study = a_study("epsilon = 4.0\ndelta = 1e-3\nstatistics_share = 0.25", weights="size")
    plan = make_plan(study, patients=100)
    alone = epsilon([plan.statistics_event()], 0.25e-3)
    assert 0.98 <= alone <= 1.0
    without = make_plan(a_study("epsilon = 4.0\ndelta = 1e-3"), patients=100)
    assert without.noise_multiplier < plan.noise_multiplier
    assert epsilon(plan.total(), plan.delta) <= 4.0
    greedy = dataclasses.replace(plan, noise_multiplier=without.noise_multiplier)
    assert epsilon(greedy.total(), plan.delta) > 4.0
    assert without.statistics_noise_multiplier is None
    with pytest.raises(PrivacyError, match="no statistics"):
        without.statistics_event()


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"weights": "size"}, True),
        ({"standardise": "federated"}, True),
        ({"impute": "federated"}, False),  # nothing may be missing, so nothing is imputed
        ({"impute": "federated", "missing": "impute"}, True),
    ],
)
def test_what_needs_statistics(changes: dict[str, str], needed: bool) -> None:
    assert needs_statistics(a_study(**changes)) is needed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("every", "rounds", "expected"), [(0, 15, 1), (1, 15, 15), (5, 15, 3), (4, 15, 4), (20, 15, 1)]
)
def test_number_of_evaluations(every: int, rounds: int, expected: int) -> None:
    assert evaluations(a_study(every=every, rounds=rounds)) == expected


@pytest.mark.parametrize(
    ("length", "patients", "steps"),
    [("local_steps = 7", 50, 7), ("local_epochs = 1", 50, 13), ("local_epochs = 3", 52, 39)],
)
def test_steps_and_sampling(length: str, patients: int, steps: int) -> None:
    plan = make_plan(a_study(length=length, rounds=2), patients)
    assert plan.steps_per_round == steps
    assert plan.sampling_probability == 4 / patients
    assert plan.expected_batch == 4
    assert plan.total() == (SampledGaussian(4 / patients, plan.noise_multiplier, 2 * steps),)


def test_whole_site_in_every_step() -> None:
    plan = make_plan(a_study(batch=20, rounds=2, length="local_steps = 5"), patients=20)
    assert plan.sampling_probability == 1.0
    assert 2.94 <= epsilon([GaussianRelease(plan.noise_multiplier, 10)], 1e-3) <= 3.0


def test_records_are_units_of_one_row() -> None:
    budget = "epsilon = 3.0\ndelta = 1e-3\nunit = 'record'\nmax_rows_per_patient = 5"
    assert make_plan(a_study(budget), patients=60).max_rows_per_patient == 1


@pytest.mark.parametrize(
    ("study", "patients", "problem"),
    [
        (a_study("", mode="none"), 50, "promises no privacy"),
        (a_study(batch=1), 0, "fewer than two"),
        (a_study(batch=1), 1, "fewer than two"),
        (a_study(batch=51), 50, "batch_size is larger"),
        (a_study("epsilon = 3.0\ndelta = 0.03"), 50, "delta is too large"),
        (a_study("epsilon = 1e-4\ndelta = 1e-5", rounds=100_000), 50, "cannot be reached"),
        (a_study("epsilon = 3.0\ndelta = 1e-14"), 50, "delta is out of range"),
        (a_study("epsilon = 500.0\ndelta = 1e-5"), 50, "epsilon is out of range"),
    ],
)
def test_refusals_say_what_but_not_how_many(study: Study, patients: int, problem: str) -> None:
    with pytest.raises(PrivacyError, match=problem) as refusal:
        make_plan(study, patients)
    words = str(refusal.value).replace("=", " ").split()
    assert str(patients) not in words
    assert refusal.value.exit_code == 6


def a_plan(**changes: object) -> PrivacyPlan:
    plan = make_plan(a_study(), patients=40)
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def test_what_runs_is_what_is_accounted() -> None:
    plan = a_plan(noise_multiplier=2.5, max_grad_norm=0.4, sampling_probability=0.2)
    event = plan.training_event()
    batches = [plan.sample(200, SeededRandomness(1, step)) for step in range(500)]
    rate = sum(len(batch) for batch in batches) / (200 * 500)
    assert rate == pytest.approx(event.sampling_probability, rel=0.05)
    bound = (plan.clip_factors(np.array([1e-3, 7.0])) * [1e-3, 7.0]).max()
    noise = plan.privatise(np.zeros(20_000), SeededRandomness(2)) * plan.expected_batch
    assert noise.std() / bound == pytest.approx(event.noise_multiplier, rel=0.03)
    assert plan.privatise(np.zeros(5), SeededRandomness(2)).shape == (5,)


def test_rows_of_a_patient_are_limited_by_the_plan() -> None:
    plan = a_plan(max_rows_per_patient=2)
    patient = np.repeat(np.arange(2), [5, 1])
    kept = plan.sample_rows(patient, SeededRandomness(0))
    assert np.bincount(patient[kept]).tolist() == [2, 1]


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_plan().noise_multiplier = 0.0  # type: ignore[misc]
