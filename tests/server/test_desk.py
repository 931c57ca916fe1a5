"""The desk counts what a site signed itself, later than before; logs that go back are refused."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from fedward.common.audit import AuditLog
from fedward.common.audit import caused as caused_module
from fedward.common.audit.caused import Caused
from fedward.common.errors import IdentityError, LinkError, StateError
from fedward.common.identity import PrivateKey, RosterFile
from fedward.common.statements import COUNTERSIGNATURE, DECISION, LEDGER_HEAD, OFFER, claims, state
from fedward.common.study import study_hash
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head, Header
from fedward.server.desk import Desk
from fedward.server.link.desk import Question
from fedward.server.registry import Choice, LogHead, Registry, State

_helper = runpy.run_path(str(Path(__file__).with_name("consortium.py")))
Consortium, SITES, a_study = (_helper[n] for n in ("Consortium", "SITES", "a_study"))
STUDY = a_study()
HASH = study_hash(STUDY)


class Counter:
    """A desk and everything behind it."""

    def __init__(self, folder: Path) -> None:
        self.consortium = Consortium(folder)
        self.registry = Registry.open(folder / "registry.sqlite")
        self.audit = AuditLog.open(folder / "audit.log", self.consortium.key)
        self.left_out: list[str] = []
        self.renewed: list[tuple[str, bytes]] = []
        self.desk = self.new_desk()

    def new_desk(self) -> Desk:
        roster = RosterFile(self.consortium.folder / "roster.json", self.consortium.root_pem)

        def renew(site: str, request: bytes) -> tuple[bytes, bytes]:
            self.renewed.append((site, request))
            return b"chain", roster.data

        caused = Caused(self.audit, on_left_out=self.left_out.append, clock=lambda: 0.0)
        return Desk(self.registry, roster=roster, audit=self.audit, caused=caused, renew=renew)

    def offer(self) -> bytes:
        evidence = state(OFFER, "coordinator", {"study": HASH}, self.consortium.key)
        self.registry.offer(STUDY, evidence, SITES)
        self.desk.refresh()
        return evidence

    def decided(
        self, choice: str, at_ms: int = 10, *, site: str = "site-1", **changes: Any
    ) -> dict[str, Any]:
        content = {"study": HASH, "choice": choice, "at_ms": at_ms, **changes}
        said = state(DECISION, site, content, self.consortium.keys[site]).decode()
        return self.desk.decide(question(site, decision=said))

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.audit.entries()][1:]

    def state(self, kind: str, signer: str, **content: Any) -> str:
        return state(kind, signer, content, self.consortium.keys[signer]).decode()


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    found = Counter(tmp_path)
    yield found
    found.audit.close()
    found.registry.close()


def question(
    site: str = "site-1", *, ledger: int | None = None, audit: int | None = None, **body: Any
) -> Question:
    header = Header(sender=site)
    if ledger is not None:
        header.ledger.CopyFrom(head(ledger))
    if audit is not None:
        header.audit.CopyFrom(head(audit))
    return Question(site, "", body, header, b"signed by " + site.encode())


def head(length: int, mark: int = 0) -> Head:
    return Head(length=length, hash=bytes([length % 256, mark]) * 16)


def shown(length: int) -> dict[str, Any]:
    return {"length": length, "hash": head(length).hash.hex()}


# --- studies and decisions ----------------------------------------------------------------------


def test_offers_are_given_as_they_were_signed(counter: Counter) -> None:
    assert counter.desk.studies(question()) == {"studies": [], "over": {}}
    evidence = counter.offer()
    (found,) = counter.desk.studies(question())["studies"]
    assert found == {"offer": evidence.decode(), "state": "offered", "choice": None, "run": ""}
    assert counter.desk.studies(question("stranger")) == {"studies": [], "over": {}}


def test_studies_beyond_the_room_of_an_answer_leave_out_those_that_ended(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They add up for years: with more than a message holds no hospital was told anything."""
    names = []
    for seed in range(6):
        study = a_study(training={"seed": seed})
        names.append(study_hash(study))
        evidence = state(OFFER, "coordinator", {"study": names[-1]}, counter.consortium.key)
        counter.registry.offer(study, evidence, SITES)
    whole = counter.desk.studies(question())["studies"]
    assert len(whole) == 6
    assert None not in whole
    for name in names[:1] + names[2:]:  # taken back, all but one that is old
        counter.registry.close_offer(name)
    monkeypatch.setattr(kinds, "ROOM_FOR_OFFERS", int(2.5 * len(json.dumps(whole[0]))))
    told = counter.desk.studies(question())["studies"]
    assert told[-1] is None
    found = [json.loads(one["offer"])["content"]["study"] for one in told[:-1]]
    assert found == [names[1], names[5]]
    large = a_study(training={"seed": 6})  # the newest, and alone too large: the rest is told
    content = {"study": study_hash(large), "x": "x" * kinds.ROOM_FOR_OFFERS}
    evidence = state(OFFER, "coordinator", content, counter.consortium.key)
    counter.registry.offer(large, evidence, SITES)
    assert counter.desk.studies(question())["studies"] == told


def test_a_site_can_withdraw_from_what_had_no_room(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.offer()
    for site in SITES:
        counter.decided("approve", site=site)
    run = counter.registry.start(HASH, SITES)
    counter.registry.transition(run.id, State.FAILED, reason="x")
    assert counter.desk.studies(question())["over"] == {}
    monkeypatch.setattr(kinds, "ROOM_FOR_OFFERS", 10)
    assert counter.desk.studies(question()) == {"studies": [None], "over": {HASH: "approve"}}
    counter.decided("withdraw", at_ms=20)
    assert counter.desk.studies(question())["over"] == {}


def test_looking_again_reads_nothing_when_nothing_has_changed(counter: Counter) -> None:
    """Every half second, for as long as the service runs, whatever it was ever offered."""
    counter.offer()
    asked: list[str] = []
    event.listen(
        counter.registry._engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: asked.append(statement),
    )
    assert counter.desk.refresh() == frozenset()
    assert len([one for one in asked if "FROM" in one]) == 1
    asked.clear()
    for site in SITES:
        counter.decided("approve", site=site)
    counter.registry.start(HASH, SITES)
    asked.clear()
    assert counter.desk.refresh() == set(SITES)
    assert not [one for one in asked if "document" in one or "evidence" in one]


def test_who_withdraws_after_the_release_is_put_on_record(counter: Counter) -> None:
    counter.offer()
    for site in SITES:
        counter.decided("approve", site=site)
    run = counter.registry.start(HASH, SITES).id
    assert counter.desk.studies(question())["over"] == {}
    for step in (State.EVALUATING, State.RELEASED):
        counter.registry.transition(run, step)
    answer = counter.desk.studies(question())
    assert answer == {"studies": [], "over": {HASH: "approve"}}
    assert counter.decided("withdraw", 20)["choice"] == "withdraw"
    assert counter.desk.studies(question())["over"] == {}
    assert counter.desk.studies(question("site-2"))["over"] == {HASH: "approve"}
    assert counter.registry.study(HASH).answers["site-1"].choice is Choice.WITHDRAW
    with pytest.raises(StateError, match="nothing is left to approve"):
        counter.decided("approve", 30)


def test_a_decision_is_kept_as_it_was_signed(counter: Counter) -> None:
    counter.offer()
    answer = counter.decided("approve", by=["Dr Example"])
    assert answer == {"study": HASH, "choice": "approve", "state": "offered", "new": True}
    assert counter.decided("approve", 11)["new"] is False
    (kept,) = counter.registry.decisions(HASH)
    assert json.loads(kept.evidence)["content"]["by"] == ["Dr Example"]
    assert counter.decided("approve", site="site-2")["state"] == "approved"
    assert counter.desk.studies(question())["studies"][0]["choice"] == "approve"
    assert counter.kinds() == ["decision", "decision"]


def test_a_decision_must_be_signed_by_the_site_itself(counter: Counter) -> None:
    counter.offer()
    content = {"study": HASH, "choice": "approve", "at_ms": 1}
    keys = counter.consortium.keys
    for signer, key in (
        ("site-1", keys["site-2"]),
        ("site-2", keys["site-2"]),
        ("site-1", PrivateKey.generate()),
        ("coordinator", counter.consortium.key),
    ):
        said = state(DECISION, signer, content, key).decode()
        with pytest.raises(IdentityError):
            counter.desk.decide(question("site-1", decision=said))
    said = state(OFFER, "site-1", content, keys["site-1"]).decode()
    with pytest.raises(IdentityError):
        counter.desk.decide(question("site-1", decision=said))
    assert counter.registry.decisions(HASH) == ()
    assert counter.kinds() == []


def test_an_old_decision_does_not_count_again(counter: Counter) -> None:
    counter.offer()
    counter.decided("approve", 10)
    assert counter.decided("withdraw", 20)["choice"] == "withdraw"
    for at_ms in (10, 20):
        with pytest.raises(StateError, match="not later than the one on record"):
            counter.decided("approve", at_ms)
    with pytest.raises(StateError, match="not later"):
        counter.decided("approve", 30.5)  # type: ignore[arg-type]
    assert counter.registry.study(HASH).answers["site-1"].choice is Choice.WITHDRAW
    assert counter.decided("approve", 21)["choice"] == "approve"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["withdraw"], Choice.REFUSE),
        (["approve", "refuse"], Choice.WITHDRAW),
        (["refuse", "withdraw"], Choice.REFUSE),
        (["refuse", "approve"], Choice.APPROVE),
    ],
)
def test_words_that_overtook_each_other_are_understood(
    counter: Counter, said: list[str], kept: Choice
) -> None:
    counter.offer()
    for at_ms, word in enumerate(said, start=1):
        counter.decided(word, at_ms)
    assert counter.registry.study(HASH).answers["site-1"].choice is kept


@pytest.mark.parametrize(
    "body",
    [{}, {"decision": 3}, {"decision": "{}"}, {"decision": ""}, {"decision": "\ud800"}],
)
def test_what_is_no_decision_is_refused(counter: Counter, body: dict[str, Any]) -> None:
    with pytest.raises((LinkError, IdentityError)):
        counter.desk.decide(question(**body))


def test_another_word_or_study_is_refused(counter: Counter) -> None:
    counter.offer()
    with pytest.raises(StateError, match="one of approve, refuse, withdraw"):
        counter.decided("maybe")
    with pytest.raises(StateError, match="no such study"):
        counter.decided("approve", study="0" * 64)


def test_who_was_revoked_decides_nothing(counter: Counter) -> None:
    counter.offer()
    counter.consortium.publish(without=["site-1"])
    counter.desk = counter.new_desk()
    for ask in (
        lambda: counter.decided("approve"),
        lambda: counter.desk.witness(question()),
    ):
        with pytest.raises(IdentityError, match="no active site"):
            ask()


# --- logs ---------------------------------------------------------------------------------------


def test_a_greeting_says_what_is_on_record(counter: Counter) -> None:
    first = counter.desk.greeted(question(ledger=0, audit=1))
    assert (first["ledger"], first["audit"]) == (None, shown(1))
    second = counter.desk.greeted(question(ledger=5, audit=2))
    assert (second["ledger"], second["audit"]) == (shown(5), shown(2))
    counter.desk = counter.new_desk()  # after a restart
    assert counter.desk.greeted(question(ledger=5, audit=2))["ledger"] == shown(5)
    heads = counter.desk.heads("site-1")
    assert heads.witnessed == head(2)
    assert heads.audit is not None
    assert heads.audit.length == counter.audit.head.length
    assert counter.desk.heads("site-2").witnessed is None


@pytest.mark.parametrize("log", ["ledger", "audit"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_site_whose_log_went_back_is_refused_at_its_greeting(
    counter: Counter, log: str, restarted: bool
) -> None:
    counter.desk.studies(question(**{log: 7}))
    if restarted:
        counter.desk = counter.new_desk()
    for length in (6, 0):
        with pytest.raises(StateError, match=f"the {log} of site site-1 went back"):
            counter.desk.greeted(question(**{log: length}))
    other = question(**{log: 7})
    getattr(other.header, log).CopyFrom(head(7, mark=1))
    with pytest.raises(StateError, match="went back"):
        counter.desk.greeted(other)
    assert counter.kinds() == ["log went back"] * 3
    assert counter.desk.greeted(question(**{log: 8}))[log] == shown(8)
    counter.desk.greeted(question("site-2", **{log: 1}))


def test_a_site_that_comes_back_again_and_again_fills_no_log(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caused_module, "MOST", 5)
    counter.desk.studies(question(ledger=7))

    def went_back(length: int = 6) -> None:
        with pytest.raises(StateError, match="the ledger of site site-1 went back"):
            counter.desk.greeted(question(ledger=length))

    for _ in range(20):  # a daemon that is not patient
        went_back()
    assert counter.kinds() == ["log went back"]
    counter.desk.greeted(question(ledger=7))  # the newest is there again, for a while
    went_back()
    assert counter.kinds() == ["log went back"] * 2
    for number in range(40):  # hostile: another end each time
        went_back(number % 6 + 1)
        counter.desk.greeted(question(ledger=7 + number // 2))
    assert counter.kinds() == ["log went back"] * 5
    assert len(counter.left_out) == 20 + 1 + 40 - 5
    counter.desk.studies(question("site-2", audit=3))
    with pytest.raises(StateError):  # another's are entered all the same
        counter.desk.greeted(question("site-2", audit=2))
    assert len(counter.kinds()) == 6


def test_to_withdraw_what_is_withdrawn_changes_nothing(counter: Counter) -> None:
    counter.offer()
    counter.decided("approve", 10)
    assert counter.decided("withdraw", 20)["new"] is True
    for number in range(6):
        answer = counter.decided(["withdraw", "refuse"][number % 2], 30 + number)
        assert (answer["choice"], answer["new"]) == ("withdraw", False)
    assert counter.kinds() == ["decision", "decision"]
    assert len(counter.registry.decisions(HASH)) == 2


def test_a_message_that_was_overtaken_is_no_log_that_went_back(counter: Counter) -> None:
    counter.desk.studies(question(ledger=7))
    counter.desk.studies(question(ledger=6))
    assert counter.desk.greeted(question(ledger=7))["ledger"] == shown(7)
    changed = question()
    changed.header.ledger.CopyFrom(head(7, mark=1))
    with pytest.raises(StateError, match="went back"):
        counter.desk.studies(changed)


def test_ends_that_came_with_a_round_are_remembered(counter: Counter) -> None:
    digest = head(9).hash.hex()
    counter.desk.remember(
        [LogHead("site-1", "ledger", 9, digest), LogHead("site-1", "audit", 2, digest)]
    )
    counter.desk.remember([LogHead("site-1", "ledger", 8, digest)])
    counter.registry.witness("site-1", "ledger", length=9, hash_=digest)
    with pytest.raises(StateError, match="went back"):
        counter.desk.greeted(question(ledger=8))


def stated(counter: Counter, site: str, length: int) -> str:
    return counter.state(LEDGER_HEAD, site, **shown(length))


def signature(counter: Counter, end: int, *, by: str = "site-2", **content: Any) -> str:
    """A site's signature under the end of the ledger of site-1."""
    said = {"site": "site-1", **shown(end), "statement": stated(counter, "site-1", end)}
    content = said | {"before": []} | content
    return state(COUNTERSIGNATURE, by, content, counter.consortium.keys[by]).decode()


def states(counter: Counter, site: str, length: int) -> Mapping[str, Any]:
    body = {"ledger": stated(counter, site, length)}
    return counter.desk.witness(Question(site, "", body, Header(), b""))


def test_sites_sign_each_others_ledgers(counter: Counter) -> None:
    answer = counter.desk.witness(question("site-1", ledger=3))
    assert answer == {"ledger": shown(3), "signed": {}, "heads": [], "signatures": []}
    one = stated(counter, "site-1", 3)
    said = Question("site-1", "", {"ledger": one}, Header(), b"")
    assert counter.desk.witness(said)["ledger"] == shown(3)
    (seen,) = counter.desk.witness(question("site-2"))["heads"]
    assert seen == one
    signed = signature(counter, 3)
    answer = counter.desk.witness(question("site-2", signed=[signed]))
    assert (answer["signatures"], answer["signed"]) == ([], {"site-1": 3})
    assert counter.desk.witness(question("site-1"))["signatures"] == [signed]
    # The same end again, however often it is signed, is not put on record again.
    counter.desk.witness(question("site-2", signed=[signature(counter, 3), signature(counter, 2)]))
    assert counter.desk.witness(question("site-1"))["signatures"] == [signed]


def test_a_signature_under_a_ledger_must_be_ones_own_and_of_what_the_site_said(
    counter: Counter,
) -> None:
    states(counter, "site-1", 3)
    by_another = counter.state(LEDGER_HEAD, "site-2", **shown(9))
    good = signature(counter, 3)
    for signed in (
        signature(counter, 3, by="site-3"),
        signature(counter, 9, statement=by_another),
        signature(counter, 9, statement=stated(counter, "site-1", 3)),
        signature(counter, 9, statement=""),
        signature(counter, 9, statement=7),
        signature(counter, 9, before=[by_another]),
        signature(counter, 9, before=["x" * 5000]),
        signature(counter, 9, x="more than it must say"),
        signature(counter, 3, site="site-2"),
        signature(counter, 3, site="nobody"),
        signature(counter, 3, hash="x"),
        counter.state(LEDGER_HEAD, "site-2", site="site-1", **shown(3)),
    ):
        assert counter.desk.witness(question("site-2", signed=[signed]))["signed"] == {}
        assert counter.registry.countersignatures() == ()
    # Another's mistake keeps nothing from being put on record that comes with it.
    assert counter.desk.witness(question("site-2", signed=[signed, good]))["signed"] == {
        "site-1": 3
    }
    with pytest.raises(IdentityError):
        counter.desk.witness(
            Question("site-2", "", {"ledger": stated(counter, "site-1", 3)}, Header(), b"")
        )
    more = counter.state(LEDGER_HEAD, "site-1", **shown(4), x="é" * 100)
    with pytest.raises(IdentityError):
        counter.desk.witness(Question("site-1", "", {"ledger": more}, Header(), b""))
    for malformed in ([signature(counter, 3)] * 9, 7, [7]):
        with pytest.raises(LinkError):
            counter.desk.witness(question("site-2", signed=malformed))


def test_a_server_that_was_put_back_learns_from_any_site_what_it_had_seen(
    counter: Counter,
) -> None:
    """Then the site that was put back with it is refused, here too."""
    states(counter, "site-1", 3)
    later = signature(counter, 7)
    answer = counter.desk.witness(question("site-2", signed=[later]))
    assert answer["heads"] == [claims(later.encode())["statement"]]
    answer = states(counter, "site-1", 4)
    assert (answer["ledger"], answer["signatures"]) == (shown(7), [later])
    with pytest.raises(StateError, match="went back"):
        counter.desk.greeted(question(ledger=4))


def test_a_ledger_that_went_another_way_is_shown_to_its_site(counter: Counter) -> None:
    states(counter, "site-1", 3)
    fork = {"length": 3, "hash": "f" * 64}
    statement = counter.state(LEDGER_HEAD, "site-1", **fork)
    signed = signature(counter, 3, **fork, statement=statement)
    counter.desk.witness(question("site-2", signed=[signed]))
    assert counter.desk.witness(question("site-1"))["signatures"] == [signed]
    went_back = [entry for entry in counter.audit.entries() if entry.kind == "log went back"]
    assert [entry.facts["log"] for entry in went_back] == ["ledger"]


def test_an_answer_about_ledgers_has_room_for_all_it_says(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in ("site-1", "site-2"):
        states(counter, site, 3)
    assert len(counter.desk.witness(question("site-3"))["heads"]) == 2
    monkeypatch.setattr("fedward.server.witnesses._ROOM_FOR_ENDS", 1000)
    assert len(counter.desk.witness(question("site-3"))["heads"]) == 1


# --- the rest -----------------------------------------------------------------------------------


def test_roster_and_certificates_are_handed_out(counter: Counter) -> None:
    data = (counter.consortium.folder / "roster.json").read_bytes()
    assert counter.desk.roster(question()) == {"roster": data.decode(), "version": 1}
    answer = counter.desk.renew(question(request="PEM"))
    assert answer == {"certificate": "chain", "roster": data.decode()}
    assert counter.renewed == [("site-1", b"PEM")]
    with pytest.raises(LinkError):
        counter.desk.renew(question())


def test_the_version_of_studies_changes_with_what_is_offered(counter: Counter) -> None:
    version = counter.desk.studies_version
    assert version("site-1") == 0
    counter.offer()
    before = version("site-1")
    assert before > 0
    assert counter.desk.refresh() == frozenset()
    for site in SITES:
        counter.decided("approve", site=site)
    counter.registry.start(HASH, SITES)
    assert counter.desk.refresh() == set(SITES)
    (run,) = counter.registry.runs(State.RUNNING)
    assert run.sites == SITES
    assert version("site-1") != before
    assert version("stranger") == 0
