"""A site that is charged to a ledger: admitted when it is made, paid before it looks at a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedward.client.cohort import Cohort
from fedward.client.ledger import Caps, Ledger, LedgerSpending, ledger_spending, report
from fedward.client.manifest import manifest_of
from fedward.client.site import Site
from fedward.client.spending import MemorySpending, Spending
from fedward.client.workspace import Workspace
from fedward.common.errors import PrivacyError, TrainingError
from fedward.common.preprocess import fit
from fedward.common.privacy.accounting import epsilon
from fedward.common.privacy.plan import make_plan
from fedward.common.privacy.randomness import Randomness, SecureRandomness
from fedward.common.study import Study, study_hash
from fedward.server.preparation import first_weights
from fedward.simulations.fakes import make_cohort, small_study

PRIVATE: dict[str, Any] = {
    "privacy": {"mode": "dp", "epsilon": 3.0, "delta": 1e-3},
    "preprocess": {"standardise": "federated"},
    "training": {"rounds": 3},
}
KEY = b"k" * 32
CAPS = Caps(4.0, 4.0, 1e-3)


def make(
    study: Study,
    ledger: Ledger,
    run: str = "1",
    caps: Caps = CAPS,
    cohort: Cohort | None = None,
    randomness: Callable[[str, int], Randomness] = lambda _p, _n: SecureRandomness(),
) -> Site:
    cohort = cohort or make_cohort(study, "here", patients=60)
    members = manifest_of(study, cohort, KEY).members
    return Site(
        "here",
        study,
        (cohort,),
        randomness=randomness,
        workspace=Workspace(),
        spending=ledger_spending(ledger, study_hash(study), run, members, caps, "test"),
        for_release=True,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def play(site: Site) -> None:
    study = site.study
    transform = fit(study, site.statistics())
    weights = first_weights(study, transform)
    for number in range(1, study.training.rounds + 1):
        site.train(weights, transform, round_number=number, proximal_mu=0.0)
    site.evaluate(weights, transform, round_number=study.training.rounds)


def test_a_whole_run_is_on_record_as_a_simulation_would_count_it(ledger: Ledger) -> None:
    study = small_study(**PRIVATE)
    site = make(study, ledger)
    play(site)
    assert site.plan is not None
    memory = MemorySpending(site.plan)
    for charge in site.spending.charges:
        memory.charge(charge.round, charge.group, charge.event)
    for group in ("training", "testing"):
        for until in (0, 1, 3, None):
            assert site.spending.events(group, until=until) == memory.events(group, until=until)
    (cohort,) = report(ledger, 1e-3).cohorts
    totals = site.plan.total(), site.plan.evaluation_total()
    assert cohort.spent == pytest.approx(max(epsilon(total, 1e-3) for total in totals))
    assert cohort.spent <= 3.0


def test_a_study_that_does_not_fit_is_refused_before_its_first_round(ledger: Ledger) -> None:
    study = small_study(**PRIVATE)
    with pytest.raises(PrivacyError, match="is left"):
        make(study, ledger, caps=Caps(4.0, 2.9, 1e-3))
    assert ledger.book.runs == {}
    make(study, ledger)


def test_an_act_that_fails_has_been_paid_for_on_the_disk(ledger: Ledger, tmp_path: Path) -> None:
    study = small_study(**PRIVATE)

    class Broken(SecureRandomness):
        def normal(self, size: int) -> Any:
            with Ledger(tmp_path / "ledger.sqlite") as other:  # what a killed process leaves
                seen.append(len(other.reservations(study_hash(study), "1")))
            raise TrainingError("broken", hint="mend it")

    seen: list[int] = []
    site = make(study, ledger, randomness=lambda _p, _n: Broken())
    with pytest.raises(TrainingError, match="broken"):
        site.statistics()
    assert seen == [1], "it was on the disk before a number was drawn"
    again = make(study, ledger)
    with pytest.raises(PrivacyError, match="interrupted here; its cost is spent"):
        again.statistics()


def test_a_restarted_process_knows_what_the_one_before_paid(ledger: Ledger) -> None:
    study = small_study(**PRIVATE)
    first = make(study, ledger)
    transform = fit(study, first.statistics())
    weights = first_weights(study, transform)
    first.train(weights, transform, round_number=1, proximal_mu=0.0)
    assert isinstance(first.spending, LedgerSpending)
    assert first.spending.commit("c" * 64) == (3, 4)
    assert first.spending.pending == ()
    again = make(study, ledger)
    assert again.spending.charges == first.spending.charges
    with pytest.raises(PrivacyError, match="done before"):
        again.train(weights, transform, round_number=1, proximal_mu=0.0)
    again.train(weights, transform, round_number=2, proximal_mu=0.0)


def test_another_cohort_cannot_slip_into_a_run(ledger: Ledger) -> None:
    study = small_study(**PRIVATE)
    make(study, ledger)
    other = make_cohort(study, "here", patients=60, seed=5)
    with pytest.raises(PrivacyError, match="another cohort"):
        make(study, ledger, cohort=other)


def test_an_open_study_is_on_record_and_charged_nothing(ledger: Ledger) -> None:
    study = small_study(preprocess={"standardise": "federated"})
    site = make(study, ledger)
    play(site)
    assert site.spending.charges == ()
    (cohort,) = report(ledger, 1e-3).cohorts
    assert cohort.unaccounted


@pytest.mark.parametrize("kind", ["memory", "ledger"])
def test_every_spending_keeps_the_contract(kind: str, ledger: Ledger) -> None:
    study = small_study(**PRIVATE)
    cohort = make_cohort(study, "here", patients=60)
    plan = make_plan(study, cohort.training().patients)
    members = manifest_of(study, cohort, KEY).members
    spending: Spending = (
        MemorySpending(plan)
        if kind == "memory"
        else ledger_spending(ledger, study_hash(study), "1", members, CAPS, "test")(plan)
    )
    spending.charge(0, "training", plan.statistics_event())
    for number in (1, 2, 3):
        spending.charge(number, "training", plan.training_event())
    spending.charge(3, "testing", plan.evaluation_event())
    before = spending.charges
    assert [(charge.round, charge.group) for charge in before] == [
        (0, "training"),
        (1, "training"),
        (2, "training"),
        (3, "training"),
        (3, "testing"),
    ]
    for number, group, event in (
        (0, "training", plan.statistics_event()),
        (1, "training", plan.training_event()),
        (4, "training", plan.training_event()),
        (1, "testing", plan.evaluation_event()),
        (1, "testing", plan.training_event()),
    ):
        with pytest.raises(PrivacyError):
            spending.charge(number, group, event)  # type: ignore[arg-type]
    assert spending.charges == before
    assert spending.events("training", until=1) == (plan.statistics_event(), plan.training_event())
