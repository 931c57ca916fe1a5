"""Runs that are over: on record for good, whatever a server names later, also after a restart.

A coordinator that lies names runs in turn, asks whatever it likes in any of them, and waits for the
daemon to be restarted. The oracle counts what was trained, from nothing but the order of things.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.test_daemon import SITE, Trained, Ward, code_and_reason, read
from tests.client.test_ledger import Desk as Books

from fedward.client.daemon.account import Account
from fedward.client.daemon.daemon import Daemon
from fedward.client.daemon.desk import Desk
from fedward.client.daemon.ending import settle
from fedward.client.daemon.record import Record
from fedward.client.daemon.rules import SiteRules
from fedward.client.daemon.seams import Place
from fedward.client.daemon.service import Service
from fedward.client.ledger import Caps, Ledger, Totals
from fedward.client.manifest import load_manifest
from fedward.client.outbox import MOST_QUESTIONS, Outbox
from fedward.client.policy import load_policy
from fedward.client.worker.protocol import Do, Done, Load
from fedward.common.audit import AuditLog
from fedward.common.errors import StateError
from fedward.simulations.fake_hospital import Consortium
from fedward.simulations.fakes import small_study

A, B = "a" * 64, "b" * 64
CAPS = Caps(1.0, 1.0, 1e-3)
ROUNDS = 2


# --- what is put on record ----------------------------------------------------------------------


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """Study a has runs 1 and 2, study b has a run 1 too."""
    books = Books(tmp_path / "ledger.sqlite")
    for study, run in (("a", "1"), ("a", "2"), ("b", "1")):
        books.admit(study, run, totals=Totals(), private=False, most_runs=2)
    books.ledger.close()
    made = Account(tmp_path / "ledger.sqlite")
    yield made
    made.close()


def test_what_a_server_says_is_put_on_record_once_and_only_of_runs_that_it_knew(
    account: Account,
) -> None:
    mine = {(A, "1"), (A, "2")}
    failed = {A: {"state": "failed", "run": "1"}}
    assert settle(account, failed, {(A, "1")}) == {(A, "1")}
    assert account.open_runs() == {(A, "2"), (B, "1")}
    assert account.over_runs() == frozenset(), "it may be resumed"
    assert settle(account, failed, mine) == {(A, "2")}
    assert account.over_runs() == {(A, "2")}
    length = account.head.length
    assert settle(account, failed, mine) == frozenset()
    assert account.head.length == length, "nothing is written again"
    account.check_goes_on(A, "1")
    account.check_goes_on(A, "3")
    with pytest.raises(StateError, match="over at this site, for good"):
        account.check_goes_on(A, "2")
    assert settle(account, {}, mine) == frozenset(), "both were closed before"
    assert account.over_runs() == mine, "and are over now"


def test_what_two_studies_call_the_same_is_kept_until_both_runs_are_over(account: Account) -> None:
    account.end_run(A, "1", "over", for_good=True)
    assert account.names_over() == frozenset()
    account.end_run(A, "2", "paused")
    assert account.names_over() == frozenset()
    account.end_run(B, "1", "over", for_good=True)
    assert account.names_over() == {"1"}


# --- a coordinator, honest or not ---------------------------------------------------------------


class Worker(Trained):
    """Admits a run before it trains, in the ledger, as a training process does when it loads."""

    def __init__(self, ward: Ward) -> None:
        super().__init__()
        self._ward = ward
        self._warm: set[str] = set()

    async def do(self, load: Load, task: Do) -> Done:
        if load.run not in self._warm:
            self._admit(load)
        self._warm.add(load.run)
        return await super().do(load, task)

    def _admit(self, load: Load) -> None:
        home = self._ward.home
        members = load_manifest(home.manifests, load.study).members
        with Ledger(home.ledger) as ledger:
            ledger.admit(
                load.study,
                load.run,
                ledger.add_cohort(members),
                plan="d" * 64,
                totals=Totals(),
                caps=CAPS,
                code="test",
                private=False,
                most_runs=load_policy(home.policy_file).max_runs_per_study,
            )

    async def end_idle(self, studies: Any) -> None:
        """It stays warm, as one does that is busy: that must not matter."""


class Hospital:
    """A daemon with its real ledger, outbox, rules and gate, and a server that says anything."""

    def __init__(self, ward: Ward, consortium: Consortium) -> None:
        self.ward = ward
        self._consortium = consortium
        self._offer = consortium.offer(ward.study).decode()
        self._log = AuditLog.open(ward.home.audit_log, ward.key)
        self.trained: list[tuple[str, int, str]] = []
        """Run, round and question of all that was ever trained."""
        self._start()

    def _start(self) -> None:
        home, record = self.ward.home, Record(self._log)
        self.account, self.outbox = Account(home.ledger), Outbox(home.outbox)
        self._pool = Worker(self.ward)
        rules = SiteRules(home, self.ward.key, now=lambda: self.ward.now)
        self.daemon = Daemon(
            Place(SITE, home.path, home.studies),
            rules=rules,
            pool=self._pool,
            outbox=self.outbox,
            books=self.account,
            record=record,
        )
        service: Any = object.__new__(Service)
        service._watch = SimpleNamespace(offered=lambda: None)
        service._status = SimpleNamespace(update=lambda **_said: None)
        service._account, service._outbox, service._pool = self.account, self.outbox, self._pool
        service._daemon = self.daemon
        self._desk = Desk(
            self._ask,
            roster=self._consortium.roster,
            studies=home.studies,
            decisions=rules,
            witness=SimpleNamespace(has_news=False),  # type: ignore[arg-type]
            record=record,
            runs=self.account.runs,
            shown=service._offered,
        )
        self._said: dict[str, Any] = {}

    async def _ask(self, _kind: str, _body: dict[str, Any]) -> dict[str, Any]:
        return self._said

    async def told(self, run: str | None, state: str = "running") -> None:
        """The server says which run of the study is the newest; None: that the study is over."""
        entry = {"offer": self._offer, "state": state, "choice": "approve", "run": run}
        self._said = {"studies": [] if run is None else [entry], "over": {}}
        await self._desk.fetch()

    async def ask(self, run: str, number: int, question: int) -> Path:
        """Have a round trained; the path of the answer."""
        before, key = len(self._pool.tasks), f"{question:032x}{number:032x}"
        path = await self.daemon.do(self.ward.asked(number, run=run, key=key))
        self.trained += [(run, number, key)] * (len(self._pool.tasks) - before)
        return path

    def answers(self) -> list[str]:
        """What the log says was released or refused, oldest first."""
        return [e.kind for e in self._log.entries() if e.kind in ("release", "refuse")]

    async def restart(self) -> None:
        await self.daemon.stop()
        self.account.close()
        self._start()

    async def close(self) -> None:
        await self.daemon.stop()
        self.account.close()
        self._log.close()


Move = tuple[Any, ...]
RUN = st.sampled_from(["x", "y", "z"])
MOVE: st.SearchStrategy[Move] = st.one_of(
    st.tuples(
        st.just("name"), RUN | st.just(""), st.sampled_from(["running", "failed", "stopped"])
    ),
    st.tuples(st.just("ask"), RUN, st.integers(1, ROUNDS), st.integers(0, 5)),
    st.tuples(st.just("ask"), RUN, st.integers(1, ROUNDS), st.integers(0, 5)),
    st.just(("gone",)),
    st.just(("restart",)),
)


@pytest.fixture(scope="module")
def consortium() -> Consortium:
    return Consortium.make("north")


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory, consortium: Consortium) -> dict[int, Ward]:
    made = {}
    for most in (1, 2):
        made[most] = Ward(tmp_path_factory.mktemp("ward"), small_study(training={"rounds": ROUNDS}))
        policy = made[most].home.policy_file
        policy.write_text(policy.read_text() + f"max_runs_per_study = {most}\n")
        offer = consortium.offer(made[most].study)
        (made[most].home.studies / f"{made[most].name}.json").write_bytes(offer)
    return made


@pytest.fixture
def hospital(wards: dict[int, Ward], consortium: Consortium) -> Iterator[Hospital]:
    """One that allows a single run."""
    made = fresh(wards[1], consortium)
    yield made
    asyncio.run(made.close())


def fresh(ward: Ward, consortium: Consortium) -> Hospital:
    """As before the first run."""
    ward.home.ledger.unlink(missing_ok=True)
    shutil.rmtree(ward.home.outbox, ignore_errors=True)
    return Hospital(ward, consortium)


def check(moves: Sequence[Move], done: Sequence[Sequence[tuple[str, int, str]]], most: int) -> None:
    """The oracle: `done` is what each move had trained."""
    every = [one for each in done for one in each]
    assert len({run for run, _, _ in every}) <= most
    assert len(every) <= most * ROUNDS * MOST_QUESTIONS
    for place, move in enumerate(moves):
        if move[0] in ("name", "gone"):
            newest = move[1] if move[0] == "name" else None
            known = {run for each in done[:place] for run, _, _ in each}
            over = known - {newest} if newest != "" else set()
            later = {run for each in done[place:] for run, _, _ in each}
            assert not over & later, "a run that was over was trained"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=st.lists(MOVE, max_size=30), most=st.sampled_from([1, 2]))
def test_whatever_a_server_names_no_more_is_trained_than_the_policy_allows(
    moves: list[Move], most: int, wards: dict[int, Ward], consortium: Consortium
) -> None:
    async def play() -> list[list[tuple[str, int, str]]]:
        hospital, done = fresh(wards[most], consortium), []
        for what, *how in moves:
            before = len(hospital.trained)
            if what == "name":
                await hospital.told(*how)
            elif what == "gone":
                await hospital.told(None)
            elif what == "ask":
                await hospital.ask(*how)
            else:
                await hospital.restart()
            done.append(hospital.trained[before:])
        await hospital.close()
        return done

    check(moves, asyncio.run(play()), most)


def test_the_oracle_would_notice_a_run_that_came_back() -> None:
    moves = [("ask",), ("name", "y", "running"), ("name", "x", "running"), ("ask",)]
    with pytest.raises(AssertionError, match="a run that was over was trained"):
        check(moves, [[("x", 1, "k")], [], [], [("x", 2, "k")]], 1)
    check(moves[2:], [[], [("x", 2, "k")]], 1)


@pytest.mark.parametrize("restarted", [False, True])
def test_runs_that_are_named_in_turn_are_not_taken_up_again(
    restarted: bool, hospital: Hospital
) -> None:
    async def story() -> None:
        await hospital.told("x")
        assert read(await hospital.ask("x", 1, 0)).arrays
        await hospital.told("y")
        assert not (hospital.ward.home.outbox / "x").exists()
        if restarted:
            await hospital.restart()
        await hospital.told("x")
        code, reason = code_and_reason(await hospital.ask("x", 1, 1))
        assert code == StateError.exit_code == 15
        assert "this run is over at this site, for good" in reason
        code, reason = code_and_reason(await hospital.ask("y", 1, 0))
        assert code == 14
        assert "takes part in no more runs of this study" in reason
        assert len(hospital.trained) == 1
        refused = [e.facts["code"] for e in hospital._log.entries() if e.kind == "refuse"]
        assert refused[-2:] == [15, 14]

    asyncio.run(story())


@pytest.mark.parametrize("where", ["failed", "stopped"])
def test_a_run_that_is_resumed_goes_on_and_does_no_round_twice(
    where: str, hospital: Hospital
) -> None:
    async def story() -> None:
        await hospital.told("")
        assert read(await hospital.ask("x", 1, 0)).arrays
        await hospital.told("x", where)
        assert hospital.account.open_runs() == frozenset()
        await hospital.restart()
        await hospital.told("x", where)
        await hospital.told("x", "running")
        assert read(await hospital.ask("x", 2, 0)).arrays
        assert hospital.account.open_runs() == {(hospital.ward.name, "x")}
        assert code_and_reason(await hospital.ask("x", 1, 1))[0] == 8
        assert [number for _, number, _ in hospital.trained] == [1, 2]

    asyncio.run(story())


def test_what_is_being_trained_when_a_run_is_over_ends(hospital: Hospital) -> None:
    async def story() -> None:
        pool = hospital._pool
        pool.wait = asyncio.Event()
        asked = asyncio.create_task(hospital.ask("x", 1, 0))
        await pool.began.wait()
        await hospital.told("y")
        assert pool.ended
        with pytest.raises(StateError, match="nobody waits"):
            await asked
        assert hospital.daemon.working == 0

    before = hospital.answers()
    asyncio.run(story())
    assert hospital.answers() == before, "nothing was released, or refused"
    assert not (hospital.ward.home.outbox / "x").exists()
