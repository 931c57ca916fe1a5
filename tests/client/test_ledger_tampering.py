"""A ledger that something else than a ledger has touched is not believed any more."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedward.client.ledger import Caps, Ledger, Members, Totals
from fedward.client.ledger.store import START
from fedward.common.audit.chain import Head, canonical, extend
from fedward.common.errors import StateError
from fedward.common.privacy.events import SampledGaussian

STUDY, PLAN = "a" * 64, "b" * 64
EVENT = SampledGaussian(0.05, 1.0, 1)
MEMBERS = Members("mrn", "patient", frozenset({b"1" * 32, b"2" * 32}), frozenset({b"3" * 32}))
TABLES = ("entries", "members")


def reserve(ledger: Ledger, number: int) -> int:
    return ledger.reserve(
        STUDY,
        "run",
        round_number=number,
        group="training",
        event=EVENT,
        cohort=MEMBERS.id,
        plan=PLAN,
        code="test",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with five entries; nobody has it open."""
    found = tmp_path / "ledger.sqlite"
    with Ledger(found) as ledger:
        ledger.add_cohort(MEMBERS)
        ledger.admit(
            STUDY,
            "run",
            MEMBERS.id,
            plan=PLAN,
            totals=Totals((SampledGaussian(0.05, 1.0, 10),)),
            caps=Caps(8.0, 8.0, 1e-5),
            code="test",
        )
        ledger.commit(reserve(ledger, 1), "c" * 64)
        reserve(ledger, 2)
    return found


def touch(path: Path, *statements: str, triggers: bool = False) -> None:
    """Change rows with plain SQL, as somebody with the file could."""
    database = sqlite3.connect(path)
    try:
        if not triggers:
            for (name,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ):
                database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)
        database.commit()
    finally:
        database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = replace(body, '0.05', '0.01')",
        "DELETE FROM entries WHERE number = 5",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE number = 5",
        "REPLACE INTO entries VALUES (3, 't', 'commit', '{}', 'p', 'h')",
        "INSERT INTO entries SELECT 7, time, kind, body, previous, 'x' FROM entries LIMIT 1",
        "UPDATE members SET grp = 'testing'",
        "DELETE FROM members",
        "INSERT OR REPLACE INTO members SELECT cohort, patient, 'testing' FROM members",
    ],
)
def test_rows_can_only_be_added(path: Path, statement: str) -> None:
    before = path.read_bytes()
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        touch(path, statement, triggers=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = replace(body, '0.05', '0.01') WHERE number = 3",
        "UPDATE entries SET time = '2020-01-01' WHERE number = 2",
        "UPDATE entries SET kind = 'commit' WHERE number = 3",
        "UPDATE entries SET hash = 'f' || substr(hash, 2) WHERE number = 5",
        "UPDATE entries SET previous = hash WHERE number = 2",
        "UPDATE entries SET body = 'x' WHERE number = 3",
        "DELETE FROM entries WHERE number = 1",
        "DELETE FROM entries WHERE number = 3",
        "UPDATE entries SET number = number + 10",
    ],
)
def test_a_changed_or_removed_entry_is_noticed_at_the_next_use(path: Path, statement: str) -> None:
    Ledger(path).close()
    touch(path, statement)
    with pytest.raises(StateError, match="chain is broken"):
        Ledger(path)


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM entries WHERE number >= 4", "UPDATE entries SET hash = 'x' WHERE number = 5"],
)
def test_it_is_noticed_by_who_has_the_ledger_open(path: Path, statement: str) -> None:
    with Ledger(path) as ledger:
        touch(path, statement)
        with pytest.raises(StateError, match="chain is broken"):
            reserve(ledger, 3)


def test_entries_that_were_cut_off_at_the_end_show_against_a_head_that_another_kept(
    path: Path,
) -> None:
    """The chain of a shorter ledger is whole: only a witness can tell."""
    with Ledger(path) as ledger:
        head = ledger.head
        ledger.check_witnessed(head, "the server")
    touch(path, "DELETE FROM entries WHERE number = 5")
    with Ledger(path) as ledger, pytest.raises(StateError, match="the server witnessed"):
        ledger.check_witnessed(head, "the server")


def test_an_old_copy_that_was_put_back_shows_against_the_head(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "old")
    with Ledger(path) as ledger:
        older = ledger.head
        reserve(ledger, 3)
        newer = ledger.head
    shutil.copy(tmp_path / "old", path)
    with Ledger(path) as ledger:
        ledger.check_witnessed(older, "south")
        with pytest.raises(StateError, match="south witnessed"):
            ledger.check_witnessed(newer, "south")
        reserve(ledger, 4)
        assert ledger.head.length == newer.length, "as long as before, and yet another"
        with pytest.raises(StateError, match="south witnessed"):
            ledger.check_witnessed(newer, "south")


def test_a_lost_ledger_is_empty_and_shows_too(path: Path) -> None:
    with Ledger(path) as ledger:
        head = ledger.head
    path.unlink()
    with Ledger(path) as ledger:
        ledger.check_witnessed(START, "south")
        with pytest.raises(StateError, match="south witnessed"):
            ledger.check_witnessed(head, "south")


def test_a_witness_is_put_on_record_once_and_only_for_what_was(path: Path) -> None:
    with Ledger(path) as ledger:
        head = ledger.head
        ledger.witness(head, "south", b"signature")
        ledger.witness(head, "south", b"signature")
        assert [(w.by, w.length, w.signature) for w in ledger.book.witnesses] == [
            ("south", head.length, b"signature".hex())
        ]
        before = ledger.head
        with pytest.raises(StateError):
            ledger.witness(Head(head.length, "0" * 64), "south", b"signature")
        assert ledger.head == before


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM members WHERE grp = 'testing'",
        "UPDATE members SET grp = 'testing'",
        "INSERT INTO members SELECT cohort, zeroblob(32), 'training' FROM members LIMIT 1",
    ],
)
def test_patients_who_were_changed_are_noticed(path: Path, statement: str) -> None:
    touch(path, statement)
    with Ledger(path) as ledger, pytest.raises(StateError, match="patients of a cohort"):
        ledger.cohorts()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"not a database at all" * 100, "damaged"),
        (lambda data: data[: len(data) // 2], "damaged|chain is broken|cannot use"),
    ],
)
def test_what_is_no_ledger_is_refused(
    path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match=words), Ledger(path) as ledger:
        ledger.cohorts()


def test_a_later_format_is_refused(path: Path) -> None:
    touch(path, "PRAGMA user_version = 2", triggers=True)
    with pytest.raises(StateError, match="later version"):
        Ledger(path)


def test_an_entry_that_is_not_understood_is_refused(path: Path) -> None:
    """It may have cost anything."""
    with Ledger(path) as ledger:
        head = ledger.head
    content = {"time": "t", "kind": "gift", "body": {"epsilon": -1}}
    after = extend(head, content)
    body = canonical(content["body"]).decode()
    row = (after.length, "t", "gift", body, head.hash, after.hash)
    database = sqlite3.connect(path)
    try:
        database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
        database.commit()
    finally:
        database.close()
    with pytest.raises(StateError, match="not understood"):
        Ledger(path)


def test_only_its_owner_may_read_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
