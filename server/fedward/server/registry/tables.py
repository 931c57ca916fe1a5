"""The registry's tables. A change here raises `VERSION` and needs a step that upgrades."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION = 2
"""Of the tables; an older fedward refuses a newer one."""
UPGRADES = {1: ("ALTER TABLE rounds ADD COLUMN line TEXT NOT NULL DEFAULT ''",)}
"""Statements that make the next version of each."""
FIRST_NODE = 2
"""Node ids begin here: 1 is the server."""

_Id = String(200)
_Hash = String(64)
_Word = String(40)


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger,
        dict[str, Any]: JSON,
        list[str]: JSON,
    }


class SchemaRow(Table):
    """Which version of the tables this is; one row."""

    __tablename__ = "schema_version"
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


class SiteRow(Table):
    """A site and its number, for ever."""

    __tablename__ = "sites"
    name: Mapped[str] = mapped_column(_Id, primary_key=True)
    node: Mapped[int] = mapped_column(unique=True)
    since_ms: Mapped[int]


class StudyRow(Table):
    """A study that was offered."""

    __tablename__ = "studies"
    hash: Mapped[str] = mapped_column(_Hash, primary_key=True)
    name: Mapped[str] = mapped_column(_Id)
    document: Mapped[str] = mapped_column(Text)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(_Word)
    min_sites: Mapped[int]
    rounds: Mapped[int]
    offered_ms: Mapped[int]


class InvitationRow(Table):
    """A site that may take part in a study, and what it says now."""

    __tablename__ = "invitations"
    study: Mapped[str] = mapped_column(ForeignKey("studies.hash"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    choice: Mapped[str | None] = mapped_column(_Word)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    at_ms: Mapped[int]


class DecisionRow(Table):
    """Everything a site ever said to a study; nothing is changed or removed."""

    __tablename__ = "decisions"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.hash"))
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"))
    choice: Mapped[str] = mapped_column(_Word)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    at_ms: Mapped[int]


class RunRow(Table):
    """One execution of a study."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.hash"))
    number: Mapped[int]
    state: Mapped[str] = mapped_column(_Word)
    reason: Mapped[str] = mapped_column(Text)
    round: Mapped[int]
    sites: Mapped[list[str]]
    started_ms: Mapped[int]
    ended_ms: Mapped[int]
    stop: Mapped[bool]


class RoundRow(Table):
    """A completed round; the key is why none is counted twice."""

    __tablename__ = "rounds"
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    participants: Mapped[list[str]]
    refused: Mapped[dict[str, Any]]
    evaluation: Mapped[dict[str, Any]]
    model_sha256: Mapped[str] = mapped_column(_Hash)
    heads: Mapped[dict[str, Any]]
    at_ms: Mapped[int]
    line: Mapped[str] = mapped_column(Text, server_default="")


class ReceiptRow(Table):
    """A site's signed answer to a task."""

    __tablename__ = "receipts"
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    action: Mapped[str] = mapped_column(_Word, primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(_Hash)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    at_ms: Mapped[int]


class HeadRow(Table):
    """The furthest end of a site's log that was ever seen."""

    __tablename__ = "heads"
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    log: Mapped[str] = mapped_column(_Word, primary_key=True)
    length: Mapped[int]
    hash: Mapped[str] = mapped_column(_Hash)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    at_ms: Mapped[int]


class CountersignatureRow(Table):
    """Another site's signature under the end of a ledger: the newest of each witness."""

    __tablename__ = "countersignatures"
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    witness: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    length: Mapped[int]
    hash: Mapped[str] = mapped_column(_Hash)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    at_ms: Mapped[int]


class EventRow(Table):
    """Something that happened."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at_ms: Mapped[int]
    kind: Mapped[str] = mapped_column(_Id)
    facts: Mapped[dict[str, Any]]
