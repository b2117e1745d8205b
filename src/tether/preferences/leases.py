"""Leases: who has a query before them, and until when.

Every change of a query's leases happens while its row in ``tether_queries`` is locked. SQLite has
one writer, so this holds by itself; PostgreSQL locks the rows that nobody else has locked (``FOR
UPDATE SKIP LOCKED``) and looks at them once more, because what it found them by may have changed
before it locked them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from tether.preferences.replies import Lease
from tether.preferences.rows import query_from
from tether.preferences.schema import leases_table, queries_table, standing_table

# Made once: to make a statement takes longer than to execute it.
_LEASED = (
    select(func.count())
    .select_from(leases_table)
    .where(leases_table.c.query == queries_table.c.id, leases_table.c.expires > bindparam("now"))
    .correlate(queries_table)
    .scalar_subquery()
)
_OWN_ANSWER = (
    select(standing_table.c.cursor)
    .where(
        standing_table.c.query == queries_table.c.id,
        standing_table.c.annotator == bindparam("annotator"),
    )
    .exists()
)
_OWN_LEASE = (
    select(leases_table.c.id)
    .where(
        leases_table.c.query == queries_table.c.id,
        leases_table.c.annotator == bindparam("annotator"),
        leases_table.c.expires > bindparam("now"),
    )
    .exists()
)
_CANDIDATES = (
    select(queries_table)
    .where(
        queries_table.c.answered == bindparam("answered"),
        bindparam("room") > _LEASED,
        ~_OWN_ANSWER,
        ~_OWN_LEASE,
    )
    .order_by(queries_table.c.number)
    .limit(bindparam("count"))
    .with_for_update(of=queries_table, skip_locked=True)
)
_HELD = (
    select(leases_table.c.id.label("lease"), queries_table)
    .join(queries_table, queries_table.c.id == leases_table.c.query)
    .where(
        leases_table.c.annotator == bindparam("annotator"),
        leases_table.c.expires > bindparam("now"),
        queries_table.c.answered < bindparam("overlap"),
    )
    .order_by(queries_table.c.number)
    .limit(bindparam("count"))
    .with_for_update(of=queries_table, skip_locked=True)
)
_RENEW = (
    update(leases_table)
    .where(leases_table.c.id == bindparam("lease"))
    .values(expires=bindparam("until"))
)
_LIVE = (
    select(leases_table.c.query, func.count())
    .where(
        leases_table.c.query.in_(bindparam("queries", expanding=True)),
        leases_table.c.expires > bindparam("now"),
    )
    .group_by(leases_table.c.query)
)
_END_EXPIRED = delete(leases_table).where(
    leases_table.c.query.in_(bindparam("queries", expanding=True)),
    leases_table.c.expires <= bindparam("now"),
)
_LEASE = insert(leases_table)
_QUERY_OF = select(leases_table.c.query).where(leases_table.c.id == bindparam("lease"))
_LOCKED_QUERY = (
    select(queries_table.c.id).where(queries_table.c.id == bindparam("query")).with_for_update()
)
_END = delete(leases_table).where(leases_table.c.id == bindparam("lease"))


def claim(
    connection: Connection, annotator: str, *, count: int, now: float, seconds: float, overlap: int
) -> list[Lease]:
    """Leases up to `count` queries, first those that the annotator holds already, renewed.

    Args:
        connection: of a writing transaction.
        annotator: who will hold them.
        count: of queries, at most.
        now: seconds since 1970.
        seconds: how long they are held.
        overlap: how many annotators are to answer each query.
    """
    expires = now + seconds
    asked = {"annotator": annotator, "now": now, "overlap": overlap, "count": count}
    held = connection.execute(_HELD, asked).all()
    if held:
        connection.execute(_RENEW, [{"lease": row.lease, "until": expires} for row in held])
    leases = [Lease(row.lease, query_from(row), annotator, expires) for row in held]
    # What others have begun is finished first; equality lets the index give the order.
    for answered in reversed(range(overlap)):
        while len(leases) < count:
            room = overlap - answered
            asked = {
                "annotator": annotator,
                "now": now,
                "answered": answered,
                "room": room,
                "count": count - len(leases),
            }
            rows = connection.execute(_CANDIDATES, asked).all()
            if not rows:
                break
            leases += _lease(connection, rows, annotator, now=now, expires=expires, room=room)
    return leases


def release(connection: Connection, lease: str) -> bool:
    """Ends a lease; False if there is none of this id."""
    held = connection.execute(_QUERY_OF, {"lease": lease}).scalar_one_or_none()
    if held is None:
        return False
    connection.execute(_LOCKED_QUERY, {"query": held})
    return connection.execute(_END, {"lease": lease}).rowcount == 1


def _lease(
    connection: Connection,
    rows: Sequence[Any],
    annotator: str,
    *,
    now: float,
    expires: float,
    room: int,
) -> list[Lease]:
    """Leases those of the queries, now locked, that still have room for one more."""
    ids = [row.id for row in rows]
    leased = connection.execute(_LIVE, {"queries": ids, "now": now})
    live: dict[str, int] = {query: count for query, count in leased}
    free = [row for row in rows if live.get(row.id, 0) < room]
    if not free:
        return []
    connection.execute(_END_EXPIRED, {"queries": [row.id for row in free], "now": now})
    leases = [Lease(uuid.uuid4().hex, query_from(row), annotator, expires) for row in free]
    connection.execute(
        _LEASE,
        [
            {"id": one.id, "query": one.query.id, "annotator": annotator, "expires": expires}
            for one in leases
        ],
    )
    return leases
