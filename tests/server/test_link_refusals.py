"""Who must not get in, what must not be said: refused with its reason, and the service lives."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.server.link_client import (
    HOST,
    SERVER,
    Consortium,
    FakeDesk,
    RawSite,
    Running,
    body_of,
    running,
    with_fields,
)

from fedward.common.errors import IdentityError, LinkError
from fedward.common.identity import Authority, Member, PrivateKey, issue, make_issuer, make_root
from fedward.common.statements import DECISION, state
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Chunk, Header, Part, Range
from fedward.common.wire.message import message_id, pack, seal
from fedward.server.link.handshakes import listening, reason_of
from fedward.server.link.peers import Allowance, Limits, Peers
from fedward.server.link.refusals import BusyError
from fedward.server.link.service import takes_back

Case = Callable[[Running], Awaitable[None]]


@asynccontextmanager
async def attacked(folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """A service that must still serve a good peer when the attack is over."""
    async with running(folder, **settings) as up:
        with listening(up.server.refusals):
            yield up
        async with up.site("south") as south:
            assert (await south.greet())["kind"] == kinds.GREET
            assert (await south.ask(kinds.PROBE))[0] == kinds.PROBE


def attack(folder: Path, case: Case, *, reason: str, **settings: Any) -> None:
    """Run an attack; it must be refused for that reason, in the log and for the audit log."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("fedward.server.link.refusals")
    logger.addHandler(handler)

    async def main() -> Running:
        async with attacked(folder, **settings) as up:
            await case(up)
        return up

    try:
        up = asyncio.run(main())
    finally:
        logger.removeHandler(handler)
    logged = [record.facts for record in records]  # type: ignore[attr-defined]
    assert {record.getMessage() for record in records} == {"refused"}
    assert all(record.levelno == logging.WARNING for record in records)
    assert any(reason in facts["reason"] for facts in logged), logged
    assert logged == up.refusals
    json.dumps(logged)


async def no_entry(site: RawSite) -> None:
    """The connection comes to nothing."""
    async with site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.greet()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def told(call: Awaitable[Any], code: grpc.StatusCode, words: str) -> None:
    """A call ends with a status and words."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    assert words in (caught.value.details() or "")


async def refused(answer: Awaitable[tuple[str, dict[str, Any]]], code: int, words: str) -> None:
    """A call ends with a signed refusal."""
    kind, body = await answer
    assert (kind, body["code"]) == (kinds.REFUSAL, code)
    assert words in f"{body['problem']}: {body['hint']}"


# --- before anybody says a word -------------------------------------------------------------------


def speak_tls(up: Running, *, chain: str | None, folder: Path, newest: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    if chain is not None:
        (folder / "chain").write_text(chain)
        (folder / "key").write_bytes(up.consortium.keys["north"].pem)
        context.load_cert_chain(folder / "chain", folder / "key")
    with socket.create_connection((HOST, up.port), timeout=20) as raw:
        try:
            with context.wrap_socket(raw) as tls:
                assert tls.recv(1) == b""  # in TLS 1.3 the refusal comes after the handshake
        except (ssl.SSLError, ConnectionError):
            pass


def test_no_certificate(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        newest = ssl.TLSVersion.TLSv1_3
        await asyncio.to_thread(speak_tls, up, chain=None, folder=tmp_path, newest=newest)

    attack(tmp_path, case, reason="the peer shows no certificate")


def test_tls_1_2(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        chain, old = up.consortium.chain("north"), ssl.TLSVersion.TLSv1_2
        await asyncio.to_thread(speak_tls, up, chain=chain, folder=tmp_path, newest=old)

    attack(tmp_path, case, reason="the peer does not speak TLS 1.3")


def test_plaintext(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with grpc.aio.insecure_channel(f"{HOST}:{up.port}") as channel:
            call = channel.unary_unary("/fedward.link.v1.Link/Greet")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"", timeout=10)

    attack(tmp_path, case, reason="the peer does not speak TLS")


def test_an_expired_certificate(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        before = datetime.now(UTC) - timedelta(days=10)
        await no_entry(up.site(chain=up.consortium.chain("north", begin=before, days=5)))

    attack(tmp_path, case, reason="certificate has expired")


def test_a_certificate_of_another_root(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        other = Consortium()
        key = up.consortium.keys["north"]
        await no_entry(up.site(chain=other.chain("north", key=key)))

    attack(tmp_path, case, reason="the certificate of the peer is refused")


def test_a_certificate_that_signs_itself_another(tmp_path: Path) -> None:
    """A member cannot enrol others."""

    async def case(up: Running) -> None:
        members = up.consortium.keys["north"]
        forged_key = PrivateKey.generate()
        leaf = up.consortium.chain("north").split("-----END CERTIFICATE-----\n")[0]
        root = make_root(members, "Example", now=datetime.now(UTC))
        issuer = make_issuer(
            members.public, Authority(members, root), now=datetime.now(UTC), days=30
        )
        forged = issue(
            forged_key.public,
            "north",
            "site",
            Authority(members, issuer),
            now=datetime.now(UTC),
            days=10,
        )
        chain = forged.pem + leaf + "-----END CERTIFICATE-----\n" + up.consortium.chain("north")
        await no_entry(up.site(key=forged_key, chain=chain))

    attack(tmp_path, case, reason="the certificate of the peer is refused")


def test_the_second_door_for_old_tls_and_missing_certificates() -> None:
    """Should gRPC ever let one through."""
    consortium = Consortium()

    class Call:
        def __init__(self, **facts: bytes) -> None:
            self.facts = {name: [value] for name, value in facts.items()}

        def auth_context(self) -> dict[str, list[bytes]]:
            return self.facts

        def peer(self) -> str:
            return "somewhere"

    peers = Peers(consortium.roster)
    pem = consortium.chain("north").encode()
    good = Call(ssl_tls_version=b"TLSv1.3", x509_pem_cert=pem)
    assert peers.admit(good).name == "north"
    for bad, words in (
        (Call(ssl_tls_version=b"TLSv1.2", x509_pem_cert=pem), "not TLS 1.3"),
        (Call(x509_pem_cert=pem), "not TLS 1.3"),
        (Call(ssl_tls_version=b"TLSv1.3"), "no certificate"),
        (Call(ssl_tls_version=b"TLSv1.3", x509_pem_cert=b"nonsense"), "cannot be read"),
    ):
        with pytest.raises(IdentityError, match=words):
            peers.admit(bad)
    later = Peers(consortium.roster, now=lambda: datetime.now(UTC) + timedelta(days=40))
    with pytest.raises(IdentityError, match="not valid now"):
        later.admit(good)


FAILED = b"I0 x] Handshake failed with error SSL_ERROR_SSL: error:1:SSL routines:OPENSSL_internal:"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (FAILED + b"WRONG_VERSION_NUMBER: Invalid", "the peer does not speak TLS"),
        (FAILED + b"SOMETHING_NEW: y", "the TLS handshake failed: something new"),
        (b"a line about something else", None),
        (b"", None),
    ],
)
def test_lines_of_grpc_are_read(line: bytes, reason: str | None) -> None:
    assert reason_of(line) == reason


# --- members and those who are not ----------------------------------------------------------------


def test_a_key_that_is_not_in_the_roster(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site(key=PrivateKey.generate()) as stranger:
            await told(stranger.greet(), grpc.StatusCode.PERMISSION_DENIED, "not in the roster")

    attack(tmp_path, case, reason="the key of north is not in the roster")


def test_a_revoked_site(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        up.server.use_roster(up.consortium.revoke("north"))
        async with up.site() as north:
            await told(north.greet(), grpc.StatusCode.PERMISSION_DENIED, "north is revoked")

    attack(tmp_path, case, reason="north is revoked")


def test_a_site_is_revoked_while_it_is_connected(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            stream = north.attend()
            await stream.beat()
            up.mailbox.post([task := up.task(most_bytes=4 << 20)])
            message = await stream.task()
            north.session.open(message)
            written, reply = body_of(tmp_path, np.arange(1 << 19))
            sending = north.stub.Send()
            await sending.write(Part(message=north.reply(message, written)))
            await sending.write(Part(chunk=Chunk(offset=0, data=reply[: 1 << 19])))
            await north.arrived(message, written, 1 << 19)
            up.server.use_roster(up.consortium.revoke("north"))
            assert "north is revoked" in await stream.reason()
            assert not up.presence.connected("north")
            assert up.presence.snapshot()[0].reason == "north is revoked"
            await sending.write(Part(chunk=Chunk(offset=1 << 19, data=reply[1 << 19 : 1 << 20])))
            await sending.done_writing()
            await told(sending, grpc.StatusCode.PERMISSION_DENIED, "north is revoked")
            await told(north.ask(kinds.PROBE), grpc.StatusCode.PERMISSION_DENIED, "revoked")
            assert up.mailbox.waiting("north") == [task]

    attack(tmp_path, case, reason="north is revoked")


def test_an_older_roster_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up:
            old = up.consortium.roster
            up.server.use_roster(up.consortium.revoke("north"))
            with pytest.raises(IdentityError, match="older than the one in use"):
                up.server.use_roster(old)

    asyncio.run(main())


def test_another_sites_certificate_under_my_name(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        south, chain = up.consortium.keys["south"], up.consortium.chain("south")
        async with up.site("north", key=south, chain=chain) as thief:
            # It says north in its messages; the server answers to south.
            request = thief.wire(b"").small(kinds.GREET, {})
            answer = await thief.stub.Greet(request, timeout=10)
            header = Header.FromString(answer.header)
            assert (header.kind, header.recipient) == (kinds.REFUSAL, "south")

    attack(tmp_path, case, reason="in another name than its sender's certificate")


def test_a_certificate_with_another_name_than_the_rosters(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        chain = up.consortium.chain("south", key=up.consortium.keys["north"])
        async with up.site("south", key=up.consortium.keys["north"], chain=chain) as north:
            await told(north.greet(), grpc.StatusCode.PERMISSION_DENIED, "the roster says")

    attack(tmp_path, case, reason="the certificate says site south, the roster says site north")


def test_the_servers_own_certificate_is_no_sites(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        chain = up.consortium.chain(SERVER, "coordinator")
        async with up.site(SERVER, chain=chain) as coordinator:
            words = "a coordinator does not call"
            await told(coordinator.greet(), grpc.StatusCode.PERMISSION_DENIED, words)

    attack(tmp_path, case, reason="a coordinator does not call the server")


def test_an_observer_may_ask(tmp_path: Path) -> None:
    async def main() -> None:
        consortium = Consortium()
        key = consortium.keys["ethics"] = PrivateKey.generate()
        member = Member.make("ethics", "observer", key.public, since="2026-01-01")
        members = (*consortium.roster.members, member)
        consortium.roster = consortium.roster.model_copy(update={"members": members})
        async with running(tmp_path, consortium) as up:
            async with up.site("ethics", chain=consortium.chain("ethics", "observer")) as observer:
                assert (await observer.greet())["kind"] == kinds.GREET
            assert up.reasons == []

    asyncio.run(main())


# --- greetings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocols", "who"),
    [([2, 3], "server"), ([], "site north"), ("all", "site north"), ([0], "site north")],
)
def test_an_unknown_protocol_version(tmp_path: Path, protocols: Any, who: str) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            answer = await north.greet(protocols=protocols)
            assert answer["kind"] == kinds.REFUSAL
            assert f"upgrade fedward at the {who}" in answer["hint"]
            await told(north.ask(kinds.PROBE), grpc.StatusCode.FAILED_PRECONDITION, "greet")

    attack(tmp_path, case, reason="of the link, the server version 1")


def test_a_header_of_another_protocol_version(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            header = north.wire(b"").header(kinds.GREET)
            header.protocol = 2
            signed = seal(header, north.key, pack({"protocols": [2]}))
            answer = await north.stub.Greet(signed, timeout=10)
            said = answer.body.decode()
            assert "north speaks version 2 of the link, the server version 1" in said
            assert Header.FromString(answer.header).protocol == 1

    attack(tmp_path, case, reason="north speaks version 2 of the link")


def test_one_of_several_versions_is_enough(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as up, up.site() as north:
            assert (await north.greet(protocols=[1, 2]))["kind"] == kinds.GREET

    asyncio.run(main())


@pytest.mark.parametrize("minutes", [-6, 6])
def test_clocks_that_are_too_far_apart(tmp_path: Path, minutes: int) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            clock = time.time_ns() // 1_000_000 + minutes * 60_000
            answer = await north.greet(clock=clock)
            assert answer["kind"] == kinds.REFUSAL
            assert "north says " in answer["problem"]
            assert "the server says " in answer["problem"]
            assert answer["problem"].count("UTC") == 2
            assert (await north.greet())["kind"] == kinds.GREET

    attack(tmp_path, case, reason="the clocks are")


@pytest.mark.parametrize("nonce", ["", "zz" * 16, 5, "00" * 15])
def test_a_greeting_without_a_nonce(tmp_path: Path, nonce: Any) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            assert (await north.greet(half=nonce))["kind"] == kinds.REFUSAL

    attack(tmp_path, case, reason="a greeting has no nonce")


def test_a_recorded_greeting(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            assert (await north.greet(half="07" * 16))["kind"] == kinds.GREET
            assert (await north.greet(half="07" * 16))["kind"] == kinds.REFUSAL

    attack(tmp_path, case, reason="a greeting was here before")


def test_a_greeting_by_another_key(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            north.key = up.consortium.keys["south"]
            assert (await north.greet())["kind"] == kinds.REFUSAL

    attack(tmp_path, case, reason="signature")


# --- sessions -------------------------------------------------------------------------------------


def test_no_session(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            code = grpc.StatusCode.FAILED_PRECONDITION
            await told(north.ask(kinds.PROBE), code, "greet the server first")
            stream = north.attend()
            await stream.beat(b"x" * 32)
            assert "greet the server first" in await stream.reason()
            await told(_fetched(north, b"x" * 32), code, "greet the server first")

    attack(tmp_path, case, reason="a call of no current session")


async def _fetched(north: RawSite, session: bytes) -> None:
    async for _ in north.stub.Fetch(Range(session=session, message=b"x"), timeout=10):
        pass


def test_a_newer_greeting_replaces_the_session(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as old, up.site() as new:
            await old.greet()
            stream = old.attend()
            await stream.beat()
            await stream.notice()
            await new.greet()
            assert "replaced by a newer connection" in await stream.reason()
            await told(old.ask(kinds.PROBE), grpc.StatusCode.FAILED_PRECONDITION, "greet")
            assert (await new.ask(kinds.PROBE))[0] == kinds.PROBE

    attack(tmp_path, case, reason="a call of no current session")


def test_a_replayed_message(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            message = north.session.small(kinds.DECIDE, {"approve": 1})
            assert (await north.deliver(message))[0] == kinds.DECIDE
            await told(north.deliver(message), grpc.StatusCode.INVALID_ARGUMENT, "here before")
            assert [q.kind for q in up.desk.questions] == [kinds.GREET, kinds.DECIDE]
            await north.greet()  # nor in another session
            await told(north.deliver(message), grpc.StatusCode.FAILED_PRECONDITION, "greet")

    attack(tmp_path, case, reason="a message was here before")


def test_a_changed_message(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            message = north.session.small(kinds.DECIDE, {"approve": 1})
            changed = with_fields(message, lambda header: setattr(header, "study", "cd" * 32))
            code = grpc.StatusCode.PERMISSION_DENIED
            await told(north.deliver(changed), code, "signature")
            message.body = pack({"approve": 2})
            await told(north.deliver(message), grpc.StatusCode.INVALID_ARGUMENT, "not what its")
            assert len(up.desk.questions) == 1

    attack(tmp_path, case, reason="a message is not what its sender signed")


def test_a_message_for_somebody_else(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            header = north.session.header(kinds.PROBE)
            header.recipient = "south"
            await told(
                north.deliver(seal(header, north.key)), grpc.StatusCode.INVALID_ARGUMENT, "else"
            )

    attack(tmp_path, case, reason="a message is from or for somebody else")


@pytest.mark.parametrize("kind", [kinds.RECEIPT, kinds.REFUSAL, kinds.GREET])
def test_a_kind_that_a_site_does_not_ask(tmp_path: Path, kind: str) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            await refused(north.ask(kind), 13, "upgrade both sides")

    attack(tmp_path, case, reason=f"a site does not ask for {kind}")


def test_what_the_desk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_desk: FakeDesk, _question: object) -> dict[str, Any]:
        raise IdentityError("that is not your study", hint="look again")

    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            await refused(north.ask(kinds.DECIDE), 12, "that is not your study: look again")

    monkeypatch.setattr(FakeDesk, "decide", refuse)
    attack(tmp_path, case, reason="that is not your study")


# --- sizes, rates, bodies -------------------------------------------------------------------------


def test_an_oversized_message(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            body = {"x": "y" * (kinds.LARGEST_SMALL_BODY + 1)}
            await told(
                north.ask(kinds.STUDIES, body), grpc.StatusCode.INVALID_ARGUMENT, "wrong size"
            )

    attack(tmp_path, case, reason="a message has a body of the wrong size")


def test_a_message_beyond_what_the_transport_takes(tmp_path: Path) -> None:
    async def main() -> None:
        async with attacked(tmp_path) as up:
            site = up.site()
            async with site as north:
                await north.greet()
            credentials = grpc.ssl_channel_credentials(
                up.consortium.root.pem.encode(),
                up.consortium.keys["north"].pem,
                up.consortium.chain("north").encode(),
            )
            async with grpc.aio.secure_channel(f"{HOST}:{up.port}", credentials) as channel:
                call = channel.unary_unary("/fedward.link.v1.Link/Call")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\0" * (3 * kinds.LARGEST_MESSAGE), timeout=20)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(main())


def test_a_message_that_the_transport_compressed(tmp_path: Path) -> None:
    async def main() -> None:
        async with attacked(tmp_path) as up:
            credentials = grpc.ssl_channel_credentials(
                up.consortium.root.pem.encode(),
                up.consortium.keys["north"].pem,
                up.consortium.chain("north").encode(),
            )
            async with grpc.aio.secure_channel(
                f"{HOST}:{up.port}", credentials, compression=grpc.Compression.Gzip
            ) as channel:
                call = channel.unary_unary("/fedward.link.v1.Link/Call")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\0" * 500_000, timeout=20)
                assert caught.value.code() in (
                    grpc.StatusCode.UNIMPLEMENTED,
                    grpc.StatusCode.INTERNAL,
                )

    asyncio.run(main())


def test_too_many_calls(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            calls = [north.ask(kinds.PROBE) for _ in range(30)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            errors = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
            assert {e.code() for e in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert len(errors) >= 15

    limits = Limits(calls_per_s=0.001, burst=10)
    attack(tmp_path, case, reason="too many calls of north", limits=limits)


@pytest.mark.parametrize("kind", [kinds.RENEW, kinds.DECIDE, kinds.WITNESS])
def test_too_many_dear_questions(kind: str, tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north, up.site("south") as south:
            await north.greet()
            said = [await north.ask(kind) for _ in range(3)]
            assert [of for of, _ in said] == [kind, kind, kinds.REFUSAL]
            assert said[2][1]["code"] == LinkError.exit_code
            assert said[2][1]["hint"] == "at most 2 times an hour"
            # Nothing else is held up by that, and nobody else.
            assert (await north.ask(kinds.STUDIES))[0] == kinds.STUDIES
            await south.greet()
            assert (await south.ask(kind))[0] == kind

    limits = Limits(hourly={kind: 2})
    attack(tmp_path, case, reason=f"north asks too often to {kind}", limits=limits)


def test_a_withdrawal_is_never_one_too_many(tmp_path: Path) -> None:
    """However often a site approved before, and however often it withdraws."""

    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()

            async def decides(choice: str) -> str:
                content = {"study": "ab" * 32, "choice": choice, "at_ms": 1}
                said = state(DECISION, "north", content, up.consortium.keys["north"]).decode()
                return (await north.ask(kinds.DECIDE, {"decision": said}))[0]

            assert [await decides("approve") for _ in range(4)] == [
                kinds.DECIDE,
                kinds.DECIDE,
                kinds.REFUSAL,
                kinds.REFUSAL,
            ]
            for choice in ("withdraw", "refuse") * 10:
                assert await decides(choice) == kinds.DECIDE
            assert await decides("approve") == kinds.REFUSAL

    limits = Limits(hourly={kinds.DECIDE: 2})
    attack(tmp_path, case, reason="north asks too often to decide", limits=limits)


@pytest.mark.parametrize("said", [None, 7, "nonsense", "\ud800", '{"content":{"choice":"refuse"}}'])
def test_only_what_says_so_takes_back(said: Any) -> None:
    """What cannot be read is counted, and so is any other question."""
    assert not takes_back(kinds.DECIDE, {"decision": said})
    key = PrivateKey.generate()
    for choice, no in (("withdraw", True), ("refuse", True), ("approve", False), (None, False)):
        statement = state(DECISION, "north", {"choice": choice}, key).decode()
        assert takes_back(kinds.DECIDE, {"decision": statement}) is no
        assert not takes_back(kinds.RENEW, {"decision": statement})


def test_dear_questions_come_back_within_the_hour() -> None:
    now = [0.0]
    allowance = Allowance(Limits(hourly={kinds.RENEW: 2}), clock=lambda: now[0])
    for _ in range(2):
        allowance.one_question("north", kinds.RENEW)
    with pytest.raises(BusyError, match="asks too often to renew"):
        allowance.one_question("north", kinds.RENEW)
    now[0] = 1799.0
    with pytest.raises(BusyError):
        allowance.one_question("north", kinds.RENEW)
    now[0] = 1801.0
    allowance.one_question("north", kinds.RENEW)
    for _ in range(1000):
        allowance.one_question("north", kinds.STUDIES)


def test_too_many_calls_at_once(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            await north.greet()
            streams = [north.attend() for _ in range(3)]
            words = [asyncio.create_task(stream.reason()) for stream in streams]
            done, _ = await asyncio.wait(words, return_when=asyncio.FIRST_COMPLETED)
            assert all("too many calls of north at once" in task.result() for task in done)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*words, return_exceptions=True)

    attack(
        tmp_path,
        case,
        reason="too many calls of north at once",
        limits=Limits(calls_at_once=2),
    )


def test_what_the_server_asks_for_is_not_counted() -> None:
    allowance = Allowance(Limits(calls_per_s=0.0, burst=6), clock=lambda: 0.0)

    def call() -> None:
        with allowance.one_call("north"):
            pass

    for _ in range(1000):  # rounds as fast as they come
        call(), call(), call()
        allowance.give_back("north")
    for _ in range(6):  # yet nothing is saved up
        call()
    with pytest.raises(BusyError):
        call()
    allowance.give_back("south")  # who never called
    with allowance.one_call("south"):
        pass


def test_allowance_refills_with_time() -> None:
    now = [0.0]
    allowance = Allowance(Limits(calls_per_s=2, burst=2, calls_at_once=5), clock=lambda: now[0])

    def call() -> None:
        with allowance.one_call("north"):
            pass

    call()
    call()
    with pytest.raises(BusyError):
        call()
    with allowance.one_call("south"):
        pass
    now[0] += 0.5
    call()
    with pytest.raises(BusyError):
        call()
    now[0] += 1000
    call()
    call()
    with pytest.raises(BusyError):
        call()


async def given(up: Running, north: RawSite, **fields: Any) -> tuple[Any, Any]:
    """Greet, attend, get a task; gives task and message."""
    await north.greet()
    stream = north.attend()
    await stream.beat()
    task = up.task(**fields)
    up.mailbox.post([task])
    message = await stream.task()
    north.session.open(message)
    return task, message


def test_a_tampered_chunk(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            task, message = await given(up, north)
            written, reply = body_of(tmp_path, np.arange(1000))
            bad = bytearray(reply)
            bad[2000] ^= 1
            answer = north.send(north.reply(message, written), bytes(bad))
            await refused(answer, 13, "not what its sender signed")
            assert up.mailbox.waiting("north") == [task]
            kind, _ = await north.send(north.reply(message, written), reply)
            assert kind == kinds.RECEIPT

    attack(tmp_path, case, reason="a message is not what its sender signed")


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda reply: reply + b"more", ""),
        (lambda reply: reply[:-1], "ended too early"),
    ],
)
def test_a_body_of_another_length(
    tmp_path: Path, cut: Callable[[bytes], bytes], words: str
) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            _, message = await given(up, north)
            written, reply = body_of(tmp_path, np.arange(1000))
            await refused(north.send(north.reply(message, written), cut(reply)), 13, words)

    attack(tmp_path, case, reason="")


def test_a_reply_that_is_larger_than_the_model_can_be(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            _, message = await given(up, north, most_bytes=100)
            written, reply = body_of(tmp_path, np.arange(1000))
            await refused(north.send(north.reply(message, written), reply), 13, "larger than")
            # Nor one that would be larger when it is unpacked.
            packed = replace(written, size=50)
            header = north.reply(message, packed, encoding="deflate", plain_size=1 << 30)
            await refused(north.send(header, reply[:50]), 13, "larger than")

    attack(tmp_path, case, reason="is larger than the study's model can be")


def test_a_late_reply(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            task, message = await given(up, north, number=7)
            up.mailbox.close([task.key])
            written, reply = body_of(tmp_path, np.arange(10))
            words = "train in round 7 of run run-1 is closed"
            await refused(north.send(north.reply(message, written), reply), 15, words)
            await refused(north.send(north.reply(message, written, reply_to=b""), reply), 15, words)
            await told(north.fetch(message), grpc.StatusCode.NOT_FOUND, words)

    attack(tmp_path, case, reason="train in round 7 of run run-1 is closed")


def test_two_replies_that_differ(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            task, message = await given(up, north)
            for value, kind in ((1, kinds.RECEIPT), (1, kinds.RECEIPT), (2, kinds.REFUSAL)):
                written, reply = body_of(tmp_path, np.full(10, value))
                answer = await north.send(north.reply(message, written), reply)
                assert answer[0] == kind
            answers = up.mailbox.take([task.key])
            assert [a.refusal for a in answers] == [(13, "answered twice, and not the same")]

    attack(tmp_path, case, reason="north answered twice, and not the same, to train in round 1")


def test_a_reply_to_another_sites_task(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site("north") as north, up.site("south") as south:
            _, message = await given(up, north)
            await south.greet()
            written, reply = body_of(tmp_path, np.arange(10))
            await refused(south.send(south.reply(message, written), reply), 15, "is closed")
            await told(south.fetch(message), grpc.StatusCode.INVALID_ARGUMENT, "not given")

    attack(tmp_path, case, reason="is closed")


def test_a_reply_that_says_it_is_to_another_round(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            _, message = await given(up, north)
            written, reply = body_of(tmp_path, np.arange(10))
            header = north.reply(message, written, round=2)
            await refused(north.send(header, reply), 13, "says it is to something else")

    attack(tmp_path, case, reason="says it is to something else")


def test_parts_out_of_order(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            _, message = await given(up, north)
            written, reply = body_of(tmp_path, np.arange(1000))
            header = north.reply(message, written)
            await refused(north.send(header, reply, offset=100), 13, "a piece of a message")
            header = north.reply(message, written)
            call = north.stub.Send(iter([Part(message=header), Part(chunk=Chunk())]))
            assert north.read(await call)[0] == kinds.REFUSAL
            call = north.stub.Send(iter([Part(chunk=Chunk(data=b"x"))]))
            await told(call, grpc.StatusCode.INVALID_ARGUMENT, "does not begin with its header")
            question = north.session.small(kinds.PROBE, {}, **north.about(message))
            call = north.stub.Send(iter([Part(message=question)]))
            assert north.read(await call)[0] == kinds.REFUSAL
            bad = Range(session=north.session.name, message=message_id(message), offset=1 << 40)
            fetched = north.stub.Fetch(bad, timeout=10)
            await told(fetched.read(), grpc.StatusCode.INVALID_ARGUMENT, "behind its end")

    attack(tmp_path, case, reason="a piece of a message is missing")


def test_a_sender_that_falls_silent(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            _, message = await given(up, north)
            written, _ = body_of(tmp_path, np.arange(1000))
            call = north.stub.Send()
            await call.write(Part(message=north.reply(message, written)))
            await told(call, grpc.StatusCode.DEADLINE_EXCEEDED, "a transfer stands still")

    attack(tmp_path, case, reason="a transfer stands still", silence_s=0.2)


def test_a_receiver_that_does_not_read(tmp_path: Path) -> None:
    async def case(up: Running) -> None:
        async with up.site() as north:
            _, message = await given(up, north, size=16 << 20)
            wanted = Range(session=north.session.name, message=message_id(message))
            call = north.stub.Fetch(wanted, timeout=30)
            await call.read()
            while not up.reasons:
                await asyncio.sleep(0.05)
            call.cancel()

    attack(tmp_path, case, reason="a transfer stands still", silence_s=0.2)
