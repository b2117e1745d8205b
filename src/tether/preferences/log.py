"""Appending to the log of answers, inside a transaction of the only one who appends."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from tether.errors import UserError
from tether.preferences.records import Answer, check_fits
from tether.preferences.replies import Receipt
from tether.preferences.rows import answer_from, answer_values, query_from
from tether.preferences.schema import (
    answers_table,
    leases_table,
    queries_table,
    standing_table,
)


def append(
    connection: Connection, answer: Answer, *, lease: str | None, now: float, late: bool = False
) -> Receipt:
    """Appends one answer; nothing has been written when it raises.

    Args:
        connection: of a transaction that appends.
        answer: what to append.
        lease: the lease it was given under, which ends.
        now: seconds since 1970.
        late: marks it as late whatever the lease says.

    Raises:
        UserError: no such query, an answer that does not fit it, another's lease, or a UUID that
            another answer has.
    """
    earlier = connection.execute(
        select(answers_table).where(answers_table.c.uuid == answer.uuid)
    ).one_or_none()
    if earlier is not None:
        if _content(answer_from(earlier)) != _content(answer):
            raise UserError(
                f"answer {answer.uuid} was given already and says something else; give a new UUID "
                "to change it"
            )
        return Receipt(earlier.cursor, earlier.late, duplicate=True)
    row = connection.execute(
        select(queries_table).where(queries_table.c.id == answer.query).with_for_update()
    ).one_or_none()
    if row is None:
        raise UserError(f"the store has no query {answer.query}")
    check_fits(answer, query_from(row))
    replaced = _standing(connection, answer)
    if answer.supersedes is not None:
        _check_supersedes(connection, answer)
    elif replaced is not None:
        answer = dataclasses.replace(answer, supersedes=replaced.uuid)
    if answer.retracted and replaced is None:
        raise UserError(f"{answer.annotator} has no answer to query {answer.query} to retract")
    late = _ends_late(connection, answer, lease, now) or late
    cursor = connection.execute(
        insert(answers_table)
        .values(**answer_values(answer), late=late)
        .returning(answers_table.c.cursor)
    ).scalar_one()
    _stand(connection, answer, cursor, replaced)
    connection.execute(
        delete(leases_table).where(
            leases_table.c.query == answer.query, leases_table.c.annotator == answer.annotator
        )
    )
    return Receipt(cursor, late, duplicate=False)


def retract_newest(
    connection: Connection, annotator: str, uuid: str, *, now: float
) -> Answer | None:
    """Appends a row that retracts the annotator's newest standing answer.

    Raises:
        UserError: the UUID belongs to another answer.
    """
    earlier = connection.execute(
        select(answers_table).where(answers_table.c.uuid == uuid)
    ).one_or_none()
    if earlier is not None:
        if earlier.annotator != annotator or not earlier.retracted:
            raise UserError(f"answer {uuid} was given already; give a new UUID to undo")
        return answer_from(earlier)
    newest = connection.execute(
        select(answers_table)
        .join(standing_table, standing_table.c.cursor == answers_table.c.cursor)
        .where(standing_table.c.annotator == annotator)
        .order_by(standing_table.c.cursor.desc())
        .limit(1)
    ).one_or_none()
    if newest is None:
        return None
    answer = Answer(
        query=newest.query,
        preference=None,
        annotator=annotator,
        uuid=uuid,
        time=now,
        supersedes=newest.uuid,
        retracted=True,
    )
    append(connection, answer, lease=None, now=now)
    return answer


def _content(answer: Answer) -> tuple[object, ...]:
    return (answer.query, answer.annotator, answer.preference, answer.ranking, answer.retracted)


def _standing(connection: Connection, answer: Answer) -> Any:
    return connection.execute(
        select(answers_table)
        .join(standing_table, standing_table.c.cursor == answers_table.c.cursor)
        .where(
            standing_table.c.query == answer.query,
            standing_table.c.annotator == answer.annotator,
        )
    ).one_or_none()


def _check_supersedes(connection: Connection, answer: Answer) -> None:
    found = connection.execute(
        select(func.count())
        .select_from(answers_table)
        .where(
            answers_table.c.uuid == answer.supersedes,
            answers_table.c.query == answer.query,
            answers_table.c.annotator == answer.annotator,
        )
    ).scalar_one()
    if not found:
        raise UserError(
            f"supersedes is {answer.supersedes}; expected the UUID of an answer of "
            f"{answer.annotator} to query {answer.query}"
        )


def _ends_late(connection: Connection, answer: Answer, lease: str | None, now: float) -> bool:
    if lease is None:
        return False
    held = connection.execute(select(leases_table).where(leases_table.c.id == lease)).one_or_none()
    # A lease that ran out is removed when its query is claimed again.
    if held is None:
        return True
    if held.annotator != answer.annotator or held.query != answer.query:
        raise UserError(f"lease {lease} is not {answer.annotator}'s for query {answer.query}")
    return bool(held.expires <= now)


def _stand(connection: Connection, answer: Answer, cursor: int, replaced: Any) -> None:
    before, decided_before = 0, 0
    if replaced is not None:
        before, decided_before = 1, int(answer_from(replaced).says_something)
        connection.execute(delete(standing_table).where(standing_table.c.cursor == replaced.cursor))
    if not answer.retracted:
        connection.execute(
            insert(standing_table).values(
                query=answer.query, annotator=answer.annotator, cursor=cursor
            )
        )
    connection.execute(
        update(queries_table)
        .where(queries_table.c.id == answer.query)
        .values(
            answered=queries_table.c.answered + int(not answer.retracted) - before,
            decided=queries_table.c.decided + int(answer.says_something) - decided_before,
        )
    )
