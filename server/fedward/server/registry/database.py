"""The database under the registry: SQLite by default, PostgreSQL by URL, one behaviour.

Guarantee:
    One writer at a time on both databases, every change durable when its method returns, and
    nothing changed when it raises.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from fedward.common.errors import FedwardError, MissingExtraError, OutputError, StateError
from fedward.server.registry.tables import UPGRADES, VERSION, EventRow, SchemaRow, Table

BUSY_MS = 30_000
"""How long a method waits for another process that is writing."""
_WRITES = "fedward_writes"
_LOCK = 7_163_094_215_001
"""Names the lock that writers of this registry take on PostgreSQL."""
_FULL = ("SQLITE_FULL", "53100")


def unix_ms() -> int:
    """Now, in milliseconds of Unix time."""
    return time.time_ns() // 1_000_000


class RegistryUnavailable(StateError):  # noqa: N818  (a state of things, not a fault of a call)
    """The registry's database cannot be used now; what was asked for was not done."""


class Database:
    """Opens the tables and runs transactions.

    Args:
        engine: connects to them.
        clock: Unix time in milliseconds.
    """

    def __init__(self, engine: Engine, clock: Callable[[], int]) -> None:
        self._engine = engine
        self._writes = engine.execution_options(**{_WRITES: True})
        self._clock = clock

    @classmethod
    def open(cls, url: str | Path, *, clock: Callable[[], int] = unix_ms) -> Self:
        """Open a registry, or make it.

        Args:
            url: `sqlite:///path`, `postgresql://user@host/name`, or the path of a SQLite file.
            clock: Unix time in milliseconds.

        Raises:
            StateError: it cannot be reached, or was written by a newer fedward.
            MissingExtraError: PostgreSQL is asked for and its driver is not installed.
        """
        engine = _engine(_parsed(url))
        found = cls(engine, clock)
        try:
            found._prepare()
        except BaseException:
            engine.dispose()
            raise
        return found

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        with self._changes() as session:
            connection = session.connection()
            if not connection.dialect.has_table(connection, SchemaRow.__tablename__):
                Table.metadata.create_all(connection)
                session.add(SchemaRow(version=VERSION))
                return
            version = session.scalar(select(SchemaRow.version)) or 0
            while version in UPGRADES:
                for statement in UPGRADES[version]:
                    session.execute(text(statement))
                version += 1
                session.execute(update(SchemaRow).values(version=version))
            if version != VERSION:
                raise StateError(
                    f"the registry has version {version}, this fedward knows {VERSION}",
                    hint="use the fedward that wrote it, or a newer one",
                )

    @contextmanager
    def _changes(self) -> Iterator[Session]:
        """A transaction that writes; nobody else writes meanwhile."""
        with (
            _explained(),
            Session(self._writes, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _reads(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with _explained(), Session(self._engine) as session, session.begin():
            yield session

    def _note(self, session: Session, kind: str, **facts: Any) -> None:
        """Write an event in the same transaction as what it tells of."""
        session.add(EventRow(at_ms=self._clock(), kind=kind, facts=facts))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        # The driver's own words may quote values; they stay in the chained exception.
        raise _refusal(error) from error


def _refusal(error: SQLAlchemyError) -> FedwardError:
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)
    if code in _FULL:
        return OutputError(
            "cannot write the registry", hint="the disk is full, free some space and try again"
        )
    return RegistryUnavailable(
        f"the registry's database refused ({code or type(error).__name__})",
        hint="check that the database runs, that its disk has space and may be written to",
    )


def _parsed(url: str | Path) -> URL:
    text_ = str(url)
    if not re.match(r"^[a-z][a-z0-9+]*://", text_):
        return URL.create("sqlite", database=text_)
    try:
        parsed = make_url(text_)
    except ArgumentError as error:
        raise StateError("the registry's URL cannot be read", hint=_URLS) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StateError("the registry's URL names a database that is not supported", hint=_URLS)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


_URLS = "use sqlite:///path/to/file or postgresql://user@host/database"


def _engine(url: URL) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            url,
            pool_pre_ping=not sqlite,  # a database server may be restarted under us
            connect_args={"timeout": BUSY_MS / 1000} if sqlite else {},
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingExtraError(
            "a PostgreSQL registry needs the package psycopg, which is not installed",
            hint="pip install 'fedward[server,postgresql]'",
        ) from error
    if sqlite:
        event.listen(engine, "connect", _settle_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def _settle_sqlite(connection: Any, _record: object) -> None:
    # SQLAlchemy's recipe: the driver must not begin transactions by itself.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_MS}",
        "foreign_keys=ON",
        "cache_size=-512",  # kB, of each connection; the system's own cache does the work
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    # IMMEDIATE: a reader that turned writer could otherwise fail without waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES, False):
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
