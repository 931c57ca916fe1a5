"""Sessions: each message once, in its own session, between the two that greeted."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import IdentityError, LinkError
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head, Signed
from fedward.common.wire.session import HALF, WINDOW, Heads, Session, half


class Name:
    """Signs by writing its name under it: fast, and enough for what sessions check."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def sign(self, data: bytes) -> bytes:
        return self._name + data[-8:]

    def verify(self, signature: bytes, data: bytes) -> None:
        if signature != self.sign(data):
            raise IdentityError("a signature does not fit", hint="ask who sent it")


def pair(name: bytes = b"s" * 2 * HALF) -> tuple[Session, Session]:
    north, server = Name(b"north"), Name(b"server")
    return (
        Session(name, me="north", peer="server", signer=north, verifier=server),
        Session(name, me="server", peer="north", signer=server, verifier=north),
    )


def probes(session: Session, count: int) -> list[Signed]:
    return [session.small(kinds.PROBE, {}) for _ in range(count)]


def test_a_message_is_accepted_once() -> None:
    site, server = pair()
    (message,) = probes(site, 1)
    assert server.open(message).sender == "north"
    with pytest.raises(LinkError, match="was here before"):
        server.open(message)


def test_a_message_goes_one_way_in_one_session() -> None:
    site, server = pair()
    (message,) = probes(site, 1)
    with pytest.raises((LinkError, IdentityError)):
        site.open(message)  # reflected
    _, elsewhere = pair(b"t" * 2 * HALF)
    with pytest.raises(LinkError, match="another session"):
        elsewhere.open(message)
    assert server.open(message)


def test_names_must_be_those_of_the_session() -> None:
    _, server = pair()
    for me, peer in (("south", "server"), ("north", "other"), ("", "")):
        stranger = Session(server.name, me=me, peer=peer, signer=Name(b"north"), verifier=Name(b""))
        with pytest.raises(LinkError, match="somebody else"):
            server.open(stranger.small(kinds.PROBE, {}))


def test_a_refused_message_uses_up_no_number() -> None:
    site, server = pair()
    (message,) = probes(site, 1)
    broken = Signed(header=message.header, signature=b"?", body=message.body)
    with pytest.raises(IdentityError):
        server.open(broken)
    assert server.open(message).sequence == 1


@given(st.randoms(use_true_random=False), st.integers(1, 200))
def test_messages_may_overtake_each_other(random: object, count: int) -> None:
    site, server = pair()
    messages = probes(site, count)
    random.shuffle(messages)  # type: ignore[attr-defined]
    assert {server.open(message).sequence for message in messages} == set(range(1, count + 1))
    for message in messages:
        with pytest.raises(LinkError):
            server.open(message)


def test_the_window_moves_on() -> None:
    site, server = pair()
    messages = probes(site, WINDOW + 2)
    server.open(messages[-1])
    with pytest.raises(LinkError, match="was here before"):
        server.open(messages[0])  # overtaken by more than the window, so refused, though new
    with pytest.raises(LinkError, match="was here before"):
        server.open(messages[1])
    assert server.open(messages[2])
    with pytest.raises(LinkError):
        server.open(messages[2])


def test_a_long_session_stays_small() -> None:
    site, server = pair()
    for message in probes(site, 5 * WINDOW):
        server.open(message)
    assert server._seen.bit_length() <= WINDOW


@pytest.mark.parametrize("number", [WINDOW + 2, 2 * WINDOW, 1 << 40, (1 << 64) - 1])
def test_a_number_may_be_far_ahead(number: int) -> None:
    """It costs no memory; what it overtook by more than the window is refused."""
    site, server = pair()
    first, second = probes(site, 2)
    server.open(first)
    site._sent = number - 1
    (ahead,) = probes(site, 1)
    server.open(ahead)
    for message in (first, second, ahead):
        with pytest.raises(LinkError, match="was here before"):
            server.open(message)
    assert server._seen.bit_length() <= WINDOW


def test_numbers_are_used_once_by_threads() -> None:
    site, _ = pair()
    seen: list[int] = []

    def send() -> None:
        seen.extend(site.header(kinds.PROBE).sequence for _ in range(500))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 2001))


def test_heads_go_along() -> None:
    heads = Heads(audit=Head(length=3, hash=b"a"), witnessed=Head(length=1, hash=b"w"))
    session = Session(
        b"", me="a", peer="b", signer=Name(b""), verifier=Name(b""), heads=lambda: heads
    )
    header = session.header(kinds.PROBE)
    assert (header.audit.length, header.witnessed.hash) == (3, b"w")
    assert not header.HasField("ledger")


def test_halves_differ() -> None:
    assert len(half()) == HALF
    assert half() != half()
