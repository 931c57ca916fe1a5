"""A site's part in a run: what it pays before it acts, what it gives away, what it keeps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedward.client.cohort import Cohort
from fedward.client.site import Site
from fedward.client.spending import Charge, MemorySpending
from fedward.client.workspace import Workspace
from fedward.common.errors import FedwardError, PrivacyError, RoundError, TrainingError
from fedward.common.metrics import evaluate
from fedward.common.preprocess import Transform, fit
from fedward.common.privacy.accounting import epsilon
from fedward.common.privacy.events import GaussianRelease, SampledGaussian
from fedward.common.privacy.randomness import Randomness, SecureRandomness, SeededRandomness
from fedward.common.study import Study
from fedward.common.table import FeatureTable
from fedward.common.tensors import Weights
from fedward.server.preparation import first_weights
from fedward.simulations.fakes import make_cohort, make_cohorts, make_sites, small_study

PRIVATE: dict[str, Any] = {
    "privacy": {"mode": "dp", "epsilon": 3.0, "delta": 1e-3},
    "preprocess": {"standardise": "federated"},
    "training": {"rounds": 3},
}


def a_site(
    study: Study, *cohorts: Cohort, randomness: Any = None, patients: int = 60, **options: Any
) -> Site:
    return Site(
        "here",
        study,
        cohorts or (make_cohort(study, "here", patients=patients, **options),),
        randomness=randomness or (lambda purpose, n: SeededRandomness(1, purpose, n)),
        workspace=Workspace(),
    )


def begin(site: Site) -> tuple[Weights, Transform]:
    study = site.study
    statistics = site.statistics() if study.preprocess.standardise == "federated" else None
    transform = fit(study, statistics)
    return first_weights(study, transform), transform


class Broken(SeededRandomness):
    """A noise source that fails when it is used."""

    def __init__(self) -> None:
        super().__init__(0)

    def uniform(self, size: int) -> NDArray[np.float64]:
        raise TrainingError("broken", hint="mend it")

    normal = uniform


def broken(_purpose: str, _number: int) -> Randomness:
    return Broken()


# --- charges ------------------------------------------------------------------------------------


def test_a_private_run_is_charged_event_by_event() -> None:
    study = small_study(**PRIVATE)
    site = a_site(study)
    plan = site.plan
    assert plan is not None
    weights, transform = begin(site)
    for number in (1, 2, 3):
        site.train(weights, transform, round_number=number, proximal_mu=0.0)
    site.evaluate(weights, transform, round_number=3)
    assert site.spending.charges == (
        Charge(0, "training", plan.statistics_event()),
        Charge(1, "training", plan.training_event()),
        Charge(2, "training", plan.training_event()),
        Charge(3, "training", plan.training_event()),
        Charge(3, "testing", plan.evaluation_event()),
    )


def test_an_open_run_is_charged_nothing() -> None:
    site = a_site(small_study(preprocess={"standardise": "federated"}))
    weights, transform = begin(site)
    site.train(weights, transform, round_number=1, proximal_mu=0.0)
    site.evaluate(weights, transform, round_number=1)
    assert site.plan is None
    assert site.spending.charges == ()


@pytest.mark.parametrize("act", ["statistics", "train", "evaluate"])
def test_an_act_that_fails_has_been_paid_for(act: str) -> None:
    study = small_study(**PRIVATE)
    weights, transform = begin(a_site(study))
    site = a_site(study, randomness=broken)
    acts: dict[str, Callable[[], object]] = {
        "statistics": site.statistics,
        "train": lambda: site.train(weights, transform, round_number=2, proximal_mu=0.0),
        "evaluate": lambda: site.evaluate(weights, transform, round_number=2),
    }
    with pytest.raises(TrainingError, match="broken"):
        acts[act]()
    assert len(site.spending.charges) == 1


@pytest.mark.parametrize("act", ["train", "evaluate"])
@pytest.mark.parametrize("value", [3e38, float("inf"), float("nan")])
def test_weights_beyond_all_use_are_refused_before_anything(act: str, value: float) -> None:
    """Whether they overflow on some patient would be an answer that nobody paid for."""
    site = a_site(small_study(**PRIVATE))
    weights, transform = begin(site)
    spent = site.spending.charges
    huge = {name: np.full_like(array, value) for name, array in weights.items()}
    extra = {"proximal_mu": 0.0} if act == "train" else {}
    with pytest.raises(TrainingError, match="beyond all use"):
        getattr(site, act)(huge, transform, round_number=1, **extra)
    assert site.spending.charges == spent


def test_a_site_does_nothing_twice_and_nothing_beyond_its_budget() -> None:
    study = small_study(**PRIVATE)
    site = a_site(study)
    weights, transform = begin(site)
    rounds = study.training.rounds
    for number in range(1, rounds + 1):
        site.train(weights, transform, round_number=number, proximal_mu=0.0)
    spent = site.spending.charges
    with pytest.raises(PrivacyError, match="done before"):
        site.train(weights, transform, round_number=1, proximal_mu=0.0)
    for number in (0, rounds + 1, -1):
        with pytest.raises(RoundError, match="does not exist"):
            site.train(weights, transform, round_number=number, proximal_mu=0.0)
    site.evaluate(weights, transform, round_number=rounds)
    with pytest.raises(PrivacyError, match="budget"):
        site.evaluate(weights, transform, round_number=1)
    with pytest.raises(PrivacyError, match=r"done before|budget|pays for no"):
        site.statistics()
    assert len(site.spending.charges) == len(spent) + 1
    plan = site.plan
    assert plan is not None
    assert epsilon(site.spending.events("training"), plan.delta) <= plan.epsilon
    assert epsilon(site.spending.events("testing"), plan.delta) <= plan.epsilon


def test_a_score_that_overflows_does_not_refuse_a_private_evaluation() -> None:
    """Deep enough, allowed weights overflow; a refusal would be an answer without noise."""
    site = a_site(small_study(**PRIVATE, model={"name": "mlp", "hidden": [64] * 6}))
    weights, transform = begin(site)
    large = {name: np.full_like(array, 1e6) for name, array in weights.items()}
    test = site.testing(transform)
    last = list(large)[-2]
    large[last][0, ::2] *= -1.0  # infinite minus infinite
    assert not np.isfinite(site.scores(large, test)).all()
    counts = site.evaluate(large, transform, round_number=1)
    assert counts is not None
    assert all(np.isfinite(cell).all() for cell in counts.cells.values())


def test_preprocessing_is_frozen_for_a_run() -> None:
    site = a_site(small_study(**PRIVATE))
    weights, transform = begin(site)
    site.train(weights, transform, round_number=1, proximal_mu=0.0)
    first = transform.numeric[0]
    moved = first.model_copy(update={"deviation": first.deviation * 2})
    other = transform.model_copy(update={"numeric": (moved, *transform.numeric[1:])})
    with pytest.raises(RoundError, match="another preprocessing"):
        site.train(weights, other, round_number=2, proximal_mu=0.0)


def test_statistics_that_nothing_was_set_aside_for_are_refused_and_not_charged() -> None:
    study = small_study(privacy=PRIVATE["privacy"])
    site = a_site(study)
    with pytest.raises(PrivacyError, match="pays for no statistics"):
        site.statistics()
    assert site.spending.charges == ()


def test_events_are_by_group_and_up_to_a_round() -> None:
    plan = a_site(small_study(**PRIVATE)).plan
    assert plan is not None
    one, two = plan.training_event(), plan.evaluation_event()
    spending = MemorySpending(plan, (Charge(1, "training", one),))
    spending.charge(1, "testing", two)
    spending.charge(2, "training", one)
    assert spending.events("training") == (one, one)
    assert spending.events("training", until=1) == (one,)
    assert spending.events("training", until=0) == ()
    assert spending.events("testing") == (two,)


@given(
    number=st.integers(0, 1000),
    group=st.sampled_from(["training", "testing"]),
    sigma=st.floats(0.1, 100.0),
)
def test_a_charge_survives_being_written_down(number: int, group: Any, sigma: float) -> None:
    for event in (SampledGaussian(0.25, sigma, 3), GaussianRelease(sigma, 2, "statistics")):
        charge = Charge(number, group, event)
        assert Charge.from_dict(charge.to_dict()) == charge


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"round": "x", "group": "training", "event": {}},
        {"round": 1, "group": "training", "event": {"kind": "unheard-of"}},
        {"round": 1, "group": "training", "event": None},
        {"round": 1, "group": "nobody", "event": SampledGaussian(0.1, 1.0, 5)},
    ],
)
def test_a_charge_that_cannot_be_read_is_refused(data: dict[str, Any]) -> None:
    if isinstance(data.get("event"), SampledGaussian):
        data = {**Charge(1, "training", data["event"]).to_dict(), "group": "nobody"}
    with pytest.raises(PrivacyError):
        Charge.from_dict(data)


# --- what leaves --------------------------------------------------------------------------------


def test_training_gives_weights_of_the_same_form_and_others_than_it_got() -> None:
    site = a_site(small_study())
    weights, transform = begin(site)
    after = site.train(weights, transform, round_number=1, proximal_mu=0.0)
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
        k: (v.shape, v.dtype) for k, v in weights.items()
    }
    assert any((after[k] != weights[k]).any() for k in weights)


@pytest.mark.parametrize("changes", [{}, PRIVATE], ids=["open", "private"])
def test_same_randomness_same_update_and_another_round_another(changes: dict[str, Any]) -> None:
    study = small_study(**changes)
    weights, transform = begin(a_site(study))

    def update(number: int) -> bytes:
        after = a_site(study).train(weights, transform, round_number=number, proximal_mu=0.0)
        return b"".join(value.tobytes() for value in after.values())

    assert update(1) == update(1)
    assert update(1) != update(2)


def test_private_training_takes_the_plans_steps_and_expected_batch() -> None:
    study = small_study(**{**PRIVATE, "training": {"rounds": 2, "local_epochs": 2}})
    site = a_site(study, patients=64)  # 48 train, 16 test
    assert site.plan is not None
    assert site.plan.steps_per_round == 12
    assert site.plan.expected_batch == study.training.batch_size
    assert site.plan.sampling_probability == pytest.approx(8 / 48)


def test_counts_are_those_of_the_test_patients() -> None:
    study = small_study(evaluation={"min_cell": 1})
    site = a_site(study)
    weights, transform = begin(site)
    counts = site.evaluate(weights, transform, round_number=1)
    assert counts is not None
    test = site.testing(transform)
    assert len(test) == 15
    assert counts.cells["hist"].sum(axis=1).tolist() == [
        float((test.target == 0).sum()),
        float((test.target == 1).sum()),
    ]
    scores = site.scores(weights, test)[:, 0]
    accuracy = float(((scores >= 0.5) == (test.target.numpy() == 1)).mean())
    assert evaluate(counts)["accuracy"] == pytest.approx(accuracy)


def test_nothing_leaves_below_the_minimum_cell() -> None:
    site = a_site(small_study(evaluation={"min_cell": 10}), patients=32)
    weights, transform = begin(site)
    assert site.evaluate(weights, transform, round_number=1) is None


def test_private_counts_carry_noise_and_count_a_patient_once() -> None:
    study = small_study(**PRIVATE)
    cohort = make_cohort(study, "here", patients=60, rows_per_patient=5)
    quiet = a_site(study, cohort, randomness=lambda _p, _n: _Silent())
    weights, transform = begin(a_site(study, cohort))
    counts = quiet.evaluate(weights, transform, round_number=1)
    assert counts is not None
    assert counts.cells["hist"].sum() == pytest.approx(15.0)  # patients, not rows
    noisy = a_site(study, cohort).evaluate(weights, transform, round_number=1)
    assert noisy is not None
    assert (noisy.cells["hist"] != counts.cells["hist"]).all()


class _Silent(SeededRandomness):
    def __init__(self) -> None:
        super().__init__(0)

    def normal(self, size: int) -> NDArray[np.float64]:
        return np.zeros(size)


def test_statistics_of_several_cohorts_are_their_sum() -> None:
    study = small_study(preprocess={"standardise": "federated"}, evaluation={"min_cell": 1})
    cohorts = make_cohorts(study, 3)
    pooled = a_site(study, *cohorts).statistics()
    single = [site.statistics() for site in make_sites(study, cohorts)]
    for name in ("patients", "count", "total", "square"):
        assert np.allclose(getattr(pooled, name), sum(getattr(one, name) for one in single))


# --- preprocessing ------------------------------------------------------------------------------


def test_what_is_fitted_per_site_stays_so_in_a_pooled_site() -> None:
    study = small_study(preprocess={"standardise": "site"})
    cohorts = make_cohorts(study, 3, patients=80)
    site, transform = a_site(study, *cohorts), fit(study)
    train, test = site.training(transform), site.testing(transform)
    start = 0
    for cohort in cohorts:
        own = cohort.training()
        rows = np.arange(start, start + len(own))
        start += len(own)
        values = train.inputs.take(rows).numpy()
        np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=1e-4)
        np.testing.assert_allclose(values.std(axis=0), 1.0, atol=1e-3)
    assert len(train) == start
    assert len(test) == sum(int(cohort.test.sum()) for cohort in cohorts)


def test_test_patients_do_not_move_the_standardisation() -> None:
    study = small_study(preprocess={"standardise": "site"})
    cohort = make_cohort(study, "here", patients=60)
    table = cohort.features
    assert isinstance(table, FeatureTable)
    moved = table.numeric.copy()
    moved[cohort.test] += 3.0
    other = Cohort(
        "here",
        FeatureTable(moved, table.codes, table.levels),
        cohort.target,
        cohort.patient,
        cohort.test,
    )
    first = a_site(study, cohort).training(fit(study))
    second = a_site(study, other).training(fit(study))
    rows = np.arange(len(first))
    assert (first.inputs.take(rows) == second.inputs.take(rows)).all()


def test_rows_are_prepared_again_only_for_another_transform() -> None:
    study = small_study(preprocess={"standardise": "federated"})
    site = a_site(study)
    one = fit(study, site.statistics())
    other = fit(study, a_site(study, make_cohort(study, "there", shift=1.0)).statistics())
    for rows in (site.training, site.testing):
        first = rows(one)
        assert rows(Transform.from_json(one.to_json())) is first
        assert rows(other) is not first


# --- what an error says -------------------------------------------------------------------------


def failing() -> list[tuple[Study, dict[str, Any]]]:
    return [
        (small_study(**PRIVATE), {"patients": 7}),  # batch larger than the site
        (small_study(**PRIVATE), {"patients": 1}),
        (
            small_study(privacy={**PRIVATE["privacy"], "delta": 0.05}),
            {"patients": 37},
        ),
        (
            small_study(privacy={**PRIVATE["privacy"], "noise_multiplier": 0.3}),
            {"patients": 37},
        ),
    ]


@pytest.mark.parametrize("case", range(4))
def test_refusals_do_not_give_the_number_of_patients_away(case: int) -> None:
    study, options = failing()[case]
    cohort = make_cohort(study, "here", **options)
    with pytest.raises(FedwardError) as caught:
        a_site(study, cohort)
    numbers = {int(n) for n in re.findall(r"(?<![\d.])\d+(?![\d.])", str(caught.value))}
    allowed = {round(study.privacy.epsilon or 0)}
    counts = {cohort.patients, cohort.training().patients, cohort.testing().patients}
    assert not (numbers - allowed) & counts


def test_a_diverging_site_says_nothing_about_its_data() -> None:
    study = small_study(
        training={"learning_rate": 1e38, "local_epochs": 30}, model={"name": "mlp", "hidden": [4]}
    )
    site = a_site(study)
    weights, transform = begin(site)
    with pytest.raises(TrainingError) as caught:
        site.train(weights, transform, round_number=1, proximal_mu=0.0)
    assert not re.search(r"\d", str(caught.value))


# --- randomness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["statistics", "train", "evaluate"])
@pytest.mark.parametrize("seeded", [True, False])
def test_results_for_release_are_never_hidden_by_noise_that_can_be_repeated(
    act: str, seeded: bool
) -> None:
    study = small_study(**PRIVATE)
    weights, transform = begin(a_site(study))
    site = Site(
        "here",
        study,
        (make_cohort(study, "here", patients=60),),
        randomness=lambda p, n: SeededRandomness(1, p, n) if seeded else SecureRandomness(),
        workspace=Workspace(),
        for_release=True,
    )
    acts: dict[str, Callable[[], object]] = {
        "statistics": site.statistics,
        "train": lambda: site.train(weights, transform, round_number=1, proximal_mu=0.0),
        "evaluate": lambda: site.evaluate(weights, transform, round_number=1),
    }
    if seeded:
        with pytest.raises(PrivacyError, match="can be repeated"):
            acts[act]()
        assert site.spending.charges == (), "nothing happened, so nothing is paid"
    else:
        acts[act]()
        assert len(site.spending.charges) == 1


def test_without_noise_a_repeatable_order_of_rows_may_be_released() -> None:
    study = small_study()
    site = a_site(study)
    weights, transform = begin(site)
    released = Site(
        "here",
        study,
        (make_cohort(study, "here", patients=60),),
        randomness=lambda purpose, n: SeededRandomness(1, purpose, n),
        workspace=Workspace(),
        for_release=True,
    )
    for key, value in site.train(weights, transform, round_number=1, proximal_mu=0.0).items():
        again = released.train(weights, transform, round_number=1, proximal_mu=0.0)
        assert (again[key] == value).all()
