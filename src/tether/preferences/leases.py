"""Leases: who has a query before them, and until when.

Every change of a query's leases happens while its row in ``tether_queries`` is locked. SQLite has
one writer, so this holds by itself; PostgreSQL locks the rows that nobody else has locked (``FOR
UPDATE SKIP LOCKED``) and looks at them once more, because what it found them by may have changed
before it locked them.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from tether.preferences.replies import Lease
from tether.preferences.rows import query_from
from tether.preferences.schema import leases_table, queries_table, standing_table


def claim(
    connection: Connection,
    annotator: str,
    *,
    count: int,
    now: float,
    seconds: float,
    overlap: int,
    without: Collection[str] = (),
    only: str | None = None,
) -> list[Lease]:
    """Leases up to `count` queries, first those that the annotator holds already, renewed.

    Args:
        connection: of a writing transaction.
        annotator: who will hold them.
        count: of queries, at most.
        now: seconds since 1970.
        seconds: how long they are held.
        overlap: how many annotators are to answer each query.
        without: ids of queries not to be given.
        only: id of the one query to be given; None: any.
    """
    wanted: list[ColumnElement[bool]] = []
    if without:
        wanted.append(queries_table.c.id.not_in(without))
    if only is not None:
        wanted.append(queries_table.c.id == only)
    expires = now + seconds
    held = _held(connection, annotator, count=count, now=now, overlap=overlap, wanted=wanted)
    connection.execute(
        update(leases_table)
        .where(leases_table.c.id.in_([row.lease for row in held]))
        .values(expires=expires)
    )
    leases = [Lease(row.lease, query_from(row), annotator, expires) for row in held]
    # What others have begun is finished first; equality lets the index give the order.
    for answered in reversed(range(overlap)):
        while len(leases) < count:
            rows = _candidates(
                connection,
                annotator,
                count=count - len(leases),
                now=now,
                answered=answered,
                overlap=overlap,
                wanted=wanted,
            )
            if not rows:
                break
            leases += [
                _lease(connection, row, annotator, expires, now)
                for row in rows
                if _still_free(connection, row, now=now, overlap=overlap)
            ]
    return leases


def release(connection: Connection, lease: str) -> bool:
    """Ends a lease; False if there is none of this id."""
    held = connection.execute(
        select(leases_table.c.query).where(leases_table.c.id == lease)
    ).scalar_one_or_none()
    if held is None:
        return False
    connection.execute(
        select(queries_table.c.id).where(queries_table.c.id == held).with_for_update()
    )
    ended = connection.execute(delete(leases_table).where(leases_table.c.id == lease))
    return ended.rowcount == 1


def _held(
    connection: Connection,
    annotator: str,
    *,
    count: int,
    now: float,
    overlap: int,
    wanted: list[ColumnElement[bool]],
) -> list[Any]:
    return list(
        connection.execute(
            select(leases_table.c.id.label("lease"), queries_table)
            .join(queries_table, queries_table.c.id == leases_table.c.query)
            .where(
                leases_table.c.annotator == annotator,
                leases_table.c.expires > now,
                queries_table.c.answered < overlap,
                *wanted,
            )
            .order_by(queries_table.c.number)
            .limit(count)
            .with_for_update(of=queries_table, skip_locked=True)
        )
    )


def _candidates(
    connection: Connection,
    annotator: str,
    *,
    count: int,
    now: float,
    answered: int,
    overlap: int,
    wanted: list[ColumnElement[bool]],
) -> list[Any]:
    own_answer = (
        select(standing_table.c.cursor)
        .where(
            standing_table.c.query == queries_table.c.id,
            standing_table.c.annotator == annotator,
        )
        .exists()
    )
    own_lease = (
        select(leases_table.c.id)
        .where(
            leases_table.c.query == queries_table.c.id,
            leases_table.c.annotator == annotator,
            leases_table.c.expires > now,
        )
        .exists()
    )
    return list(
        connection.execute(
            select(queries_table)
            .where(
                queries_table.c.answered == answered,
                _leased(now) < overlap - answered,
                ~own_answer,
                ~own_lease,
                *wanted,
            )
            .order_by(queries_table.c.number)
            .limit(count)
            .with_for_update(of=queries_table, skip_locked=True)
        )
    )


def _leased(now: float) -> ColumnElement[int]:
    return (
        select(func.count())
        .select_from(leases_table)
        .where(leases_table.c.query == queries_table.c.id, leases_table.c.expires > now)
        .correlate(queries_table)
        .scalar_subquery()
    )


def _still_free(connection: Connection, row: Any, *, now: float, overlap: int) -> bool:
    """Whether a query, now locked, has room for one more lease."""
    leased = connection.execute(
        select(func.count())
        .select_from(leases_table)
        .where(leases_table.c.query == row.id, leases_table.c.expires > now)
    ).scalar_one()
    return bool(row.answered + leased < overlap)


def _lease(connection: Connection, row: Any, annotator: str, expires: float, now: float) -> Lease:
    connection.execute(
        delete(leases_table).where(leases_table.c.query == row.id, leases_table.c.expires <= now)
    )
    lease = Lease(uuid.uuid4().hex, query_from(row), annotator, expires)
    connection.execute(
        insert(leases_table).values(id=lease.id, query=row.id, annotator=annotator, expires=expires)
    )
    return lease
