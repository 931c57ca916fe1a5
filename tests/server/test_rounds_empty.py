"""A private round that too few sites can ever answer is put on record as empty; no other is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fedward.common import records
from fedward.common.errors import (
    DataError,
    FedwardError,
    PolicyError,
    PrivacyError,
    RoundError,
    RoundSpentError,
    TrainingError,
)
from fedward.common.study import Study
from fedward.common.tensors import Weights
from fedward.server.checkpoints import Checkpoints
from fedward.server.empty_rounds import MOST_IN_A_ROW, NothingTrained, Progress, most_in_all
from fedward.server.history import RoundRecord
from fedward.server.replies import TooFew
from fedward.server.rounds import Outcome, Rounds
from fedward.simulations.engines.flaky import Fault, FlakyGrid, lost, refused, run_flaky
from fedward.simulations.engines.loop import loop_grid
from fedward.simulations.fakes import (
    MemoryCheckpoints,
    Quiet,
    make_cohorts,
    make_sites,
    small_study,
)

PRIVATE = {"mode": "dp", "epsilon": 5.0, "delta": 1e-3}
ALL = ("site-1", "site-2", "site-3")
SPENT = refused(RoundSpentError.exit_code, "spent")
UNUSED = "answered, but too few others can answer this round"
REFUSALS = (PrivacyError, PolicyError, DataError, TrainingError, RoundError)


def a_study(
    rounds: int = 4, *, min_sites: int = 2, private: bool = True, participation: float = 1.0
) -> Study:
    return small_study(
        training={"rounds": rounds},
        aggregation={
            "min_sites": min_sites,
            "weights": "equal",
            "participation": participation,
        },
        privacy=PRIVATE if private else {"mode": "none"},
        algorithm={"name": "fedavgm", "momentum": 0.5},
    )


def run(
    study: Study, faults: Iterable[Fault], *, checkpoints: Checkpoints | None = None
) -> Outcome:
    sites = make_sites(study, make_cohorts(study, len(ALL), patients=24))
    return run_flaky(study, sites, list(faults), checkpoints=checkpoints)


def spent(*rounds: int, at: Iterable[str] = ALL[:2]) -> list[Fault]:
    return [Fault(site, SPENT, round=number) for number in rounds for site in at]


def weights(checkpoints: MemoryCheckpoints) -> dict[int, Weights]:
    return {state.round: state.weights for state in checkpoints.states}


def same(left: Weights, right: Weights) -> bool:
    return all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_a_round_that_is_spent_at_too_many_sites_is_empty_and_the_run_goes_on() -> None:
    kept = MemoryCheckpoints()
    outcome = run(a_study(), spent(2), checkpoints=kept)
    assert [record.participants for record in outcome.history] == [ALL, (), ALL, ALL]
    assert outcome.history[1].refused == {"site-1": "spent", "site-2": "spent", "site-3": UNUSED}
    assert outcome.history[1].drift == {}
    models = weights(kept)
    assert same(models[1], models[2])
    assert not same(models[2], models[3])


def test_what_the_strategy_remembers_is_not_touched_either() -> None:
    kept = MemoryCheckpoints()
    run(a_study(), spent(2), checkpoints=kept)
    before, after = (next(s for s in kept.states if s.round == n).strategy for n in (1, 2))
    assert same(before, after)
    assert before


def test_enough_others_make_the_round_as_ever() -> None:
    outcome = run(a_study(), spent(2, at=["site-2"]))
    assert [record.participants for record in outcome.history] == [
        ALL,
        ("site-1", "site-3"),
        ALL,
        ALL,
    ]


@pytest.mark.parametrize("kind", REFUSALS)
def test_no_other_refusal_empties_a_round(kind: type[FedwardError]) -> None:
    kept = MemoryCheckpoints()
    faults = [Fault(site, refused(kind.exit_code, "no"), round=2) for site in ALL[:2]]
    with pytest.raises(kind, match="round 2 stopped, 1 of 2"):
        run(a_study(), faults, checkpoints=kept)
    assert [state.round for state in kept.states] == [0, 1]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_site_that_refuses_for_another_reason_may_still_answer(kind: type[FedwardError]) -> None:
    faults = [*spent(2, at=["site-1"]), Fault("site-2", refused(kind.exit_code, "no"), round=2)]
    with pytest.raises(TooFew, match="round 2 stopped, 1 of 2") as caught:
        run(a_study(), faults)
    assert caught.value.spent == {"site-1"}


def test_so_may_one_that_does_not_answer() -> None:
    with pytest.raises(TooFew, match="no answer before the deadline") as caught:
        run(a_study(), [*spent(2, at=["site-1"]), Fault("site-2", lost, round=2)])
    assert caught.value.spent == {"site-1"}


def test_without_privacy_nothing_is_spent_and_nobody_is_believed() -> None:
    with pytest.raises(TooFew, match="site-1, site-2: spent"):
        run(a_study(private=False), spent(2))


def test_a_reason_is_only_a_text() -> None:
    words = "the site has paid for this before and does not do it again; it knows why"
    faults = [Fault(s, refused(PrivacyError.exit_code, words), round=2) for s in ALL]
    with pytest.raises(PrivacyError, match="round 2 stopped"):
        run(a_study(), faults)


def test_what_is_spent_before_the_first_round_cannot_be_left_out() -> None:
    study = small_study(
        training={"rounds": 2}, aggregation={"min_sites": 2, "weights": "size"}, privacy=PRIVATE
    )
    faults = [Fault(site, SPENT, records.STATISTICS) for site in ALL[:2]]
    with pytest.raises(TooFew, match="preprocessing stopped, 1 of 2"):
        run(study, faults)


def test_an_empty_round_that_is_due_is_evaluated_with_the_model_as_it_was() -> None:
    outcome = run(a_study(), spent(4))
    assert outcome.history[3].participants == ()
    assert outcome.history[3].evaluation["overall"]["auroc"] is not None


@pytest.mark.parametrize("first", [1, 2])
def test_many_empty_rounds_end_a_run_once_and_a_person_may_resume_it(first: int) -> None:
    study, kept = a_study(8), MemoryCheckpoints()
    last = first + MOST_IN_A_ROW - 1
    faults = spent(*range(first, last + 1))
    with pytest.raises(NothingTrained, match=f"the last 3 rounds, the last is round {last}"):
        run(study, faults, checkpoints=kept)
    state = kept.newest()
    assert state is not None
    assert state.round == last
    outcome = run(study, faults, checkpoints=kept)
    empty = [record.round for record in outcome.history if not record.participants]
    assert empty == list(range(first, last + 1))


def test_after_a_round_that_was_done_those_in_a_row_are_counted_anew() -> None:
    outcome = run(a_study(8), spent(1, 2, 4))
    assert [r.round for r in outcome.history if not r.participants] == [1, 2, 4]


def test_a_site_that_lets_one_round_in_between_be_done_does_not_waste_all_others() -> None:
    study, kept = a_study(9), MemoryCheckpoints()
    faults = spent(1, 2, 4, 5, 7, 8)
    with pytest.raises(NothingTrained, match="took part in 4 rounds, the last is round 5"):
        run(study, faults, checkpoints=kept)
    outcome = run(study, faults, checkpoints=kept)
    assert [r.round for r in outcome.history if r.participants] == [3, 6, 9]


@pytest.mark.parametrize(("empty", "words"), [((2, 3, 4), "the last 3"), ((1, 2, 4, 5), "4")])
def test_only_a_person_grants_more_empty_rounds(empty: tuple[int, ...], words: str) -> None:
    """What a killed server finds is the checkpoint after the round that was one too many."""
    study, kept = a_study(6), MemoryCheckpoints()
    with pytest.raises(NothingTrained, match=words):
        run(study, spent(*empty), checkpoints=kept)

    def taken_up(resumed_after: int) -> Outcome:
        sites = make_sites(study, make_cohorts(study, len(ALL), patients=24))
        return Rounds(
            study,
            loop_grid(sites),
            checkpoints=kept,
            observer=Quiet(),
            resumed_after=resumed_after,
        ).run()

    states = len(kept.states)
    for resumed_after in (0, empty[0] - 1):
        with pytest.raises(NothingTrained, match=words):
            taken_up(resumed_after)
    assert len(kept.states) == states, "nothing was asked of anybody"
    outcome = taken_up(empty[-1])
    assert tuple(r.round for r in outcome.history if not r.participants) == empty


@given(
    done=st.lists(st.booleans()) | st.lists(st.booleans(), min_size=20, max_size=60),
    since=st.integers(0, 10) | st.integers(0, 70),
    rounds=st.integers(1, 100),
)
def test_empty_rounds_are_counted_from_where_a_person_let_the_run_go_on(
    done: list[bool], since: int, rounds: int
) -> None:
    history = [RoundRecord(n, ALL if one else ()) for n, one in enumerate(done, start=1)]
    seen = "".join("x" if one else "." for one in done[since:])
    too_many = seen.endswith("...") or seen.count(".") > max(3, rounds // 10)
    progress = Progress.of(history, since=since)
    if too_many:
        with pytest.raises(NothingTrained, match=f"the last is round {len(done)}"):
            progress.check(rounds)
    else:
        progress.check(rounds)
    step = Progress()
    for record in history[since:]:
        step = step.then(record)
    assert step == progress


def test_how_many_in_all_is_public_and_small() -> None:
    assert [most_in_all(n) for n in (1, 39, 40, 100, 1000)] == [3, 3, 4, 10, 100]


@pytest.mark.parametrize("rounds", [1, 2, MOST_IN_A_ROW])
def test_a_run_in_which_nobody_took_part_gives_no_model(rounds: int) -> None:
    study, kept = a_study(rounds), MemoryCheckpoints()
    for _ in range(2):  # and not when it is resumed
        with pytest.raises(NothingTrained, match="nobody took part in any round"):
            run(study, spent(*range(1, rounds + 1)), checkpoints=kept)


class Late(FlakyGrid):
    """A grid on which a site is listed but says nothing."""

    silent = ""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        heard = [m for m in messages if self._grid.site(m.metadata.dst_node_id) != self.silent]
        return super().send_and_receive(heard, timeout=timeout)


class Named(Late):
    """The same, where the carrier knows who it is."""

    def site_names(self) -> Mapping[int, str]:
        return {node: self._grid.site(node) for node in self.get_node_ids()}


@pytest.mark.parametrize("carrier", [Late, Named])
def test_who_is_away_may_still_come(carrier: type[Late]) -> None:
    """site-1 has spent the round, site-2 answers it, and site-3 is not there yet."""
    study, kept = a_study(), MemoryCheckpoints()
    with pytest.raises(TooFew):
        run(study, [Fault(s, lost, round=2) for s in ALL], checkpoints=kept)
    with pytest.raises(TooFew) as caught:
        attempt(carrier, study, kept, silent="site-3")
    assert caught.value.spent == {"site-1"}
    outcome = attempt(carrier, study, kept)
    assert outcome.history[1].participants == ("site-2", "site-3")


def attempt(
    carrier: type[Late], study: Study, kept: MemoryCheckpoints, *, silent: str = ""
) -> Outcome:
    """Sites that have their answers, as a hospital's outbox has them, but for site-1."""
    sites = make_sites(study, make_cohorts(study, len(ALL), patients=24))
    grid = carrier(loop_grid(sites), spent(2, at=["site-1"]))
    grid.silent = silent
    return Rounds(study, grid, checkpoints=kept, observer=Quiet()).run()


def test_whom_a_share_was_drawn_from_is_not_waited_for() -> None:
    study = a_study(participation=0.5)
    outcome = run(study, spent(2, at=ALL))
    assert outcome.history[1].participants == ()
    assert len(outcome.history[1].refused) == 2
