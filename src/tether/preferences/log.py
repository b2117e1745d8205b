"""Appending to the log of answers, inside a transaction of the only one who appends."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

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

# Made once: to make a statement takes longer than to execute it.
_BY_UUID = select(answers_table).where(answers_table.c.uuid == bindparam("uuid"))
_LOCKED_QUERY = (
    select(queries_table).where(queries_table.c.id == bindparam("query")).with_for_update()
)
_STANDING = (
    select(answers_table)
    .join(standing_table, standing_table.c.cursor == answers_table.c.cursor)
    .where(
        standing_table.c.query == bindparam("query"),
        standing_table.c.annotator == bindparam("annotator"),
    )
)
_NEWEST = (
    select(answers_table)
    .join(standing_table, standing_table.c.cursor == answers_table.c.cursor)
    .where(standing_table.c.annotator == bindparam("annotator"))
    .order_by(standing_table.c.cursor.desc())
    .limit(1)
)
_LEASE = select(leases_table).where(leases_table.c.id == bindparam("lease"))
_APPEND = insert(answers_table).returning(answers_table.c.cursor)
_STAND = insert(standing_table)
_FALL = delete(standing_table).where(standing_table.c.cursor == bindparam("fallen"))
_COUNT = (
    update(queries_table)
    .where(queries_table.c.id == bindparam("counted"))
    .values(
        answered=queries_table.c.answered + bindparam("more_answered"),
        decided=queries_table.c.decided + bindparam("more_decided"),
    )
)
_END_LEASES = delete(leases_table).where(
    leases_table.c.query == bindparam("leased"), leases_table.c.annotator == bindparam("holder")
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
    earlier = connection.execute(_BY_UUID, {"uuid": answer.uuid}).one_or_none()
    if earlier is not None:
        if _content(answer_from(earlier)) != _content(answer):
            raise UserError(
                f"answer {answer.uuid} was given already and says something else; give a new UUID "
                "to change it"
            )
        return Receipt(earlier.cursor, earlier.late, duplicate=True)
    row = connection.execute(_LOCKED_QUERY, {"query": answer.query}).one_or_none()
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
    values = {**answer_values(answer), "late": late}
    cursor = connection.execute(_APPEND, values).scalar_one()
    _stand(connection, answer, cursor, replaced)
    connection.execute(_END_LEASES, {"leased": answer.query, "holder": answer.annotator})
    return Receipt(cursor, late, duplicate=False)


def retract_newest(
    connection: Connection, annotator: str, uuid: str, *, now: float
) -> Answer | None:
    """Appends a row that retracts the annotator's newest standing answer.

    Raises:
        UserError: the UUID belongs to another answer.
    """
    earlier = connection.execute(_BY_UUID, {"uuid": uuid}).one_or_none()
    if earlier is not None:
        if earlier.annotator != annotator or not earlier.retracted:
            raise UserError(f"answer {uuid} was given already; give a new UUID to undo")
        return answer_from(earlier)
    newest = connection.execute(_NEWEST, {"annotator": annotator}).one_or_none()
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
    asked = {"query": answer.query, "annotator": answer.annotator}
    return connection.execute(_STANDING, asked).one_or_none()


def _check_supersedes(connection: Connection, answer: Answer) -> None:
    found = connection.execute(_BY_UUID, {"uuid": answer.supersedes}).one_or_none()
    if found is None or (found.query, found.annotator) != (answer.query, answer.annotator):
        raise UserError(
            f"supersedes is {answer.supersedes}; expected the UUID of an answer of "
            f"{answer.annotator} to query {answer.query}"
        )


def _ends_late(connection: Connection, answer: Answer, lease: str | None, now: float) -> bool:
    if lease is None:
        return False
    held = connection.execute(_LEASE, {"lease": lease}).one_or_none()
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
        connection.execute(_FALL, {"fallen": replaced.cursor})
    if not answer.retracted:
        stands = {"query": answer.query, "annotator": answer.annotator, "cursor": cursor}
        connection.execute(_STAND, stands)
    connection.execute(
        _COUNT,
        {
            "counted": answer.query,
            "more_answered": int(not answer.retracted) - before,
            "more_decided": int(answer.says_something) - decided_before,
        },
    )
