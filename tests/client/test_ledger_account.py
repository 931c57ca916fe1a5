"""How cohorts overlap: patient by patient, against everybody being looked at one by one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fedward.client.ledger.account import Members, Place, Run, Totals, profiles, worst
from fedward.client.spending import Group
from fedward.common.privacy.events import GaussianRelease, PrivacyEvent

GROUPS: tuple[Group, Group] = ("training", "testing")


def name(number: int) -> bytes:
    return bytes([number]) * 32


@st.composite
def a_cohort(draw: st.DrawFn) -> Members:
    sides = draw(st.dictionaries(st.integers(0, 5), st.booleans(), max_size=6))
    return Members(
        draw(st.sampled_from(["mrn", "mrn", "number", ""])),
        "patient",
        frozenset(name(n) for n, trains in sides.items() if trains),
        frozenset(name(n) for n, trains in sides.items() if not trains),
    )


def everybody(cohorts: Sequence[Members], about: Members) -> set[frozenset[Place]]:
    """All places of everybody who may be in a cohort, one person after the other."""
    kinds = {one.identified_by or one.id for one in cohorts}
    own = about.identified_by or about.id
    choices = []
    for kind in sorted(kinds):
        people = []
        for number in range(6):
            places = frozenset(
                place
                for one in cohorts
                if (one.identified_by or one.id) == kind
                for patient, place in one.places()
                if patient == name(number)
            )
            if kind != own or any(cohort == about.id for cohort, _ in places):
                people.append(places)
        choices.append(people if kind == own else [frozenset(), *people])
    return {frozenset().union(*choice) for choice in product(*choices)}


@given(st.lists(a_cohort(), min_size=1, max_size=4), st.integers(0, 3))
def test_profiles_are_the_largest_of_everybodys(cohorts: list[Members], which: int) -> None:
    about = cohorts[which % len(cohorts)]
    by_id = {one.id: one for one in cohorts}
    found = profiles(by_id, about.id)
    true = everybody(list(by_id.values()), about)
    largest = {one for one in true if not any(one < other for other in true)}
    assert found >= largest, "somebody was overlooked"
    if true:  # a cohort without patients has only what others may have been charged
        assert all(any(profile <= one for one in true) for profile in found)


def total_noise(events: Sequence[PrivacyEvent], _delta: float) -> float:
    """Stands for ε: adds up, and tells every set of events from another."""
    releases = [event for event in events if isinstance(event, GaussianRelease)]
    return sum(release.count / release.noise_multiplier for release in releases)


@given(
    st.lists(a_cohort(), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(GROUPS), st.integers(1, 9)), max_size=6),
    st.integers(0, 3),
)
def test_the_worst_patient_is_found(
    cohorts: list[Members], releases: list[tuple[int, Group, int]], which: int
) -> None:
    by_id = {one.id: one for one in cohorts}
    about = cohorts[which % len(cohorts)]
    runs, costs = [], []
    for index, (number, group, noise) in enumerate(releases):
        cohort = cohorts[number % len(cohorts)].id
        event = (GaussianRelease(float(noise)),)
        totals = Totals(training=event) if group == "training" else Totals(testing=event)
        runs.append(Run("a" * 64, str(index), cohort, "", True, totals))
        costs.append(((cohort, group), 1.0 / noise))
    found = worst(profiles(by_id, about.id), runs, Run.owed, delta=0.5, accountant=total_noise)
    true = max(
        (
            sum(cost for place, cost in costs if place in places)
            for places in everybody(list(by_id.values()), about)
        ),
        default=0.0,
    )
    assert abs(found - true) < 1e-9 or (not (about.training | about.testing) and found >= true)


def test_the_same_people_add_up_and_others_do_not() -> None:
    one = Members("mrn", "patient", frozenset({name(1), name(2)}), frozenset({name(3)}))
    other = Members("mrn", "patient", frozenset({name(2)}), frozenset({name(4)}))
    apart = Members("mrn", "patient", frozenset({name(9)}), frozenset())
    unknown = Members("", "patient", frozenset({name(2)}), frozenset({name(5)}))
    by_id = {members.id: members for members in (one, other, apart)}
    assert frozenset({(one.id, "training"), (other.id, "training")}) in profiles(by_id, one.id)
    assert profiles(by_id, apart.id) == {frozenset({(apart.id, "training")})}
    by_id[unknown.id] = unknown
    assert profiles(by_id, apart.id) == {
        frozenset({(apart.id, "training"), (unknown.id, group)}) for group in GROUPS
    }, "who has no identifier may be anybody"


def test_with_too_many_kinds_of_patients_more_is_charged_never_less() -> None:
    cohorts = [
        Members("", "patient", frozenset({name(n), b"%d" % n}), frozenset({name(n + 50)}))
        for n in range(10)
    ]
    by_id = {members.id: members for members in cohorts}
    first = cohorts[0]
    found = profiles(by_id, first.id)
    assert len(found) <= 2
    everywhere = {(one.id, group) for one in cohorts[1:] for group in GROUPS}
    assert all(everywhere < profile for profile in found)


def test_a_cohorts_id_changes_with_anybody_in_it() -> None:
    one = Members("mrn", "patient", frozenset({name(1)}), frozenset({name(2)}))
    others = [
        Members("mrn", "patient", frozenset({name(2)}), frozenset({name(1)})),
        Members("mrn", "patient", frozenset({name(1), name(2)}), frozenset()),
        Members("mrn", "patient", frozenset({name(1)}), frozenset({name(3)})),
        Members("nr", "patient", frozenset({name(1)}), frozenset({name(2)})),
        Members("mrn", "record", frozenset({name(1)}), frozenset({name(2)})),
    ]
    assert len({one.id, *(other.id for other in others)}) == 6


def test_a_daemon_may_read_the_ledger_without_loading_torch_or_flower() -> None:
    code = (
        "import sys, tempfile, pathlib; from fedward.client.ledger import Ledger, report\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with Ledger(pathlib.Path(folder) / 'x') as ledger: report(ledger, 1e-5)\n"
        "sys.exit(bool({'torch', 'flwr', 'opacus', 'polars'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
