"""The ledger on disk: one SQLite file, append-only, hash-chained, and synced before it counts.

An entry exists when `append` has returned: SQLite runs with a rollback journal and
`synchronous = EXTRA`, so that neither a killed process nor a lost power supply takes it back.
Triggers forbid to change, replace or delete a row; who goes around them breaks the hash chain
(`common.audit.chain`), which is followed from the first entry whenever a ledger is opened, and
from where it was left at every later use. Several processes may have it open: one writes at a time
and the others wait.

What a chain alone cannot show is that the whole file was replaced by an older copy of itself. That
shows against a head that somebody else has kept: see `Ledger.check_witnessed`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward.client.ledger.entries import LedgerEntry, entry_from_dict, entry_to_dict
from fedward.common.audit.chain import Head, canonical, empty, extend
from fedward.common.errors import OutputError, StateError
from fedward.common.files import output_error

START = empty("privacy ledger")
"""The head of a ledger without entries."""
BUSY_S = 60.0
"""How long to wait for another process that is writing."""
_FORMAT = 1
_EVIDENCE = "stop here, keep the file as evidence, and find out who touched it"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE IF NOT EXISTS members (
    cohort TEXT NOT NULL, patient BLOB NOT NULL, grp TEXT NOT NULL,
    PRIMARY KEY (cohort, patient)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS entries_remain BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS entries_follow BEFORE INSERT ON entries
    WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM entries)
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS members_stay BEFORE UPDATE ON members
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS members_remain BEFORE DELETE ON members
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS members_are_new BEFORE INSERT ON members
    WHEN EXISTS (SELECT 1 FROM members WHERE cohort = NEW.cohort AND patient = NEW.patient)
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""

Numbered = tuple[int, LedgerEntry]


class Store:
    """One connection to the file; not safe to share between threads without a lock.

    Args:
        path: of the file; made, readable by its owner only, if it is not there.
        busy_s: how long to wait for other processes.

    Raises:
        StateError: it is no ledger, or one of a later version.
        OutputError: the disk refuses.
    """

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        self.head = START
        """The end of the chain, as far as it was followed."""
        self._path = path
        self._appended = False
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise output_error(path, error) from error
        self._database = sqlite3.connect(
            path, timeout=busy_s, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        with self._refusals():
            (known,) = self._database.execute("PRAGMA user_version").fetchone()
            self._database.execute("PRAGMA journal_mode = DELETE")
            self._database.execute("PRAGMA synchronous = EXTRA")
            self._database.execute("PRAGMA foreign_keys = ON")
        if known > _FORMAT:
            raise StateError(
                "the privacy ledger was written by a later version of fedward",
                hint="install that version; nothing may be released without the ledger",
            )
        if known == 0:
            with self.writing():
                for statement in _statements():
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version = {_FORMAT}")

    def close(self) -> None:
        """Let the file go."""
        self._database.close()

    def follow(self) -> Iterator[Numbered]:
        """Entries that are new since the last time, each checked against the chain.

        Raises:
            StateError: an entry was changed, removed or added by something else than a ledger.
        """
        with self._refusals():
            self._check_end()
            rows = self._database.execute(
                "SELECT number, time, kind, body, previous, hash FROM entries "
                "WHERE number > ? ORDER BY number",
                (self.head.length,),
            ).fetchall()
        for number, time, kind, body, previous, digest in rows:
            try:
                content = {"time": time, "kind": kind, "body": json.loads(body)}
            except ValueError as error:
                raise _broken(number) from error
            after = extend(self.head, content)
            if (number, previous, digest) != (after.length, self.head.hash, after.hash):
                raise _broken(self.head.length + 1)
            entry = entry_from_dict(kind, content["body"])
            self.head = after
            yield number, entry

    def _check_end(self) -> None:
        """What was followed before must still be there."""
        row = self._database.execute(
            "SELECT hash FROM entries WHERE number = ?", (self.head.length,)
        ).fetchone()
        if self.head != START and (row is None or row[0] != self.head.hash):
            raise _broken(self.head.length)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the ledger: nobody else writes until the end, and all that was appended counts then.

        If the body fails, nothing that it appended counts; then the chain has to be followed again
        from `START`, where `head` is put.

        Raises:
            OutputError: the disk refuses, or another process does not let go; nothing counts.
        """
        self._appended = False
        try:
            with self._refusals():
                self._database.execute("BEGIN IMMEDIATE")
                yield
                self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if self._appended:
                self.head = START
            raise

    def append(self, time: str, entry: LedgerEntry) -> Numbered:
        """Add an entry, inside `writing`, after `follow`."""
        body = entry_to_dict(entry)
        after = extend(self.head, {"time": time, "kind": entry.kind, "body": body})
        text = canonical(body).decode()
        self._database.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
            (after.length, time, entry.kind, text, self.head.hash, after.hash),
        )
        self.head = after
        self._appended = True
        return after.length, entry

    def add_members(self, cohort: str, members: Iterable[tuple[bytes, str]]) -> None:
        """Add the patients of a cohort, inside `writing`."""
        self._database.executemany(
            "INSERT INTO members VALUES (?, ?, ?)",
            ((cohort, patient, group) for patient, group in members),
        )

    def members(self, cohort: str) -> list[tuple[bytes, str]]:
        """The patients of a cohort, by keyed hash, and their groups."""
        with self._refusals():
            return self._database.execute(
                "SELECT patient, grp FROM members WHERE cohort = ? ORDER BY patient", (cohort,)
            ).fetchall()

    def hash_at(self, length: int) -> str | None:
        """The hash that the chain has at a length; None if it is shorter."""
        if length == 0:
            return START.hash
        with self._refusals():
            row = self._database.execute(
                "SELECT hash FROM entries WHERE number = ?", (length,)
            ).fetchone()
        return None if row is None else str(row[0])

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"cannot use {self._path.name}",
                hint="check that the disk is not full, that the file may be written, and that no "
                "other program holds it",
            ) from error
        except sqlite3.DatabaseError as error:
            raise StateError(f"{self._path.name} is damaged", hint=_EVIDENCE) from error


def _statements() -> Iterator[str]:
    """The statements of the schema; `executescript` would end the transaction."""
    statement = ""
    for line in _SCHEMA.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _broken(number: int) -> StateError:
    return StateError(
        f"the privacy ledger's chain is broken at entry {number}: it was changed behind our back",
        hint=_EVIDENCE,
    )


__all__ = ["BUSY_S", "START", "Head", "Numbered", "Store"]
