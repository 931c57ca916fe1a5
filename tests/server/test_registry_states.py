"""The state machine: exactly these steps and no others, whatever is tried in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import StateError
from fedward.server.registry.states import Choice, State, choose, enough, follow, meant, ready

S = State
ALLOWED = {
    (S.OFFERED, S.APPROVED),
    (S.OFFERED, S.STOPPED),
    (S.APPROVED, S.OFFERED),
    (S.APPROVED, S.RUNNING),
    (S.APPROVED, S.STOPPED),
    (S.RUNNING, S.EVALUATING),
    (S.RUNNING, S.FAILED),
    (S.RUNNING, S.STOPPED),
    (S.EVALUATING, S.RUNNING),
    (S.EVALUATING, S.RELEASED),
    (S.EVALUATING, S.FAILED),
    (S.EVALUATING, S.STOPPED),
    (S.FAILED, S.RUNNING),
    (S.STOPPED, S.RUNNING),
}
states = st.sampled_from(State)


@given(now=states, wanted=states)
def test_a_step_is_taken_or_refused(now: State, wanted: State) -> None:
    if (now, wanted) in ALLOWED:
        assert follow(now, wanted) is wanted
    else:
        with pytest.raises(StateError):
            follow(now, wanted)


@given(st.lists(states, max_size=30))
def test_nothing_is_released_that_did_not_run_and_was_evaluated(wishes: list[State]) -> None:
    now, path = S.OFFERED, [S.OFFERED]
    for wanted in wishes:
        try:
            now = follow(now, wanted)
        except StateError:
            continue
        path.append(now)
    if S.RELEASED in path:
        assert path.index(S.RELEASED) == len(path) - 1
        assert path[-2] is S.EVALUATING
        assert S.RUNNING in path


def test_only_a_release_is_the_end() -> None:
    assert [state for state in State if state.final] == [S.RELEASED]
    assert [state for state in State if state.active] == [S.RUNNING, S.EVALUATING]


@given(st.lists(st.sampled_from(Choice), max_size=12))
def test_who_approves_now_said_so_last(wishes: list[Choice]) -> None:
    said: list[Choice] = []
    for wanted in wishes:
        try:
            choose(said[-1] if said else None, wanted)
        except StateError:
            continue
        said.append(wanted)
    for before, after in zip([None, *said], said, strict=False):
        assert (after is Choice.WITHDRAW) == (before is Choice.APPROVE)
        assert after is not Choice.REFUSE or before is None


@given(st.sampled_from(Choice), st.one_of(st.none(), st.sampled_from(Choice)))
def test_whatever_a_site_says_can_be_put_on_record(said: Choice, before: Choice | None) -> None:
    wanted = meant(before, said)
    assert (wanted is Choice.APPROVE) == (said is Choice.APPROVE)
    assert wanted is before or choose(before, wanted) is wanted


answers = st.dictionaries(
    st.sampled_from("abcdef"), st.one_of(st.none(), st.sampled_from(Choice)), max_size=6
)


@given(answers=answers, active=st.sets(st.sampled_from("abcdef")), min_sites=st.integers(1, 4))
def test_a_run_begins_with_active_sites_that_approve(
    answers: dict[str, Choice | None], active: set[str], min_sites: int
) -> None:
    found = ready(answers, active, min_sites)
    willing = {s for s, a in answers.items() if a is Choice.APPROVE and s in active}
    waiting = {s for s, a in answers.items() if a is None and s in active}
    assert found == (willing if not waiting and len(willing) >= min_sites else set())


def test_nobody_is_never_enough() -> None:
    assert ready({}, [], 0) == frozenset()
    assert ready({"a": Choice.REFUSE}, ["a"], 0) == frozenset()


def test_enough() -> None:
    assert enough([], 1) is S.OFFERED
    assert enough(["a"], 1) is S.APPROVED
