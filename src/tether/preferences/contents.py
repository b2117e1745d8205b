"""Items and queries in the tables: put in once, found by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from tether.errors import UserError
from tether.preferences.database import Database
from tether.preferences.fields import check_id

T = TypeVar("T")

# SQLite takes at most 32,766 values in one statement.
_PAGE: Final = 500


def add(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Adds the rows whose id is not there yet."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    if rows:
        connection.execute(insert(table).on_conflict_do_nothing(index_elements=["id"]), rows)


def present(database: Database, table: Table, ids: Sequence[str]) -> set[str]:
    """Those of the ids that are there."""
    found: set[str] = set()
    with database.reading() as connection:
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            rows = connection.execute(select(table.c.id).where(table.c.id.in_(part)))
            found |= set(rows.scalars())
    return found


def by_id(
    database: Database, table: Table, ids: Sequence[str], made: Callable[[Any], T]
) -> list[T]:
    """Rows in the order of the ids, as `made` makes them.

    Raises:
        UserError: there is no row of one of the ids.
    """
    kind = {"tether_items": "item", "tether_queries": "query"}[table.name]
    for one in ids:
        check_id(kind, one)
    found: dict[str, T] = {}
    with database.reading() as connection:
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            rows = connection.execute(select(table).where(table.c.id.in_(part)))
            found |= {row.id: made(row) for row in rows}
    for one in ids:
        if one not in found:
            raise UserError(f"the store has no {kind} {one}")
    return [found[one] for one in ids]
