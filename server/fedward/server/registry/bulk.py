"""Many rows in one statement, on either database: a round brings several of each site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from fedward.server.registry.tables import Table


def put(session: Session, table: type[Table], rows: Sequence[dict[str, Any]]) -> None:
    """Write rows; one with a key that is there already takes its place.

    Args:
        session: in a transaction that writes.
        table: which.
        rows: a value for every column.
    """
    if not rows:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    found = inspect(table)
    keys = [column.name for column in found.primary_key]
    rest = {c.name: statement.excluded[c.name] for c in found.columns if c.name not in keys}
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest), list(rows))
