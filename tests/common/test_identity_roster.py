"""The roster: what it refuses, that any change shows, and that it never goes back."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.common.identities import DAY, NOW, Consortium

from fedward.common.audit import canonical
from fedward.common.errors import IdentityError
from fedward.common.identity import (
    Authority,
    Member,
    Roster,
    RosterFile,
    make_issuer,
    read_roster,
    sign_roster,
)

OURS = Consortium()
OTHERS = Consortium()
ROOT = OURS.root.certificate.pem
ROSTER = OURS.roster("north", "south")
SIGNED = OURS.signed(ROSTER)


def read(data: bytes, **options: object) -> Roster:
    return read_roster(data, ROOT, **{"now": NOW, **options})  # type: ignore[arg-type]


def test_members_are_found_by_name_and_by_key() -> None:
    roster = read(SIGNED)
    assert roster == ROSTER
    north = roster.member("north")
    assert north is not None
    assert north.public_key == OURS.key("north").public
    assert roster.by_fingerprint(north.fingerprint) == north
    assert roster.member("nobody") is None
    assert roster.by_fingerprint("0" * 64) is None
    assert roster.coordinator.name == "coordinator"


def test_a_revoked_member_is_known_as_such() -> None:
    north = OURS.member("north").revoked("left", since="later")
    roster = ROSTER.model_copy(update={"members": (ROSTER.members[0], north)})
    found = read(OURS.signed(roster)).member("north")
    assert found is not None
    assert (found.active, found.reason, found.since) == (False, "left", "later")
    assert found.public_key == OURS.key("north").public


def test_of_several_keys_of_one_name_the_active_one_counts() -> None:
    old = OURS.member("north").revoked("lost", since="later")
    new = Member.make("north", "site", OURS.key("new").public, since="later")
    last = Member.make("north", "site", OURS.key("x").public, since="x").revoked("y", since="z")
    roster = Roster.model_validate(ROSTER.model_dump() | {"members": (old, new, last)})
    assert roster.member("north") == new
    with pytest.raises(IdentityError, match="no coordinator"):
        _ = roster.coordinator


@given(position=st.integers(0, len(SIGNED) - 1), value=st.integers(0, 255))
def test_any_changed_byte_is_noticed(position: int, value: int) -> None:
    changed = bytearray(SIGNED)
    changed[position] = value
    if bytes(changed) == SIGNED:
        assert read(bytes(changed)) == ROSTER
        return
    with pytest.raises(IdentityError):
        read(bytes(changed))


@given(start=st.integers(0, len(SIGNED)), count=st.integers(1, 40), more=st.binary(max_size=40))
def test_any_piece_cut_out_or_put_in_is_noticed(start: int, count: int, more: bytes) -> None:
    changed = SIGNED[:start] + more + SIGNED[start + count :]
    if changed != SIGNED:
        with pytest.raises(IdentityError):
            read(changed)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"1", b"null", b"{}", b"[" * 100_000, b"\xff", b'"\\ud800"']
)
def test_what_is_no_roster(data: bytes) -> None:
    with pytest.raises(IdentityError):
        read(data)


def test_only_the_issuer_signs() -> None:
    for key, certificate in (
        ("north", OURS.leaf("north")),
        ("coordinator", OURS.leaf("coordinator", "coordinator")),
        ("root", OURS.root.certificate),
    ):
        with pytest.raises(IdentityError):
            read(sign_roster(ROSTER, OURS.key(key), certificate))
    with pytest.raises(IdentityError, match="do not belong together"):
        sign_roster(ROSTER, OURS.key("north"), OURS.issuer.certificate)
    with pytest.raises(IdentityError, match="not by this consortium's root"):
        read(OTHERS.signed(ROSTER))


def test_a_signature_is_for_a_roster_only() -> None:
    value = json.loads(SIGNED)
    value["signature"] = OURS.issuer.key.sign(canonical(value["roster"])).hex()
    with pytest.raises(IdentityError, match="signature"):
        read(canonical(value) + b"\n")


def test_of_another_consortium_under_the_same_issuer() -> None:
    with pytest.raises(IdentityError, match="another consortium"):
        read(OURS.signed(ROSTER.model_copy(update={"consortium": "Another"})))


def test_an_expired_issuer_signs_no_more() -> None:
    read(SIGNED, now=NOW + timedelta(days=729))
    with pytest.raises(IdentityError, match="expired"):
        read(SIGNED, now=NOW + timedelta(days=731))


def test_versions_do_not_go_back() -> None:
    assert read(SIGNED, not_before_version=1).version == 1
    with pytest.raises(IdentityError, match="version 1, but version 2 was seen"):
        read(SIGNED, not_before_version=2)


@pytest.mark.parametrize(
    "members",
    [
        (OURS.member("north"), OURS.member("north")),
        (
            OURS.member("north"),
            Member.make("north", "site", OURS.key("other").public, since="x"),
        ),
        (OURS.member("north"), Member.make("b", "site", OURS.key("north").public, since="x")),
    ],
)
def test_nobody_is_there_twice(members: tuple[Member, ...]) -> None:
    with pytest.raises(ValidationError):
        Roster.model_validate(ROSTER.model_dump() | {"members": members})
    # One that is signed all the same is refused as well.
    twice = ROSTER.model_copy(update={"members": members})
    with pytest.raises(IdentityError, match="not allowed"):
        read(OURS.signed(twice))


def test_a_member_has_the_fingerprint_of_its_key() -> None:
    good = OURS.member("north").model_dump()
    for wrong in (
        {"fingerprint": OURS.member("south").fingerprint},
        {"key": good["key"] + "\n"},
        {"key": "none"},
        {"role": "king"},
        {"status": "asleep"},
        {"name": "../north"},
        {"surplus": 1},
    ):
        with pytest.raises(ValidationError):
            Member.model_validate(good | wrong)


def roster_file(path: Path) -> RosterFile:
    return RosterFile(path, ROOT)


def test_the_file_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    kept = roster_file(path)
    with pytest.raises(IdentityError, match="no roster"):
        _ = kept.current
    assert kept.accept(SIGNED, now=NOW)
    assert not kept.accept(SIGNED, now=NOW)
    newer = OURS.signed(OURS.roster("north", version=3))
    assert kept.accept(newer, now=NOW)
    for old in (SIGNED, OURS.signed(OURS.roster("north", "south", version=2))):
        with pytest.raises(IdentityError, match="was seen"):
            kept.accept(old, now=NOW)
    assert kept.current.version == roster_file(path).current.version == 3
    assert path.read_bytes() == newer == kept.data


def test_two_rosters_of_one_version_are_refused(tmp_path: Path) -> None:
    kept = roster_file(tmp_path / "roster.json")
    kept.accept(SIGNED, now=NOW)
    # Signed again, it is the same roster.
    assert not kept.accept(OURS.signed(ROSTER), now=NOW)
    with pytest.raises(IdentityError, match="two rosters of version 1"):
        kept.accept(OURS.signed(OURS.roster("north")), now=NOW)


def test_what_another_process_wrote_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    kept = roster_file(path)
    kept.accept(SIGNED, now=NOW)
    roster_file(path).accept(OURS.signed(OURS.roster("north", version=2)), now=NOW)
    assert kept.current.version == 1
    assert kept.reload().version == 2
    # An older one put back in its place is noticed.
    path.write_bytes(SIGNED)
    with pytest.raises(IdentityError, match="was seen"):
        kept.reload()
    path.write_bytes(OTHERS.signed(ROSTER))
    with pytest.raises(IdentityError):
        kept.reload()


def test_a_replaced_issuer_signs_no_more(tmp_path: Path) -> None:
    later = NOW + DAY
    new = make_issuer(OURS.key("issuer-2").public, OURS.root, now=later)
    second = sign_roster(OURS.roster("north", version=2), OURS.key("issuer-2"), new)
    third = OURS.signed(OURS.roster("north", version=3))
    kept = roster_file(tmp_path / "roster.json")
    kept.accept(SIGNED, now=later)
    kept.accept(second, now=later)
    with pytest.raises(IdentityError, match="issuer that was replaced"):
        kept.accept(third, now=later)
    # Without that replacement the same roster is good.
    other = roster_file(tmp_path / "other.json")
    other.accept(SIGNED, now=later)
    assert other.accept(third, now=later)


def test_after_its_issuer_expired_a_new_roster_helps(tmp_path: Path) -> None:
    path, late = tmp_path / "roster.json", NOW + timedelta(days=800)
    roster_file(path).accept(SIGNED, now=NOW)
    new = make_issuer(OURS.key("issuer-3").public, OURS.root, now=late)
    signed = sign_roster(OURS.roster("north", version=2), OURS.key("issuer-3"), new)
    assert roster_file(path).accept(signed, now=late)


def test_authority_is_checked_before_it_signs() -> None:
    with pytest.raises(IdentityError):
        Authority(OURS.key("north"), OURS.root.certificate)
