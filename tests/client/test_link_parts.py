"""The parts of a hospital's link: what they accept, what they refuse, how long they wait."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import shutil
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.client.link.assignments import Offer, read_offer
from fedward.client.link.backoff import Backoff
from fedward.client.link.connection import (
    BusyError,
    Endpoint,
    ExpelledError,
    Line,
    explained,
    refused,
    translated,
)
from fedward.client.link.greeting import ask, greet
from fedward.client.link.transfers import Outgoing, Room, fetch, tidy_inbox
from fedward.client.link.upkeep import Upkeep
from fedward.common.errors import (
    FedwardError,
    IdentityError,
    LinkError,
    OutputError,
    PolicyError,
    StateError,
)
from fedward.common.identity import (
    Authority,
    Identity,
    Member,
    PrivateKey,
    Roster,
    issue,
    make_issuer,
    make_root,
    sign_roster,
)
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Chunk, Header, Range, Signed
from fedward.common.wire.message import message_id, peek
from fedward.common.wire.session import Session

NOW = datetime.now(UTC)
BODY = b"weights" * 1000
SINCE = "2026-01-01"


class Parties:
    """A site and a server that know each other, and a stranger."""

    def __init__(self) -> None:
        root_key, issuer_key = PrivateKey.generate(), PrivateKey.generate()
        self.root = make_root(root_key, "Example", now=NOW - timedelta(days=200))
        issuer = make_issuer(
            issuer_key.public, Authority(root_key, self.root), now=NOW - timedelta(days=200)
        )
        self.issuer = Authority(issuer_key, issuer)
        self.site, self.server, self.stranger = (PrivateKey.generate() for _ in range(3))
        self.name = b"n" * 32

    def identity(
        self, key: PrivateKey | None = None, name: str = "north", days: int = 0
    ) -> Identity:
        key = key or self.site
        begun = NOW - timedelta(days=days)
        leaf = issue(key.public, name, "site", self.issuer, now=begun)
        return Identity(key, leaf, self.issuer.certificate, self.root)

    def roster(self, version: int = 1, server: PrivateKey | None = None, **members: Any) -> Roster:
        everybody = {
            "central": Member.make(
                "central", "coordinator", (server or self.server).public, since=SINCE
            ),
            "north": Member.make("north", "site", self.site.public, since=SINCE),
            **members,
        }
        return Roster(
            consortium="Example",
            version=version,
            issued_at=NOW.isoformat(),
            host="localhost",
            port=1,
            members=tuple(everybody.values()),
        )

    def signed(self, roster: Roster) -> str:
        return sign_roster(roster, self.issuer.key, self.issuer.certificate).decode()

    def ours(self) -> Session:
        return Session(
            self.name, me="north", peer="central", signer=self.site, verifier=self.server.public
        )

    def theirs(self, name: bytes | None = None, key: PrivateKey | None = None) -> Session:
        return Session(
            self.name if name is None else name,
            me="central",
            peer="north",
            signer=key or self.server,
            verifier=self.site.public,
        )


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


def task(session: Session, **changes: Any) -> Signed:
    fields = {
        "study": "a" * 64,
        "run": "r1",
        "round": 3,
        "action": "train",
        "body_sha256": hashlib.sha256(BODY).digest(),
        "body_size": len(BODY),
        "plain_size": len(BODY),
    }
    return session.large(kinds.TASK, **{**fields, **changes})


# --- backoff --------------------------------------------------------------------------------------


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 40))
def test_waits_grow_within_bounds(draw: float, times: int) -> None:
    backoff = Backoff(random=lambda: draw, first_s=0.5, longest_s=60.0)
    waits = [backoff.next_s() for _ in range(times)]
    assert all(0.5 <= wait_s <= 60 for wait_s in waits)
    assert waits == sorted(waits)
    backoff.reset()
    assert backoff.next_s() == waits[0]


def test_waits_are_spread_over_all_of_the_interval() -> None:
    draws = iter([0.0] * 12 + [math.nextafter(1.0, 0.0)])
    backoff = Backoff(random=lambda: next(draws))
    assert [backoff.next_s() for _ in range(12)] == [0.5] * 12
    assert backoff.next_s() == pytest.approx(60.0)


# --- offers ---------------------------------------------------------------------------------------


def test_an_offer_has_the_same_key_in_every_session(parties: Parties) -> None:
    first = read_offer(parties.ours(), task(parties.theirs()))
    other_session = parties.theirs()
    other_session.header(kinds.PROBE)  # another sequence number, so another message
    second = read_offer(parties.ours(), task(other_session))
    assert first.id != second.id
    assert first.key == second.key
    for changes in (
        {"run": "r2"},
        {"round": 4},
        {"action": "evaluate"},
        {"body_sha256": b"x" * 32},
    ):
        assert read_offer(parties.ours(), task(parties.theirs(), **changes)).key != first.key
    assignment = first.assignment(Path("body"))
    assert (assignment.run, assignment.round, assignment.action) == ("r1", 3, "train")
    assert message_id(Signed.FromString(assignment.evidence)) == first.id


@pytest.mark.parametrize(
    "changes",
    [
        {"study": ""},
        {"study": "A" * 64},
        {"run": "../../etc"},
        {"run": ".hidden"},
        {"run": ""},
        {"run": "r" * 101},
        {"run": "r\n"},
        {"action": "Train"},
        {"action": "train.x/y"},
        {"action": ""},
        {"body_size": 0, "plain_size": 0},
        {"encoding": "gzip"},
    ],
)
def test_what_cannot_be_a_task_is_refused(parties: Parties, changes: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        read_offer(parties.ours(), task(parties.theirs(), **changes))


def test_only_the_server_gives_tasks_in_this_session(parties: Parties) -> None:
    with pytest.raises(IdentityError):
        read_offer(parties.ours(), task(parties.theirs(key=parties.stranger)))
    with pytest.raises(LinkError, match="another session"):
        read_offer(parties.ours(), task(parties.theirs(name=b"old")))
    with pytest.raises(LinkError, match="no task"):
        read_offer(parties.ours(), parties.theirs().small(kinds.PROBE, {}))


# --- what errors mean -----------------------------------------------------------------------------


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty, details=details)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_becomes_one_of_our_errors(code: grpc.StatusCode) -> None:
    error = explained(rpc_error(code, "x\n" + "secret" * 1000))
    assert isinstance(error, LinkError | IdentityError | StateError)
    assert len(str(error)) < 600
    assert "\n" not in str(error)


def test_certificates_and_membership_are_told_apart() -> None:
    tls = rpc_error(grpc.StatusCode.UNAVAILABLE, "... CERTIFICATE_VERIFY_FAILED ...")
    assert isinstance(explained(tls), IdentityError)
    assert not isinstance(explained(tls), ExpelledError)
    assert isinstance(explained(rpc_error(grpc.StatusCode.UNAVAILABLE, "refused")), LinkError)
    assert isinstance(
        explained(rpc_error(grpc.StatusCode.PERMISSION_DENIED, "north is revoked")), ExpelledError
    )


def test_a_refusal_keeps_its_kind() -> None:
    error = refused({"code": 14, "problem": "the policy\nsays no", "hint": "ask"})
    assert isinstance(error, PolicyError)
    assert str(error) == "the server refuses (the policy says no): ask"
    for body in ({}, {"code": "x", "problem": 3}, {"code": 999, "problem": "p" * 10_000}):
        assert isinstance(refused(body), LinkError)
        assert len(str(refused(body))) < 400
    assert isinstance(refused({"code": 12, "problem": "revoked"}), ExpelledError)


def test_being_cancelled_is_told_from_a_call_that_was() -> None:
    async def ours() -> None:
        with translated():
            await asyncio.Event().wait()

    async def theirs() -> None:
        with translated():
            raise asyncio.CancelledError

    async def main() -> None:
        running = asyncio.create_task(ours())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(LinkError):
            await theirs()

    asyncio.run(main())


def test_an_address_of_version_six_is_bracketed() -> None:
    assert Endpoint("fl.example.org", 8440).target == "fl.example.org:8440"
    assert Endpoint("::1", 8440).target == "[::1]:8440"


# --- greeting and questions -----------------------------------------------------------------------


class Stub:
    """A server of one function for every call."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def Greet(self, question: Signed, timeout: float) -> Signed:  # noqa: N802
        return self._answer(question)  # type: ignore[no-any-return]

    Call = Greet

    def Fetch(self, wanted: Range) -> Any:  # noqa: N802
        return self._answer(wanted)


def greeting(parties: Parties, answer: Any, **options: Any) -> Any:
    return asyncio.run(
        greet(Stub(answer), parties.identity(), parties.roster(), patience_s=5, **options)
    )


def test_a_greeting_makes_a_session_of_both_halves(parties: Parties) -> None:
    seen: list[bytes] = []

    def answer(question: Signed) -> Signed:
        wire = parties.theirs(name=b"")
        wire.open(question)
        seen.append(question.body)
        body = {"half": "ab" * 16, "heartbeat_s": 7}
        return wire.small(kinds.GREET, body, reply_to=message_id(question))

    found = greeting(parties, answer)
    assert found.line.session.name.endswith(bytes.fromhex("ab" * 16))
    assert len(found.line.session.name) == 32
    assert abs(found.skew_s) < 60
    greeting(parties, answer)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("half", [None, 5, "", "ab" * 15, "zz" * 16, "ab" * 17])
def test_a_greeting_without_a_half_is_refused(parties: Parties, half: object) -> None:
    def answer(question: Signed) -> Signed:
        body = {"half": half}
        return parties.theirs(name=b"").small(kinds.GREET, body, reply_to=message_id(question))

    with pytest.raises(LinkError):
        greeting(parties, answer)


def test_a_recorded_greeting_is_refused(parties: Parties) -> None:
    recorded: list[Signed] = []

    def answer(question: Signed) -> Signed:
        wire = parties.theirs(name=b"")
        recorded.append(wire.small(kinds.GREET, {"half": "ab" * 16}, reply_to=message_id(question)))
        return recorded[0]

    greeting(parties, answer)
    with pytest.raises(LinkError, match="another question"):
        greeting(parties, answer)


def test_a_stranger_who_greets_is_refused(parties: Parties) -> None:
    def answer(question: Signed) -> Signed:
        wire = parties.theirs(name=b"", key=parties.stranger)
        body = {"half": "ab" * 16}
        return wire.small(kinds.GREET, body, reply_to=message_id(question))

    with pytest.raises(IdentityError, match="not the coordinator"):
        greeting(parties, answer)
    upkeep = make_upkeep(parties)
    with pytest.raises(IdentityError, match="not the coordinator"):
        greeting(parties, answer, adopt=upkeep.adopt)


def test_a_new_key_of_the_server_needs_the_issuers_word(parties: Parties) -> None:
    new = PrivateKey.generate()

    def answer_with(data: str) -> Any:
        def answer(question: Signed) -> Signed:
            body = {"half": "ab" * 16, "roster_data": data}
            wire = parties.theirs(name=b"", key=new)
            return wire.small(kinds.GREET, body, reply_to=message_id(question))

        return answer

    newer = parties.roster(version=2, server=new)
    upkeep = make_upkeep(parties)
    assert greeting(parties, answer_with(parties.signed(newer)), adopt=upkeep.adopt)
    assert upkeep.roster.version == 2
    elsewhere = Parties()
    forged = elsewhere.signed(newer)  # by the issuer of another consortium
    for data in (forged, "{}", parties.signed(parties.roster(version=1))):
        with pytest.raises(FedwardError):
            greeting(parties, answer_with(data), adopt=make_upkeep(parties).adopt)


def test_a_refused_greeting_keeps_its_reason(parties: Parties) -> None:
    def answer(question: Signed) -> Signed:
        body = {"code": 15, "problem": "the ledger went back", "hint": "call us"}
        return parties.theirs(name=b"").small(kinds.REFUSAL, body, reply_to=message_id(question))

    with pytest.raises(StateError, match="the ledger went back"):
        greeting(parties, answer)


def test_a_question_is_answered_by_its_answer_only(parties: Parties) -> None:
    wire = parties.theirs()

    def asking(answer: Any) -> Any:
        line = Line(Stub(answer), parties.ours(), 5.0)
        return asyncio.run(ask(line, kinds.STUDIES, {"a": 1}))

    def right(question: Signed) -> Signed:
        return wire.small(kinds.STUDIES, {"b": 2}, reply_to=message_id(question))

    assert asking(right) == {"b": 2}
    with pytest.raises(LinkError, match="another question"):
        asking(lambda _question: wire.small(kinds.STUDIES, {}))
    with pytest.raises(LinkError, match="another kind"):
        asking(lambda question: wire.small(kinds.DECIDE, {}, reply_to=message_id(question)))


def test_a_busy_server_is_asked_again(parties: Parties) -> None:
    wire, asked = parties.theirs(), []

    def answer(question: Signed) -> Signed:
        asked.append(message_id(question))
        if len(asked) < 3:
            raise rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of north")
        return wire.small(kinds.STUDIES, {"b": 2}, reply_to=message_id(question))

    def asking(patience_s: float) -> Any:
        line = Line(Stub(answer), parties.ours(), patience_s)
        return asyncio.run(ask(line, kinds.STUDIES, {}))

    assert asking(30.0) == {"b": 2}
    assert len(set(asked)) == 3
    asked.clear()
    with pytest.raises(BusyError):
        asking(0.0)
    assert len(asked) == 1


# --- transfers ------------------------------------------------------------------------------------


class Stream:
    """Chunks as gRPC gives them."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self._chunks = iter(chunks)
        self.cancelled = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


def fetching(parties: Parties, folder: Path, signed: Signed, answer: Any) -> Path:
    session = parties.ours()
    offer: Offer = read_offer(session, signed)
    return asyncio.run(fetch(Line(Stub(answer), session, 5.0), offer, folder))


def test_a_body_in_the_inbox_is_not_fetched_again(parties: Parties, tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(wanted: Range) -> Stream:
        asked.append(wanted.offset)
        return Stream([Chunk(offset=wanted.offset, data=BODY[wanted.offset :])])

    for _ in range(2):
        path = fetching(parties, tmp_path, task(parties.theirs()), answer)
        assert path.read_bytes() == BODY
    assert asked == [0]
    path.write_bytes(BODY[:-1] + b"?")  # a disk that errs
    assert fetching(parties, tmp_path, task(parties.theirs()), answer).read_bytes() == BODY
    assert asked == [0, 0]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [Chunk(offset=0, data=BODY[:-1])],
        [Chunk(offset=1, data=BODY[1:])],
        [Chunk(offset=0, data=BODY + b"x")],
        [Chunk(offset=0, data=BODY[:-1] + b"x")],
    ],
)
def test_a_wrong_body_is_never_given(parties: Parties, tmp_path: Path, chunks: list[Chunk]) -> None:
    with pytest.raises(LinkError):
        fetching(parties, tmp_path, task(parties.theirs()), lambda _wanted: Stream(chunks))
    assert all(path.suffix == ".part" for path in tmp_path.iterdir())


def test_a_packed_body_is_unpacked_and_no_larger_than_it_said(
    parties: Parties, tmp_path: Path
) -> None:
    packed = zlib.compress(BODY)
    fields = {
        "body_sha256": hashlib.sha256(packed).digest(),
        "body_size": len(packed),
        "encoding": "deflate",
    }
    answer = lambda wanted: Stream([Chunk(offset=0, data=packed[wanted.offset :])])  # noqa: E731
    signed = task(parties.theirs(), **fields)
    assert fetching(parties, tmp_path, signed, answer).read_bytes() == BODY
    signed = task(parties.theirs(), **fields, plain_size=len(BODY) - 1)
    with pytest.raises(LinkError, match="unpack"):
        fetching(parties, tmp_path, signed, answer)


def test_a_reply_travels_as_the_same_bytes_each_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BODY)
    first = Outgoing.of(tmp_path / "a")
    assert first.encoding
    assert first.size < first.plain_size == len(BODY)
    assert Outgoing.of(tmp_path / "a") == first
    first.tidy()
    assert Outgoing.of(tmp_path / "a") == first
    for name, content in (("empty", b""), ("none", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(LinkError):
            Outgoing.of(tmp_path / name)


def test_old_bodies_leave_the_inbox(tmp_path: Path) -> None:
    for name, written in (("old", 1000), ("new", 3000)):
        (tmp_path / name).write_bytes(BODY)
        os.utime(tmp_path / name, (written, written))
    tidy_inbox(tmp_path, before=2000)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# --- upkeep ---------------------------------------------------------------------------------------


def make_upkeep(parties: Parties, days: int = 0, installed: list[str] | None = None) -> Upkeep:
    return Upkeep(
        parties.identity(days=days),
        parties.roster(),
        install=(installed if installed is not None else []).append,
        on_roster=lambda _data: None,
        now=lambda: NOW,
    )


def answering(parties: Parties, kind: str, body: dict[str, Any]) -> Line:
    wire = parties.theirs()

    def answer(question: Signed) -> Signed:
        assert peek(question).kind == kind
        return wire.small(kind, body, reply_to=message_id(question))

    return Line(Stub(answer), parties.ours(), 5.0)


def test_only_a_newer_roster_is_taken(parties: Parties) -> None:
    upkeep = make_upkeep(parties)

    def offered(text: object) -> None:
        line = answering(parties, kinds.ROSTER, {"roster": text})
        asyncio.run(upkeep.fetch_roster(line))

    offered(parties.signed(parties.roster(version=5)))
    assert upkeep.roster.version == 5
    for text in (parties.signed(parties.roster(version=4)), "{}", 3, None):
        with pytest.raises((IdentityError, LinkError)):
            offered(text)
    assert upkeep.roster.version == 5


def test_a_revoked_member_ends(parties: Parties) -> None:
    upkeep = make_upkeep(parties)
    upkeep.check_membership()
    gone = parties.roster().members[1].revoked("left", since=SINCE)
    upkeep.roster = parties.roster(version=2, north=gone)
    with pytest.raises(ExpelledError, match="revoked"):
        upkeep.check_membership()


def test_the_last_third_of_a_certificate_is_the_time_to_renew(parties: Parties) -> None:
    assert not make_upkeep(parties, days=59).renewal_due
    assert make_upkeep(parties, days=61).renewal_due


def test_a_new_certificate_is_installed(parties: Parties) -> None:
    installed: list[str] = []
    upkeep = make_upkeep(parties, days=61, installed=installed)
    chain = parties.identity().chain_pem.decode()
    asyncio.run(upkeep.renew(answering(parties, kinds.RENEW, {"certificate": chain})))
    assert installed == [chain]
    assert upkeep.identity.chain_pem.decode() == chain
    assert not upkeep.renewal_due


def test_a_certificate_that_is_not_ours_is_not_installed(parties: Parties) -> None:
    other = Parties()
    fresh = parties.identity()
    bad = [
        parties.identity(parties.stranger).chain_pem.decode(),
        parties.identity(name="south").chain_pem.decode(),
        parties.identity(days=62).chain_pem.decode(),
        replace(other.identity(), key=parties.site).chain_pem.decode(),
        fresh.certificate.pem,
        fresh.chain_pem.decode() + fresh.root_pem.decode(),
        "no certificate",
        None,
    ]
    for chain in bad:
        installed: list[str] = []
        upkeep = make_upkeep(parties, days=61, installed=installed)
        before = upkeep.identity
        with pytest.raises((IdentityError, LinkError)):
            asyncio.run(upkeep.renew(answering(parties, kinds.RENEW, {"certificate": chain})))
        assert installed == []
        assert upkeep.identity == before


def test_room_is_promised_once_and_not_for_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = (1 << 30) + 1000
    monkeypatch.setattr(
        "fedward.client.link.transfers.shutil.disk_usage",
        lambda _folder: usage._replace(total=1 << 40, free=free),
    )
    room = Room(tmp_path)

    def of(size: int, mark: int) -> Offer:
        header = Header(
            body_size=size, plain_size=size, encoding="", body_sha256=bytes([mark]) * 32
        )
        return Offer("key", b"id", header, b"")

    with room.taken(of(600, 1)):
        with pytest.raises(OutputError, match="too little room"):
            room.taken(of(600, 2))
        with room.taken(of(300, 3)):
            pass
    with room.taken(of(900, 2)):
        pass
    (tmp_path / (bytes([4]) * 32).hex()).write_bytes(bytes(5000))
    with room.taken(of(5000, 4)):  # is here
        pass
