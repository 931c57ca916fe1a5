"""The enrolment file: complete, signed to the last byte, and for one site only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.common.identities import DAY, NOW, Consortium

from fedward.common.errors import IdentityError
from fedward.common.identity import Certificate, Roster
from fedward.common.identity.enrolment import Bundle, check_own, read_bundle, write_bundle

OURS = Consortium("Cardio “ö”")
OTHERS = Consortium("Cardio “ö”")


def bundle(
    leaf: Certificate | None = None, roster: Roster | None = None, who: Consortium = OURS
) -> bytes:
    roster = roster or who.roster("north", "south")
    return write_bundle(
        leaf or who.leaf("north"),
        who.issuer.certificate,
        who.root.certificate,
        who.signed(roster),
        roster,
    ).encode()


GOOD = bundle()


def read(data: bytes) -> Bundle:
    return read_bundle(data, now=NOW)


def test_everything_comes_back() -> None:
    found = read(GOOD)
    assert found.leaf.pem == read(GOOD).leaf.pem
    assert (found.leaf.name, found.roster.version, found.roster.host) == (
        "north",
        1,
        "fl.example.org",
    )
    assert found.root == OURS.root.certificate
    assert found.chain_pem == found.leaf.pem + OURS.issuer.certificate.pem
    check_own(found, "north", OURS.key("north").public)


def test_a_person_can_read_it() -> None:
    text = GOOD.decode()
    assert "# server: fl.example.org port 8440, coordinator" in text
    assert "PRIVATE" not in text
    assert max(map(len, text.splitlines())) < 120


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_any_changed_byte_is_noticed(position: int, value: int) -> None:
    changed = bytearray(GOOD)
    changed[position] = value
    if bytes(changed) != GOOD:
        with pytest.raises(IdentityError):
            read(bytes(changed))


@given(start=st.integers(0, len(GOOD)), count=st.integers(0, 80), more=st.binary(max_size=9))
def test_any_piece_cut_out_or_put_in_is_noticed(start: int, count: int, more: bytes) -> None:
    changed = GOOD[:start] + more + GOOD[start + count :]
    if changed != GOOD:
        with pytest.raises(IdentityError):
            read(changed)


@pytest.mark.parametrize("data", [b"", b"x", b"\xff", OURS.leaf("north").pem.encode()])
def test_what_is_no_enrolment_file(data: bytes) -> None:
    with pytest.raises(IdentityError):
        read(data)


def test_expired() -> None:
    with pytest.raises(IdentityError, match="expired"):
        read_bundle(GOOD, now=NOW + 91 * DAY)


def test_parts_of_two_consortia() -> None:
    roster = OTHERS.roster("north")
    mixed = write_bundle(
        OURS.leaf("north"),
        OURS.issuer.certificate,
        OURS.root.certificate,
        OTHERS.signed(roster),
        roster,
    )
    with pytest.raises(IdentityError):
        read(mixed.encode())


def test_the_roster_has_to_have_the_key() -> None:
    stranger = OURS.leaf("stranger")
    with pytest.raises(IdentityError, match="roster does not have"):
        read(bundle(stranger))
    revoked = OURS.roster("north")
    gone = revoked.members[1].revoked("left", since="x")
    after = revoked.model_copy(update={"members": (revoked.members[0], gone)})
    with pytest.raises(IdentityError, match="roster does not have"):
        read(bundle(roster=after))
    with pytest.raises(IdentityError, match="roster does not have"):
        read(bundle(OURS.leaf("north", "observer")))


def test_for_another_site_or_key() -> None:
    found = read(GOOD)
    with pytest.raises(IdentityError, match="is for north, this is south"):
        check_own(found, "south", OURS.key("north").public)
    with pytest.raises(IdentityError, match="another key"):
        check_own(found, "north", OURS.key("south").public)
