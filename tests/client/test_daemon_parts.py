"""What the daemon does beside tasks: offers, decisions, ledgers' ends, changed files, its lock."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedward.client.daemon import desk as desk_module
from fedward.client.daemon.account import Account
from fedward.client.daemon.changes import Changes, recorded
from fedward.client.daemon.desk import Decided, Desk
from fedward.client.daemon.ending import over, paused
from fedward.client.daemon.record import Record
from fedward.client.daemon.status import Status, read_status
from fedward.client.daemon.watch import Watch, stood
from fedward.client.daemon.witness import Witness
from fedward.client.ledger import Ledger, Members, Totals
from fedward.client.ledger.account import Caps
from fedward.client.offers import forget_offers, keep_offer, kept_offers, kept_study, read_offer
from fedward.client.outbox import MOST_REFUSALS, Outbox, write_durably
from fedward.common.audit import AuditLog, caused
from fedward.common.audit.chain import Head
from fedward.common.errors import (
    FedwardError,
    IdentityError,
    LinkError,
    OutputError,
    StateError,
    StudyError,
)
from fedward.common.identity import PrivateKey
from fedward.common.lock import held, is_held
from fedward.common.statements import COUNTERSIGNATURE, LEDGER_HEAD, OFFER, read_statement, state
from fedward.common.study import canonical_json, study_hash
from fedward.common.wire import kinds
from fedward.common.wire.body import Content
from fedward.common.witnessing import (
    MOST_BEFORE,
    Seen,
    countersign,
    read_countersignature,
    read_end,
    state_end,
)
from fedward.server.link.peers import HOURLY
from fedward.simulations.fake_hospital import Consortium
from fedward.simulations.fakes import small_study

STUDY = small_study()
NAME = study_hash(STUDY)


@pytest.fixture
def consortium() -> Consortium:
    return Consortium.make("north", "south")


# Offers.


def test_an_offer_is_read_as_it_was_signed(consortium: Consortium) -> None:
    offer = read_offer(consortium.offer(STUDY), consortium.roster())
    assert (offer.hash, offer.signer) == (NAME, "coordinator")
    assert study_hash(offer.study) == NAME


def test_an_offer_by_a_site_or_a_stranger_is_refused(consortium: Consortium) -> None:
    content = {"study": NAME, "document": canonical_json(STUDY), "consortium": "E", "at_ms": 1}
    for signer, key in (
        ("north", consortium.sites["north"]),
        ("nobody", consortium.sites["north"]),
        ("coordinator", consortium.sites["north"]),
    ):
        with pytest.raises(IdentityError):
            read_offer(state(OFFER, signer, content, key), consortium.roster())


def test_an_offer_of_another_study_than_it_names_is_refused(consortium: Consortium) -> None:
    other = canonical_json(small_study(training={"rounds": 9}))
    for document in (other, "{}", "nonsense"):
        content = {"study": NAME, "document": document, "consortium": "E", "at_ms": 1}
        statement = state(OFFER, "coordinator", content, consortium.coordinator)
        with pytest.raises(StudyError):
            read_offer(statement, consortium.roster())


@pytest.mark.parametrize("name", ["../../secret", "", "0" * 63, "Z" * 64])
def test_a_study_whose_name_is_no_hash_is_not_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no hash"):
        kept_study(tmp_path, name)


# The desk.


class Server:
    """Says what it has on record, and keeps what it is told."""

    def __init__(self, consortium: Consortium) -> None:
        self.offers: list[dict[str, Any]] = [
            {"offer": consortium.offer(STUDY).decode(), "state": "offered", "choice": None}
        ]
        self.over: Any = {}
        self.decisions: list[str] = []
        self.refuses = False

    async def ask(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.refuses:
            raise LinkError("no", hint="x")
        if kind == kinds.STUDIES:
            return {"studies": self.offers, "over": self.over}
        if kind == kinds.DECIDE:
            self.decisions.append(body["decision"])
            return {}
        raise AssertionError(kind)


class Stewards:
    choice = ""

    def undecided(self) -> frozenset[str]:
        return frozenset()

    def decided(self) -> Mapping[str, Decided]:
        return {NAME: Decided(self.choice, f"signed {self.choice}")} if self.choice else {}


class NoWitness:
    has_news = False


def desk_of(
    consortium: Consortium,
    server: Server,
    folder: Path,
    log: AuditLog,
    *,
    runs: Callable[[], Collection[tuple[str, str]]] = frozenset,
    judged: list[set[tuple[str, str]]] | None = None,
) -> Desk:
    async def shown(
        _told: Mapping[str, Mapping[str, str]], about: Collection[tuple[str, str]]
    ) -> None:
        if judged is not None:
            judged.append(set(about))

    return Desk(
        server.ask,
        roster=consortium.roster,
        studies=folder,
        decisions=Stewards(),
        witness=NoWitness(),  # type: ignore[arg-type]
        record=Record(log),
        runs=runs,
        shown=shown,
    )


def test_offers_are_fetched_once_and_put_on_record(consortium: Consortium, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    server = Server(consortium)
    server.offers.append({"offer": "nonsense"})
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, server, studies, log)
        for _ in range(2):
            assert asyncio.run(desk.once())
        assert [e.facts["study"] for e in log.entries() if e.kind == "offer"] == [NAME]
    assert kept_offers(studies) == (NAME,)


def test_what_was_offered_under_an_old_key_of_the_coordinator_stays_offered(
    consortium: Consortium, tmp_path: Path
) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    server = Server(consortium)
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, server, studies, log)
        assert NAME in asyncio.run(desk.fetch())
        rotated = replace(consortium, coordinator=PrivateKey.generate())
        desk = desk_of(rotated, server, studies, log)
        assert NAME in asyncio.run(desk.fetch())
        (studies / f"{NAME}.json").unlink()  # not known here: then only the new key counts
        assert asyncio.run(desk.fetch()) == {}


def test_a_run_is_over_when_the_server_says_so() -> None:
    heart, lung = ("5f", "heart-1"), ("6e", "lung-1")

    def told(state: str, run: str) -> dict[str, dict[str, str]]:
        return {"5f": {"state": state, "run": run}, "6e": {"state": "running", "run": "lung-1"}}

    def judged(state: str, run: str) -> tuple[bool, bool]:
        said = told(state, run)
        assert not over(said, lung)
        assert not paused(said, lung)
        return over(said, heart), paused(said, heart)

    goes_on, is_paused, is_over = (False, False), (False, True), (True, False)
    assert judged("running", "heart-1") == goes_on
    assert judged("evaluating", "heart-1") == goes_on
    assert judged("approved", "") == goes_on  # asked before it began
    assert judged("failed", "heart-1") == is_paused
    assert judged("stopped", "heart-1") == is_paused
    assert judged("released", "heart-1") == is_over
    assert judged("running", "heart-2") == is_over
    assert judged("failed", "heart-2") == is_over
    assert over({}, heart)
    assert not paused({}, heart)


def test_an_answer_tells_nothing_of_a_run_that_began_meanwhile_or_that_it_may_lack_by_mistake(
    consortium: Consortium, tmp_path: Path
) -> None:
    admitted = {(NAME, "1"), ("f" * 64, "1")}

    class Slow(Server):
        async def ask(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = await super().ask(kind, body)
            admitted.add((NAME, "2"))
            return answer

    server, judged = Slow(consortium), list[set[tuple[str, str]]]()
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, server, tmp_path, log, runs=lambda: set(admitted), judged=judged)
        asyncio.run(desk.fetch())
        asyncio.run(desk.fetch())
        server.offers.append({"offer": "nonsense"})
        asyncio.run(desk.fetch())
        server.offers = ["nonsense"]  # type: ignore[list-item]
        asyncio.run(desk.fetch())
    own, other = {(NAME, "1"), (NAME, "2")}, {("f" * 64, "1")}
    assert judged == [{(NAME, "1")} | other, own | other, own, set()]


def test_a_decision_is_told_until_the_server_has_it(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(consortium)
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, server, tmp_path, log)
        assert asyncio.run(desk.once())
        assert server.decisions == []
        monkeypatch.setattr(Stewards, "choice", "approve")
        server.refuses = True
        assert not asyncio.run(desk.once())
        server.refuses = False
        assert asyncio.run(desk.once())
        assert asyncio.run(desk.once())
        assert server.decisions == ["signed approve", "signed approve"]
        server.offers[0]["choice"] = "approve"
        assert asyncio.run(desk.once())
        assert len(server.decisions) == 2
        monkeypatch.setattr(Stewards, "choice", "withdraw")
        assert asyncio.run(desk.once())
        assert server.decisions[-1] == "signed withdraw"


@pytest.mark.parametrize("later", ["withdraw", "refuse"])
def test_who_withdraws_after_the_release_says_so_once(
    later: str, consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(consortium)
    server.offers, server.over = [], {NAME: "approve"}
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, server, tmp_path, log)
        monkeypatch.setattr(Stewards, "choice", "approve")
        assert asyncio.run(desk.once())
        assert server.decisions == []
        monkeypatch.setattr(Stewards, "choice", later)
        assert asyncio.run(desk.once())
        assert server.decisions == [f"signed {later}"]
        for unchanged in ({}, None, "nonsense"):  # it is on record; or the server is older
            server.over = unchanged
            assert asyncio.run(desk.once())
        assert len(server.decisions) == 1


class Many:
    """Decisions about studies by name, in that order."""

    def __init__(self, **choices: str) -> None:
        self.choices = choices

    def undecided(self) -> frozenset[str]:
        return frozenset()

    def decided(self) -> Mapping[str, Decided]:
        return {name: Decided(choice, name) for name, choice in self.choices.items()}


def told_of(**choices: str | None) -> dict[str, dict[str, str]]:
    return {name: {"choice": choice or ""} for name, choice in choices.items()}


def test_withdrawals_are_told_before_anything_else(consortium: Consortium, tmp_path: Path) -> None:
    server = Server(consortium)
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, server, tmp_path, log)
        desk._decisions = Many(a="approve", b="withdraw", c="approve", d="refuse", e="withdraw")
        desk._wake.clear()
        assert asyncio.run(desk.tell(told_of(a=None, b="approve", c=None, d=None, e="withdraw")))
    assert server.decisions == ["b", "d", "a", "c"]


def test_a_withdrawal_that_is_decided_meanwhile_waits_for_one_answer_only(
    consortium: Consortium, tmp_path: Path
) -> None:
    """A hundred approvals that the server refuses, or does not answer for a minute each."""
    many = Many(**{f"study-{n}": "approve" for n in range(100)})
    known = told_of(**dict.fromkeys(many.choices))
    told: list[str] = []

    async def ask(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == kinds.STUDIES:
            return {}
        told.append(body["decision"])
        if told == ["study-0"]:  # while this one is under way, a steward withdraws another
            many.choices["study-99"] = "withdraw"
            known["study-99"]["choice"] = "approve"
            desk.wake()
        raise LinkError("too often", hint="wait")

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        desk = desk_of(consortium, Server(consortium), tmp_path, log)
        desk._ask, desk._decisions = ask, many
        desk._wake.clear()
        assert not asyncio.run(desk.tell(known))
        assert told == ["study-0"]
        desk._wake.clear()  # as the desk does when it was woken
        assert not asyncio.run(desk.tell(known))
        assert told[1] == "study-99"
        assert len(told) == 101
        told.clear()
        desk.wake()  # a server that wakes it all the time holds up nothing for good
        assert not asyncio.run(desk.tell(known))
        assert told == ["study-99"]
        known["study-99"]["choice"] = "withdraw"
        told.clear()
        assert not asyncio.run(desk.tell(known))
        assert told == ["study-0"]


# Witnessing.


def test_an_honest_site_is_never_too_often_to_be_witnessed() -> None:
    assert HOURLY[kinds.WITNESS] > 2 * 3600 / desk_module._EXCHANGE_S


def test_a_ledger_that_grows_all_the_time_is_witnessed_at_its_end_only(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty entries a second: one question at a time, each about the newest end."""
    path = tmp_path / "ledger.sqlite"
    spend(path, "run-0")
    stated: list[int] = []
    number = 0

    async def ask(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        nonlocal number
        assert kind == kinds.WITNESS
        said = read_statement(
            body["ledger"].encode(), LEDGER_HEAD, "north", consortium.sites["north"].public
        )
        stated.append(said["length"])
        for _ in range(20):  # meanwhile
            number += 1
            spend(path, f"run-{number}")
        return {}

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(path)
        desk = desk_of(consortium, Server(consortium), tmp_path, log)
        desk._ask, desk._witness = ask, witness(tmp_path, consortium, log, account)
        monkeypatch.setattr(desk_module, "_EXCHANGE_S", 0.0)

        async def keep() -> None:
            keeping = asyncio.create_task(desk._keep_witnessing())
            while len(stated) < 3:
                await asyncio.sleep(0)
            keeping.cancel()

        asyncio.run(keep())
        account.close()
    assert [later - sooner for sooner, later in itertools.pairwise(stated[:3])] == [20, 20]


def test_an_end_is_stated_again_over_every_connection(
    consortium: Consortium, tmp_path: Path
) -> None:
    """At once: the server may have an old registry, and others may know better."""
    spend(tmp_path / "ledger.sqlite", "run-1")
    asked = asyncio.Event()

    async def ask(_kind: str, _body: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        return {}

    async def go(desk: Desk) -> None:
        keeping = asyncio.create_task(desk._keep_witnessing())
        for _ in range(2):
            desk.connected()
            async with asyncio.timeout(desk_module._EXCHANGE_S / 2):
                await asked.wait()
            asked.clear()
        keeping.cancel()

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(tmp_path / "ledger.sqlite")
        desk = desk_of(consortium, Server(consortium), tmp_path, log)
        desk._ask, desk._witness = ask, witness(tmp_path, consortium, log, account)
        asyncio.run(go(desk))
        account.close()


def spend(path: Path, run: str) -> None:
    members = Members("", "patient", frozenset({b"a"}), frozenset())
    with Ledger(path) as ledger:
        cohort = ledger.add_cohort(members)
        caps = Caps(8.0, 8.0, 1e-5)
        ledger.admit(
            NAME, run, cohort, plan="0" * 64, totals=Totals(), caps=caps, code="0", private=False
        )


def witness(
    folder: Path,
    consortium: Consortium,
    log: AuditLog,
    account: Account,
    lacks: Callable[[Head, FedwardError], None] = lambda _head, error: pytest.fail(str(error)),
) -> Witness:
    return Witness(
        "north",
        consortium.sites["north"],
        account=account,
        record=Record(log),
        seen=folder / "witnessed.json",
        lacks=lacks,
    )


def stated(consortium: Consortium, site: str, head: Head) -> str:
    return state_end(site, head, consortium.sites[site])


def head_of_south(consortium: Consortium, length: int, digit: str) -> str:
    return stated(consortium, "south", Head(length, digit * 64))


def signed_by_south(consortium: Consortium, head: Head, statement: str, *before: str) -> str:
    return countersign("south", Seen("north", head, statement, before), consortium.sites["south"])


class Answers:
    """A server that answers the next exchange by what it is given, and keeps what it is asked."""

    def __init__(self, consortium: Consortium, one: Witness) -> None:
        self.consortium = consortium
        self.one = one

    def exchange(self, **answer: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        async def ask(body: dict[str, Any]) -> dict[str, Any]:
            asked.append(body)
            return answer

        asyncio.run(self.one.exchange(ask, self.consortium.roster()))
        return asked

    def signs(self, *heads: str, signed: Mapping[str, int] | None = None) -> list[Seen]:
        """What it signs of these ends."""
        asked = self.exchange(heads=list(heads), signed=dict(signed or {}))
        key = self.consortium.sites["north"].public
        found = asked[1]["signed"] if len(asked) > 1 else []
        return [read_countersignature(text, "north", key) for text in found]


def test_ends_of_ledgers_are_stated_signed_and_kept(consortium: Consortium, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    spend(path, "run-1")
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(path)
        one = witness(tmp_path, consortium, log, account)
        own = account.head
        under = signed_by_south(consortium, own, stated(consortium, "north", own))
        south = head_of_south(consortium, 4, "a")
        asked = Answers(consortium, one).exchange(heads=[south, "nonsense"], signatures=[under])
        key = consortium.sites["north"].public
        assert read_end(asked[0]["ledger"], "north", key) == own
        signed = read_countersignature(asked[1]["signed"][0], "north", key)
        assert signed == Seen("south", Head(4, "a" * 64), south)
        # That its own end was signed made the ledger longer, which is no news to be signed.
        assert account.head.length == own.length + 1
        assert not one.has_news
        account.close()


def test_a_ledger_that_went_back_is_shown_what_was_signed(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Also after a restart of the witness; a longer one comes with the words before it."""
    spend(tmp_path / "ledger.sqlite", "run-1")
    first, fork = (head_of_south(consortium, 4, digit) for digit in "ab")
    older, longer = head_of_south(consortium, 3, "c"), head_of_south(consortium, 5, "d")
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(tmp_path / "ledger.sqlite")

        def again() -> Answers:
            return Answers(consortium, witness(tmp_path, consortium, log, account))

        known = Seen("south", Head(4, "a" * 64), first)
        assert again().signs(first) == [known]
        for went_back in (older, fork):
            assert again().signs(went_back, signed={"south": 4}) == [known]
        assert sum(entry.kind == "witness-refused" for entry in log.entries()) == 2
        grown = Seen("south", Head(5, "d" * 64), longer, (first,))
        assert again().signs(longer) == [grown]
        # The server has it; a server that lost it is given it again.
        assert again().signs(longer, signed={"south": 5}) == []
        assert again().signs(longer) == [grown]
        words = [head_of_south(consortium, length, "e") for length in range(6, 12)]
        for statement in words:
            (signed,) = again().signs(statement)
        assert signed.words == tuple(words[::-1][: MOST_BEFORE + 1])
        account.close()


def test_what_could_not_be_remembered_is_not_signed(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, then a restart: else a witness would sign the same ledger another way."""
    spend(tmp_path / "ledger.sqlite", "run-1")

    def full(*_: Any) -> None:
        raise OutputError("the disk is full", hint="make room")

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(tmp_path / "ledger.sqlite")
        answers = Answers(consortium, witness(tmp_path, consortium, log, account))
        first = head_of_south(consortium, 4, "a")
        with monkeypatch.context() as patched:
            patched.setattr("fedward.client.daemon.witness.write_atomic", full)
            for _ in range(2):
                with pytest.raises(OutputError):
                    answers.signs(first)
        (signed,) = answers.signs(first)
        assert signed.statement == first
        again = Answers(consortium, witness(tmp_path, consortium, log, account))
        assert again.signs(first, signed={"south": 4}) == []
        account.close()


def test_one_member_that_means_harm_spoils_nothing_for_the_others(
    consortium: Consortium, tmp_path: Path
) -> None:
    """What it says more than it must is neither kept nor passed on."""
    spend(tmp_path / "ledger.sqlite", "run-1")
    south = consortium.sites["south"]
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(tmp_path / "ledger.sqlite")
        own = account.head
        answers = Answers(consortium, witness(tmp_path, consortium, log, account))
        content = {"length": 4, "hash": "a" * 64}
        much = state(LEDGER_HEAD, "south", {**content, "x": "é" * 1000}, south).decode()
        more = state(LEDGER_HEAD, "south", {**content, "x": 1}, south).decode()
        assert answers.signs(much, more) == []
        own_words = stated(consortium, "north", own)
        before = {"site": "north", **own.to_dict(), "statement": own_words, "before": ["x" * 2000]}
        for extra in (
            before,
            {**before, "before": [], "x": 1},
            {**before, "before": [own_words] * 9},
        ):
            text = state(COUNTERSIGNATURE, "south", extra, south).decode()
            answers.exchange(signatures=[text])
        assert account.head == own
        account.close()


def test_ledgers_at_rest_do_not_grow_by_being_seen(consortium: Consortium, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    spend(path, "run-1")
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(path)
        answers = Answers(consortium, witness(tmp_path, consortium, log, account))

        def seen() -> int:
            own = stated(consortium, "north", account.head)
            answers.exchange(signatures=[signed_by_south(consortium, account.head, own)])
            return account.head.length

        lengths = [seen() for _ in range(5)]
        assert set(lengths) == {lengths[0]}
        spend(path, "run-2")
        assert seen() > lengths[0] + 1
        account.close()


def test_a_site_stops_by_its_own_words_alone(consortium: Consortium, tmp_path: Path) -> None:
    """Its ledger was put back, or went another way: what it signed says so, whoever has kept it."""
    path = tmp_path / "ledger.sqlite"
    spend(path, "run-1")
    lacking: list[Head] = []
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(path)
        one = witness(tmp_path, consortium, log, account, lambda head, _error: lacking.append(head))
        answers = Answers(consortium, one)
        held, later = account.head, Head(account.head.length + 3, "e" * 64)
        forked = Head(1, "f" * 64)
        own = {head: stated(consortium, "north", head) for head in (held, later, forked)}
        # A rogue member's own words, or changed ones, stop nobody.
        rogue = consortium.sites["south"]
        forged = state(LEDGER_HEAD, "north", later.to_dict(), rogue).decode()
        for statement in ("", forged, own[held].replace(held.hash, later.hash), "nonsense"):
            answers.exchange(signatures=[signed_by_south(consortium, later, statement)])
        answers.exchange(signatures=[signed_by_south(consortium, held, own[held])])
        assert lacking == []
        kept = account.head
        for words in (
            (own[later],),
            (own[held], own[forked]),
            (own[later], "x"),
            (forged, own[later]),
        ):
            answers.exchange(signatures=[signed_by_south(consortium, later, *words)])
        assert lacking == [later, forked, later, later]
        assert account.head == kept  # nothing is kept beside a lack
        account.close()


def test_one_member_makes_a_ledger_no_longer_than_it_grows(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Signatures differ each time they are made: what counts is the end that they are under."""
    path = tmp_path / "ledger.sqlite"
    spend(path, "run-1")
    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        account = Account(path)
        answers = Answers(consortium, witness(tmp_path, consortium, log, account))
        spend(path, "run-2")
        own, older = account.head, Head.read(account_head_at(path, 1))
        many = [
            signed_by_south(consortium, head, stated(consortium, "north", head))
            for head in (own, own, older)
        ]
        answers.exchange(signatures=many)
        answers.exchange(signatures=many[::-1])
        assert account.head.length == own.length + 1
        account.close()


def account_head_at(path: Path, length: int) -> dict[str, Any]:
    with Ledger(path) as ledger:
        return {"length": length, "hash": ledger._store.hash_at(length)}


def test_an_older_ledger_that_is_put_back_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    spend(path, "run-1")
    older = path.read_bytes()
    spend(path, "run-2")
    account = Account(path)
    seen = account.head.to_dict()
    account.check(seen, "the server")
    account.check(None, "the server")
    account.close()
    path.write_bytes(older)
    account = Account(path)
    with pytest.raises(StateError, match="older than what the server has seen"):
        account.check(seen, "the server")
    spend(path, "run-2")
    with pytest.raises(StateError):  # as long as the other, but another one
        account.check(seen, "the server")
    account.close()


# Files that change.


def test_changes_are_noticed_also_those_while_nobody_looked(tmp_path: Path) -> None:
    policy, site = tmp_path / "policy.toml", tmp_path / "site.toml"
    policy.write_text("a = 1")
    key = PrivateKey.generate()
    moved: list[frozenset[str]] = []
    states = {NAME: "waiting"}

    async def on_moved(_states: Mapping[str, str], names: frozenset[str]) -> None:
        moved.append(names)

    changed: list[frozenset[str]] = []

    async def on_changed(names: frozenset[str]) -> None:
        changed.append(names)

    def watch(log: AuditLog) -> Watch:
        entries = list(log.entries())
        return Watch(
            Changes((policy, site), recorded(entries)),
            states=lambda: dict(states),
            record=Record(log),
            before=stood(entries),
            moved=on_moved,
            changed=on_changed,
        )

    with AuditLog.open(tmp_path / "audit.log", key) as log:
        looking = watch(log)
        asyncio.run(looking.look())
        asyncio.run(looking.look())
        site.write_text("b = 1")
        states[NAME] = "approved"
        asyncio.run(looking.look())
        policy.write_text("a = 22")  # while nobody looks
        asyncio.run(watch(log).look())
        asyncio.run(watch(log).look())
        files = [e.facts["file"] for e in log.entries() if e.kind == "config"]
        stands = [e.facts["state"] for e in log.entries() if e.kind == "study"]
    assert files == ["policy.toml", "site.toml", "site.toml", "policy.toml"]
    assert stands == ["waiting", "approved"]
    assert moved[:2] == [frozenset({NAME}), frozenset({NAME})]
    assert not any(moved[2:])


# Lock and status.

_HOLD = """
import sys, pathlib
from fedward.common.lock import held
with held(pathlib.Path(sys.argv[1]), who="a client"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_daemons_cannot_have_one_folder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_held(lock)
    command = [sys.executable, "-c", _HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert is_held(lock)
        with pytest.raises(StateError, match="already runs"), held(lock, who="a client"):
            pass
        other.kill()
        other.wait()
    assert not is_held(lock)
    with held(lock, who="a client"):
        assert is_held(lock)


def test_the_status_is_written_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) == {}
    status = Status(path, site="north", pid=7)
    status.update(link="connected")
    assert read_status(path)["link"] == "connected"
    path.unlink()
    status.update(link="connected")  # no news
    assert not path.exists()
    path.write_text("{")
    assert read_status(path) == {}
    Status(tmp_path / "missing" / "s", site="north", pid=7).update(link="x")  # is no end


def test_a_change_that_the_log_could_not_take_is_entered_later(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at that moment: the change of a policy is on record as soon as there is room."""
    policy, told = tmp_path / "policy.toml", list[frozenset[str]]()
    policy.write_text("a = 1")

    async def ignored(*_: Any) -> None: ...

    async def changed(names: frozenset[str]) -> None:
        told.append(names)

    def full(*_: Any, **__: Any) -> None:
        raise OutputError("the disk is full", hint="make room")

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        looking = Watch(
            Changes((policy,), {}),
            states=dict,
            record=Record(log),
            before={},
            moved=ignored,
            changed=changed,
        )
        with monkeypatch.context() as patched:
            patched.setattr(Record, "note", full)
            asyncio.run(looking.look())
        assert told == []
        for _ in range(2):
            asyncio.run(looking.look())
        assert sum(entry.kind == "config" for entry in log.entries()) == 1
        assert told == [frozenset({"policy.toml"})]


def test_a_move_is_told_until_somebody_acted_on_it_and_entered_once(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a log that is full for a moment nor whoever acts on it makes it forget."""
    gone = "f" * 64
    states = {NAME: "approved", "0" * 64: "refused", gone: "waiting"}
    told = list[frozenset[str]]()
    note, fails = Record.note, iter([False, True])

    async def ignored(*_: Any) -> None: ...

    async def moved(_states: Mapping[str, str], names: frozenset[str]) -> None:
        told.append(names)
        if len(told) == 1:
            states.pop(gone)  # the offer is taken back
            raise LinkError("nobody there", hint="wait")

    def full_at_times(record: Record, kind: str, **facts: Any) -> None:
        if next(fails, False):
            raise OutputError("the disk is full", hint="make room")
        note(record, kind, **facts)

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        looking = Watch(
            Changes((), {}),
            states=lambda: states,
            record=Record(log),
            before={},
            moved=moved,
            changed=ignored,
        )
        monkeypatch.setattr(Record, "note", full_at_times)
        for _ in range(4):
            asyncio.run(looking.look())
        entered = [entry.facts["study"] for entry in log.entries() if entry.kind == "study"]
    assert sorted(entered) == sorted([*states, gone])
    assert told == [frozenset({*states, gone}), frozenset(states)]


def test_studies_that_are_offered_on_and_on_fill_no_log(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caused, "MOST", 5)
    states = {f"{number:064x}": "waiting" for number in range(20)}

    async def ignored(*_: Any) -> None: ...

    with AuditLog.open(tmp_path / "audit.log", consortium.sites["north"]) as log:
        record = Record(log)
        looking = Watch(
            Changes((), {}),
            states=lambda: states,
            record=record,
            before={},
            moved=ignored,
            changed=ignored,
        )
        asyncio.run(looking.look())
        assert sum(entry.kind == "study" for entry in log.entries()) == 5
        for name in states:  # what people decide is always entered
            states[name] = "approved"
        looking.offered()
        asyncio.run(looking.look())
        assert sum(entry.kind == "study" for entry in log.entries()) == 25


def test_offers_that_nobody_wants_are_not_kept_for_ever(
    consortium: Consortium, tmp_path: Path
) -> None:
    names = []
    for number in range(6):
        offer = read_offer(
            consortium.offer(small_study(training={"seed": number})), consortium.roster()
        )
        assert keep_offer(tmp_path, offer)
        os.utime(tmp_path / f"{offer.hash}.json", (number, number))
        names.append(offer.hash)
    forget_offers(tmp_path, names[:4], most=3)
    assert set(kept_offers(tmp_path)) == set(names[1:])
    forget_offers(tmp_path, [*names[:4], "gone"], most=1)
    assert set(kept_offers(tmp_path)) == set(names[3:])


# The outbox.


def test_replies_go_when_the_round_after_the_next_is_answered(tmp_path: Path) -> None:
    """The server may go back from its newest checkpoint to the one before."""
    outbox, keys = Outbox(tmp_path / "outbox"), ["a" * 64, "b" * 64, "c" * 64]
    for number, key in enumerate(keys, start=1):
        work = outbox.work("run-1", number, key)
        outbox.begin(work)
        write_durably(work, Content({"n": number}))
        outbox.release(work)
        outbox.ask(work, "train")
        outbox.receipt(key)
        there = [one for one in keys if outbox.find("run-1", one)]
        assert there == keys[max(0, number - 2) : number]
        assert len(list(work.parent.glob("*.asked"))) == len(there)
    assert outbox.last_round("run-1") == 3
    refusal = outbox.refuse("d" * 64, Content({"error-code": 8}))
    assert outbox.last_round("run-1") == 3
    assert outbox.find("run-1", "d" * 64) == refusal
    outbox.receipt("d" * 64)
    assert outbox.find("run-1", "d" * 64) is None
    assert outbox.find("run-1", keys[1]) is not None
    outbox.forget("run-1")
    assert outbox.last_round("run-1") == 0


def test_a_receipt_is_for_what_was_given_last(tmp_path: Path) -> None:
    """A refusal deletes no reply, and is out of date as soon as the reply is given again."""
    outbox, key = Outbox(tmp_path / "outbox"), "a" * 64
    work = outbox.work("run-1", 1, key)
    outbox.begin(work)
    write_durably(work, Content({"n": 1}))
    reply = outbox.release(work)
    refusal = outbox.refuse(key, Content({"error-code": 5}))
    assert outbox.receipt(key) == refusal
    assert not refusal.exists()
    outbox.refuse(key, Content({"error-code": 5}))
    assert outbox.find("run-1", key) == reply
    assert outbox.receipt(key) == reply
    assert reply.exists()


def test_what_is_left_of_runs_that_nobody_knows_goes_after_a_day(tmp_path: Path) -> None:
    outbox, now = Outbox(tmp_path / "outbox"), 1e9
    for run, age_s in (("known-1", 1e6), ("strange-1", 1e6), ("strange-2", 3600.0)):
        outbox.begin(outbox.work(run, 1, "a" * 64))
        os.utime(tmp_path / "outbox" / run, (now, now - age_s))
    old, young = (outbox.refuse(digit * 64, Content({"error-code": 14})) for digit in "ab")
    os.utime(old, (now, now - 1e6))
    outbox.forget_strangers({"known-1"}, now_s=now)
    left = {path.name for path in (tmp_path / "outbox").iterdir()}
    assert left == {"known-1", "strange-2", young.parent.name}
    assert list(young.parent.iterdir()) == [young]


def test_refusals_that_nobody_takes_do_not_add_up(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    for number in range(MOST_REFUSALS + 20):
        path = outbox.refuse(f"{number:064x}", Content({"error-code": 14}))
        os.utime(path, (number, number))
    assert len(list(path.parent.iterdir())) == MOST_REFUSALS
    assert path.exists()


def test_who_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    """However many runs are named: a folder for each would fill a disk."""
    outbox = Outbox(tmp_path / "outbox")
    for number in range(20):
        key = f"{number:064x}"
        outbox.work(f"run-{number}", 1, key)
        outbox.refuse(key, Content({"error-code": 14}))
        outbox.receipt(key)
    assert [path for path in (tmp_path / "outbox").rglob("*") if path.is_file()] == []
    assert len(list((tmp_path / "outbox").iterdir())) == 1


@pytest.mark.parametrize(("run", "key"), [("../x", "a" * 64), ("run", "../x"), ("run", "A" * 64)])
def test_names_that_are_paths_are_refused(run: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(LinkError):
        Outbox(tmp_path).work(run, 1, key)
    assert Outbox(tmp_path).find(run, key) is None
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == "[]"
