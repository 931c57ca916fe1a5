"""The ledger's rules: what is admitted, reserved, committed, freed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedward.client.ledger import Caps, Ledger, Members, Totals, plan_hash, report
from fedward.client.ledger.admission import checked_epsilon
from fedward.client.ledger.entries import Closed, entry_from_dict, entry_to_dict
from fedward.client.telling import reason_to_tell
from fedward.common.errors import PolicyError, PrivacyError, StateError
from fedward.common.privacy.accounting import epsilon, spent
from fedward.common.privacy.events import GaussianRelease, SampledGaussian

DELTA = 1e-3
ROUND = SampledGaussian(0.2, 2.0, 5)
COUNTS = GaussianRelease(6.0, 1, "evaluation")
WHOLE = Totals((SampledGaussian(0.2, 2.0, 15),), (COUNTS,))
ALONE = epsilon(WHOLE.training, DELTA)
TWICE = epsilon((*WHOLE.training, *WHOLE.training), DELTA)
CAPS = Caps(epsilon_per_study=4.0, epsilon_total=4.0, delta=DELTA)


def people(*numbers: int) -> frozenset[bytes]:
    return frozenset(bytes([number]) * 32 for number in numbers)


EVERYBODY = Members("mrn", "patient", people(1, 2, 3, 4), people(5, 6))


class Desk:
    """A ledger, and the shortest words for what is done to it."""

    def __init__(self, path: Path, members: Members = EVERYBODY) -> None:
        self.ledger = Ledger(path, clock=lambda: datetime(2026, 1, 5, tzinfo=UTC))
        self.cohort = self.ledger.add_cohort(members)

    def admit(self, study: str = "a", run: str = "1", **changes: Any) -> None:
        options: dict[str, Any] = {"plan": "d" * 64, "totals": WHOLE, "caps": CAPS, "code": "test"}
        cohort = changes.pop("cohort", self.cohort)
        self.ledger.admit(study * 64, run, cohort, **{**options, **changes})

    def reserve(self, number: int, study: str = "a", run: str = "1", **changes: Any) -> int:
        options = {
            "round_number": number,
            "group": "training",
            "event": ROUND,
            "cohort": self.cohort,
            "plan": "d" * 64,
            "code": "test",
        }
        return self.ledger.reserve(study * 64, run, **{**options, **changes})

    def entries(self) -> int:
        return self.ledger.head.length


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    made = Desk(tmp_path / "ledger.sqlite")
    yield made
    made.ledger.close()


# --- admitting ----------------------------------------------------------------------------------


def test_a_second_study_that_would_pass_the_cap_is_refused_and_told_what_is_left(
    desk: Desk,
) -> None:
    caps = replace(CAPS, epsilon_total=(ALONE + TWICE) / 2)
    desk.admit("a", caps=caps)
    before = desk.entries()
    with pytest.raises(PrivacyError) as caught:
        desk.admit("b", caps=caps)
    assert f"epsilon = {TWICE:.2f}" in str(caught.value)
    assert f"{caps.epsilon_total - ALONE:.2f} of the site's" in str(caught.value)
    assert desk.entries() == before, "nothing was set aside"
    assert not any(c.isdigit() for c in reason_to_tell(caught.value)), "the server learns nothing"
    desk.admit("b", caps=replace(caps, epsilon_total=TWICE + 0.01))


def test_what_is_set_aside_counts_before_anything_is_spent_and_is_free_again_after(
    desk: Desk,
) -> None:
    caps = replace(CAPS, epsilon_total=(ALONE + TWICE) / 2)
    desk.admit("a", caps=caps)
    with pytest.raises(PrivacyError, match="is left"):
        desk.admit("b", caps=caps)
    desk.ledger.end_run("a" * 64, "1", "stopped")
    desk.admit("b", caps=caps)


def test_what_was_reserved_is_never_free_again(desk: Desk) -> None:
    three = epsilon((*WHOLE.training, *(ROUND,) * 3), DELTA)
    caps = replace(CAPS, epsilon_total=three - 0.01)
    desk.admit("a", caps=caps)
    for number in (1, 2, 3):
        desk.reserve(number)
    desk.ledger.end_run("a" * 64, "1", "failed")
    with pytest.raises(PrivacyError, match="is left"):
        desk.admit("b", caps=caps)
    (cohort,) = report(desk.ledger, DELTA).cohorts
    assert cohort.spent == pytest.approx(epsilon((ROUND,) * 3, DELTA))
    assert cohort.set_aside == cohort.spent


def test_one_study_has_a_cap_of_its_own_over_all_its_runs(desk: Desk) -> None:
    caps = replace(CAPS, epsilon_per_study=(ALONE + TWICE) / 2)
    desk.admit("a", "1", caps=caps)
    with pytest.raises(PrivacyError, match=r"all its runs together; the site's policy allows"):
        desk.admit("a", "2", caps=caps)
    desk.admit("b", "2", caps=caps)
    with pytest.raises(PrivacyError, match="for one study"):
        desk.admit("c", caps=replace(caps, epsilon_per_study=ALONE - 0.01))


def test_a_study_is_read_at_the_delta_of_the_cap(desk: Desk) -> None:
    at_smaller = epsilon(WHOLE.training, 1e-6)
    assert at_smaller > ALONE + 0.5
    with pytest.raises(PrivacyError, match=f"epsilon = {at_smaller:.2f} at delta = 1e-06"):
        desk.admit(caps=Caps(at_smaller - 0.01, 10.0, 1e-6))
    desk.admit(caps=Caps(at_smaller + 0.01, 10.0, 1e-6))


def test_the_cost_is_that_of_both_accountants() -> None:
    assert checked_epsilon(WHOLE.training, DELTA) == spent(WHOLE.training, DELTA).epsilon
    assert checked_epsilon((GaussianRelease(0.01),), DELTA) > 100


def test_what_protects_nobody_is_refused(desk: Desk) -> None:
    with pytest.raises(PrivacyError, match="more than 100"):
        desk.admit(totals=Totals((GaussianRelease(0.01),)))


def test_admitting_again_is_without_effect_only_for_the_same(desk: Desk) -> None:
    desk.admit()
    before = desk.entries()
    desk.admit()
    assert desk.entries() == before
    with pytest.raises(PrivacyError, match="another cohort or another privacy plan"):
        desk.admit(plan="e" * 64)
    other = desk.ledger.add_cohort(Members("mrn", "patient", people(9), people()))
    with pytest.raises(PrivacyError, match="another cohort or another privacy plan"):
        desk.admit(cohort=other)


def test_a_run_that_was_closed_is_taken_up_again_where_it_was(desk: Desk) -> None:
    desk.admit()
    desk.reserve(1)
    desk.ledger.end_run("a" * 64, "1", "stopped")
    with pytest.raises(PrivacyError, match="nothing is set aside"):
        desk.reserve(2)
    desk.admit(caps=replace(CAPS, epsilon_total=ALONE + 0.001))  # the round is not counted twice
    with pytest.raises(PrivacyError, match="interrupted here"):
        desk.reserve(1)
    desk.reserve(2)


def test_a_cap_that_was_lowered_holds_for_a_run_that_goes_on(desk: Desk) -> None:
    desk.admit()
    desk.reserve(1)
    before = desk.entries()
    with pytest.raises(PrivacyError, match="allows"):
        desk.admit(caps=replace(CAPS, epsilon_per_study=ALONE / 2, epsilon_total=ALONE / 2))
    assert desk.entries() == before
    desk.admit(caps=replace(CAPS, epsilon_total=ALONE + 0.001))
    assert desk.entries() == before + 1, "who changed the caps is on record"


def test_a_closed_run_does_not_come_back_when_its_place_is_taken(desk: Desk) -> None:
    caps = replace(CAPS, epsilon_total=(ALONE + TWICE) / 2)
    desk.admit("a", caps=caps)
    desk.ledger.end_run("a" * 64, "1", "stopped")
    desk.admit("b", caps=caps)
    with pytest.raises(PrivacyError, match="is left"):
        desk.admit("a", caps=caps)


def test_an_unknown_cohort_is_refused(desk: Desk) -> None:
    with pytest.raises(StateError, match="does not know this cohort"):
        desk.admit(cohort="f" * 64)


def test_a_study_without_a_promise_is_on_record_and_costs_what_cannot_be_counted(
    desk: Desk,
) -> None:
    desk.admit(totals=Totals(), private=False)
    with pytest.raises(PrivacyError, match="does not hold"):
        desk.reserve(1)
    (cohort,) = report(desk.ledger, DELTA).cohorts
    assert cohort.unaccounted
    assert cohort.set_aside == 0.0


def test_runs_without_a_promise_are_counted_and_those_with_one_are_not(desk: Desk) -> None:
    plain = {"totals": Totals(), "private": False, "most_runs": 1}
    desk.admit(run="1", **plain)
    desk.admit(run="1", **plain)
    desk.ledger.end_run("a" * 64, "1", "failed")
    with pytest.raises(PolicyError, match="takes part in no more runs"):
        desk.admit(run="2", **plain)
    desk.admit(run="1", **plain)  # resumed
    desk.admit("b", run="1", **plain)  # another study
    desk.admit(run="2", **{**plain, "most_runs": 2})
    for run in ("1", "2"):
        desk.admit("c", run=run, most_runs=1)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_a_run_that_is_over_never_comes_back(private: bool, paused: bool, desk: Desk) -> None:
    options: dict[str, Any] = {} if private else {"totals": Totals(), "private": False}
    options |= {"most_runs": 2}
    desk.admit(**options)
    if paused:
        desk.ledger.end_run("a" * 64, "1", "paused")
    desk.ledger.end_run("a" * 64, "1", "over", for_good=True)
    before = desk.entries()
    for again in ("over", "paused"):  # what is over stays over, however often that is said
        desk.ledger.end_run("a" * 64, "1", again, for_good=again == "over")
        desk.ledger.end_run("a" * 64, "2", again, for_good=True)  # never admitted
    assert desk.entries() == before
    with Ledger(desk.ledger._store._path) as reopened:
        desk.ledger.close()
        desk.ledger = reopened
        with pytest.raises(StateError, match="over at this site, for good"):
            desk.admit(**options, caps=replace(CAPS, epsilon_total=50.0))
        assert desk.entries() == before
        desk.admit(run="2", **options)
        (cohort,) = report(desk.ledger, DELTA).cohorts
        assert [run.state for run in cohort.runs] == ["over", "open"]
        if not private:
            with pytest.raises(PolicyError, match="no more runs"):
                desk.admit(run="3", **options)


def test_an_entry_of_before_runs_could_be_over_for_good_is_read_as_a_pause() -> None:
    entry = entry_from_dict("close", {"study": "a" * 64, "run": "1", "outcome": "over"})
    assert isinstance(entry, Closed)
    assert not entry.for_good


def test_a_cohort_is_made_known_once(desk: Desk) -> None:
    before = desk.entries()
    assert desk.ledger.add_cohort(EVERYBODY) == desk.cohort
    assert desk.entries() == before


def test_a_patient_does_not_train_and_test() -> None:
    with pytest.raises(PrivacyError, match="both trains and tests"):
        Members("mrn", "patient", people(1, 2), people(2))


# --- reserving ----------------------------------------------------------------------------------


def test_nothing_is_reserved_without_admission(desk: Desk) -> None:
    with pytest.raises(PrivacyError, match="nothing is set aside"):
        desk.reserve(1)
    desk.admit()
    for changes in ({"run": "2"}, {"study": "b"}, {"plan": "e" * 64}, {"cohort": "f" * 64}):
        with pytest.raises(PrivacyError, match="nothing is set aside"):
            desk.reserve(1, **changes)
    assert desk.ledger.reservations("a" * 64, "1") == ()


def test_a_round_is_reserved_once_whether_or_not_it_was_finished(desk: Desk) -> None:
    desk.admit()
    first = desk.reserve(1)
    with pytest.raises(PrivacyError, match="round 1 was interrupted here; its cost is spent"):
        desk.reserve(1)
    desk.ledger.commit(first, "f" * 64)
    with pytest.raises(PrivacyError, match="round 1 was done before"):
        desk.reserve(1)
    desk.reserve(1, group="testing", event=COUNTS)
    with pytest.raises(PrivacyError, match="round 1"):
        desk.reserve(1, event=replace(ROUND, steps=1))  # less of the same is the same
    desk.admit(run="2")
    desk.reserve(1, run="2")


def test_no_more_is_reserved_than_the_plan_holds(desk: Desk) -> None:
    desk.admit()
    for number in (1, 2, 3):
        desk.reserve(number)
    before = desk.entries()
    with pytest.raises(PrivacyError, match="does not hold"):
        desk.reserve(4)
    for wrong in (replace(ROUND, noise_multiplier=1.9), replace(ROUND, sampling_probability=0.3)):
        with pytest.raises(PrivacyError, match="does not hold"):
            desk.reserve(5, event=wrong)
    desk.reserve(3, group="testing", event=COUNTS)
    with pytest.raises(PrivacyError, match="does not hold"):
        desk.reserve(2, group="testing", event=COUNTS)
    assert desk.entries() == before + 1


def test_a_reservation_says_everything_that_its_cost_follows_from(desk: Desk) -> None:
    desk.admit()
    number = desk.reserve(2)
    entry = desk.ledger.book.reservations[number].entry
    assert entry_to_dict(entry) == {
        "study": "a" * 64,
        "run": "1",
        "round": 2,
        "group": "training",
        "cohort": desk.cohort,
        "unit": "patient",
        "relation": "add-or-remove-one",
        "event": {
            "kind": "sampled_gaussian",
            "sampling_probability": 0.2,
            "noise_multiplier": 2.0,
            "steps": 5,
        },
        "plan": "d" * 64,
        "code": "test",
    }
    assert entry_from_dict("reserve", entry_to_dict(entry)) == entry


@pytest.mark.parametrize(
    "damage",
    [
        {"more": 1},
        {"round": -1},
        {"round": "1"},
        {"group": "nobody"},
        {"relation": "replace-one"},
        {"study": "a"},
        {"event": {"kind": "unheard-of"}},
        {
            "event": {
                "kind": "gaussian",
                "noise_multiplier": 0.0,
                "count": 1,
                "purpose": "statistics",
            }
        },
    ],
)
def test_an_entry_that_is_not_whole_is_refused(desk: Desk, damage: dict[str, Any]) -> None:
    desk.admit()
    body = entry_to_dict(desk.ledger.book.reservations[desk.reserve(1)].entry)
    with pytest.raises((StateError, PrivacyError)):
        entry_from_dict("reserve", {**body, **damage})
    with pytest.raises(StateError):
        entry_from_dict("gift", body)


# --- committing and closing ---------------------------------------------------------------------


def test_a_commit_is_for_one_reply(desk: Desk) -> None:
    desk.admit()
    number = desk.reserve(1)
    desk.ledger.commit(number, "e" * 64)
    before = desk.entries()
    desk.ledger.commit(number, "e" * 64)
    assert desk.entries() == before
    with pytest.raises(StateError, match="another reply"):
        desk.ledger.commit(number, "f" * 64)
    with pytest.raises(StateError, match="no such reservation"):
        desk.ledger.commit(number + 1, "e" * 64)


def test_closing_is_done_once_and_only_for_what_is_open(desk: Desk) -> None:
    desk.ledger.end_run("a" * 64, "1", "finished")
    desk.admit()
    desk.ledger.end_run("a" * 64, "1", "finished")
    before = desk.entries()
    desk.ledger.end_run("a" * 64, "1", "failed")
    assert desk.entries() == before
    (cohort,) = report(desk.ledger, DELTA).cohorts
    assert [run.state for run in cohort.runs] == ["finished"]


def test_a_report_counts_what_was_interrupted(desk: Desk) -> None:
    desk.admit()
    desk.ledger.commit(desk.reserve(1), "e" * 64)
    desk.reserve(2)
    (cohort,) = report(desk.ledger, DELTA, checked_epsilon).cohorts
    (run,) = cohort.runs
    assert (run.reservations, run.interrupted, run.state) == (2, 1, "open")
    assert run.spent == pytest.approx(epsilon((ROUND,) * 2, DELTA))
    assert run.set_aside == pytest.approx(ALONE)
    assert cohort.patients == 6


def test_a_refusal_leaves_the_ledger_usable_and_another_process_sees_the_same(
    desk: Desk, tmp_path: Path
) -> None:
    desk.admit()
    desk.reserve(1)
    with pytest.raises(PrivacyError):
        desk.reserve(1)
    desk.reserve(2)
    with Ledger(tmp_path / "ledger.sqlite") as other:
        assert other.head == desk.ledger.head
        other.end_run("a" * 64, "1", "stopped")
    with pytest.raises(PrivacyError, match="nothing is set aside"):
        desk.reserve(3)


def test_a_plan_has_a_hash_of_its_own() -> None:
    assert plan_hash(None) == plan_hash(None)
    assert len(plan_hash(None)) == 64
