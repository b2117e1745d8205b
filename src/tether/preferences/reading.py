"""What a store has, summed up and page by page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Table, case, func, select

from tether.preferences.database import Database
from tether.preferences.records import Answer, Query
from tether.preferences.replies import AnnotatorSummary, Counts
from tether.preferences.rows import answer_from, query_from
from tether.preferences.schema import (
    answers_table,
    leases_table,
    queries_table,
    standing_table,
)

_PAGE: Final = 500


def pages(database: Database, table: Table, order: str, after: int) -> Iterator[Any]:
    """Rows of a table in the order of a column, without one long transaction."""
    column = table.c[order]
    while True:
        with database.reading() as connection:
            statement = select(table).where(column > after).order_by(column).limit(_PAGE)
            rows = connection.execute(statement).all()
        yield from rows
        if len(rows) < _PAGE:
            return
        after = getattr(rows[-1], order)


def standing(database: Database) -> Iterator[tuple[Query, Answer]]:
    """(query, answer) of what stands, in the order of the log."""
    after = 0
    while True:
        with database.reading() as connection:
            answers = connection.execute(
                select(answers_table)
                .join(standing_table, standing_table.c.cursor == answers_table.c.cursor)
                .where(standing_table.c.cursor > after)
                .order_by(standing_table.c.cursor)
                .limit(_PAGE)
            ).all()
            asked = connection.execute(
                select(queries_table).where(queries_table.c.id.in_({row.query for row in answers}))
            )
            queries = {row.id: query_from(row) for row in asked}
        yield from ((queries[row.query], answer_from(row)) for row in answers)
        if len(answers) < _PAGE:
            return
        after = answers[-1].cursor


def standing_answers(database: Database, queries: Sequence[str]) -> dict[str, list[Answer]]:
    """Standing answers to some queries, by query, oldest first."""
    found: dict[str, list[Answer]] = {}
    with database.reading() as connection:
        for start in range(0, len(queries), _PAGE):
            rows = connection.execute(
                select(answers_table)
                .join(standing_table, standing_table.c.cursor == answers_table.c.cursor)
                .where(standing_table.c.query.in_(queries[start : start + _PAGE]))
                .order_by(standing_table.c.cursor)
            )
            for row in rows:
                found.setdefault(row.query, []).append(answer_from(row))
    return found


def counts(database: Database, now: float) -> Counts:
    """How far the store has got."""
    answered = queries_table.c.answered
    decided = queries_table.c.decided
    leased = (
        select(leases_table.c.id)
        .where(leases_table.c.query == queries_table.c.id, leases_table.c.expires > now)
        .exists()
    )

    def total(condition: Any) -> Any:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    with database.reading() as connection:
        row = connection.execute(
            select(
                func.count(),
                total(decided > 0),
                total((answered > 0) & (decided == 0)),
                total((answered == 0) & leased),
            ).select_from(queries_table)
        ).one()
        people = connection.execute(
            select(func.count(func.distinct(answers_table.c.annotator)))
        ).scalar_one()
    queries, decided_count, skipped, leased_count = map(int, row)
    return Counts(
        queries=queries,
        answered=decided_count,
        skipped=skipped,
        leased=leased_count,
        open=queries - decided_count - skipped - leased_count,
        annotators=int(people),
    )


def annotators(database: Database) -> list[AnnotatorSummary]:
    """What each annotator has done, by name."""
    table = answers_table
    statement = select(
        table.c.annotator,
        table.c.preference,
        table.c.ranking,
        table.c.time,
        table.c.latency,
        table.c.retracted,
        table.c.late,
        standing_table.c.cursor.label("standing"),
    ).outerjoin(standing_table, standing_table.c.cursor == table.c.cursor)
    rows: dict[str, list[Any]] = {}
    with database.reading() as connection:
        for row in connection.execute(statement):
            rows.setdefault(row.annotator, []).append(row)
    return [_summary(name, rows[name]) for name in sorted(rows)]


def _summary(annotator: str, rows: list[Any]) -> AnnotatorSummary:
    stand = [row for row in rows if row.standing is not None]
    said = [row for row in stand if row.preference is not None or row.ranking is not None]
    latencies = [row.latency for row in rows if row.latency is not None]
    return AnnotatorSummary(
        annotator=annotator,
        answers=len(said),
        ties=sum(row.preference == 0.5 for row in said),
        skipped=len(stand) - len(said),
        retracted=sum(row.retracted for row in rows),
        late=sum(row.late for row in rows),
        seconds=statistics.median(latencies) if latencies else None,
        last=max(row.time for row in rows),
    )
