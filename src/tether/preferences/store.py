"""The store of comparisons: items, queries, answers and leases, durable and shared.

SQLAlchemy (the extra ``label``) is imported when a store is opened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tether.errors import StoreError, UserError
from tether.preferences.fields import check_annotator, plain_json, uuid_of
from tether.preferences.items import Item
from tether.preferences.places import STORE_FILE
from tether.preferences.records import Answer, Query
from tether.preferences.replies import AnnotatorSummary, Counts, Lease, Receipt

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from tether.preferences.database import Database

__all__ = ["STORE_FILE", "AnnotatorSummary", "Counts", "Lease", "Receipt", "Store"]

T = TypeVar("T")


class Store:
    """Comparisons on disk, for any number of threads, processes and (PostgreSQL) machines.

    Whatever a method has returned from is committed to the disk. Answers are a log that is only
    appended to; an annotator's newest answer to a query stands, unless it is a retraction.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """Use :meth:`open`."""
        from tether.preferences.group_commit import GroupCommit

        self._database = database
        self._clock = clock
        self._append = GroupCommit(database.appending)

    @classmethod
    def open(
        cls,
        location: str | Path,
        *,
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Opens a store.

        Args:
            location: a file, ``sqlite:///FILE`` or
                ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``.
            create: makes the store if there is none.
            clock: seconds since 1970, by which leases end.

        Raises:
            StoreError: no store, something else in its place, a store of a newer tether, a server
                that cannot be reached, or a package that is missing; one line.
        """
        try:
            from tether.preferences.database import Database
        except ModuleNotFoundError as error:
            if error.name != "sqlalchemy":
                raise
            raise StoreError(
                "a store of comparisons needs sqlalchemy, which is not installed; run: pip install "
                "'tether-rl[label]'"
            ) from error
        return cls(Database(location, create=create), clock)

    @property
    def name(self) -> str:
        """As errors name it: a path, or a URL without user and password."""
        return self._database.name

    def close(self) -> None:
        """Closes its connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_items(self, items: Iterable[Item]) -> list[str]:
        """Adds items; those that are there already do no harm. Returns their ids."""
        from tether.preferences import contents
        from tether.preferences.rows import item_values
        from tether.preferences.schema import items_table

        rows = [item_values(item) for item in items]
        self._append(lambda connection: contents.add(connection, items_table, rows))
        return [row["id"] for row in rows]

    def add_queries(self, queries: Iterable[Query]) -> list[str]:
        """Adds queries, whose items must be there; returns their ids.

        Raises:
            UserError: an item is missing; nothing has been added.
        """
        from tether.preferences import contents
        from tether.preferences.rows import query_values
        from tether.preferences.schema import items_table, queries_table

        queries = list(queries)
        needed = list(dict.fromkeys(item for query in queries for item in query.items))
        missing = sorted(set(needed) - contents.present(self._database, items_table, needed))
        if missing:
            raise UserError(
                f"the store has no item {missing[0]}; add the items before the query about them"
            )
        rows = [query_values(query) for query in queries]
        self._append(lambda connection: contents.add(connection, queries_table, rows))
        return [query.id for query in queries]

    def item(self, item: str) -> Item:
        """One item.

        Raises:
            UserError: the store has none of this id.
        """
        return self.items([item])[0]

    def items(self, ids: Sequence[str]) -> list[Item]:
        """Items in the order of the ids.

        Raises:
            UserError: the store has none of one of the ids.
        """
        from tether.preferences import contents
        from tether.preferences.rows import item_from
        from tether.preferences.schema import items_table

        return contents.by_id(self._database, items_table, ids, item_from)

    def query(self, query: str) -> Query:
        """One query.

        Raises:
            UserError: the store has none of this id.
        """
        from tether.preferences import contents
        from tether.preferences.rows import query_from
        from tether.preferences.schema import queries_table

        return contents.by_id(self._database, queries_table, [query], query_from)[0]

    def all_items(self) -> Iterator[Item]:
        """Every item, in the order in which they were added."""
        from tether.preferences.rows import item_from
        from tether.preferences.schema import items_table

        return (item_from(row) for row in self._pages(items_table, "number", 0))

    def queries(self) -> Iterator[Query]:
        """Every query, in the order in which they were added."""
        from tether.preferences.rows import query_from
        from tether.preferences.schema import queries_table

        return (query_from(row) for row in self._pages(queries_table, "number", 0))

    def claim(
        self, annotator: str, *, count: int = 1, seconds: float = 120.0, overlap: int = 1
    ) -> list[Lease]:
        """Gives an annotator queries to answer, which nobody else is given meanwhile.

        Those that the annotator holds already come first, with their time renewed.

        Args:
            annotator: who asks.
            count: of queries, at most.
            seconds: until they may be given to others.
            overlap: how many different annotators are to answer each query.

        Returns:
            Up to `count` leases; none if there is nothing to answer.
        """
        from tether.preferences.leases import claim

        check_annotator(annotator)
        if count < 1 or overlap < 1 or not 0 < seconds < float("inf"):
            raise UserError(
                f"count is {count}, overlap {overlap}, seconds {seconds}; expected at least 1, at "
                "least 1, and a time above 0"
            )

        def work(connection: Connection) -> list[Lease]:
            return claim(
                connection,
                annotator,
                count=count,
                now=self._clock(),
                seconds=seconds,
                overlap=overlap,
            )

        return self._write(work)

    def release(self, lease: str) -> bool:
        """Ends a lease, so that others may be given its query; False if there is none."""
        from tether.preferences.leases import release

        return self._write(lambda connection: release(connection, lease))

    def answer(self, answer: Answer, lease: str | None = None) -> Receipt:
        """Appends an answer and ends its lease; sent twice, it gives the same receipt twice.

        Args:
            answer: where the annotator has a standing answer to the query, the new one replaces
                it, and `supersedes` is filled in if it is missing.
            lease: id of the lease it was given under. After that has run out, the answer is kept
                and marked as late.

        Raises:
            UserError: no such query, an answer that does not fit it, another's lease, or a UUID
                that another answer has.
        """
        from tether.preferences.log import append

        return self._append(
            lambda connection: append(connection, answer, lease=lease, now=self._clock())
        )

    def answer_all(self, answers: Iterable[Answer]) -> list[Receipt]:
        """Appends answers in one transaction: all of them, or none.

        Raises:
            UserError: as for :meth:`answer`.
        """
        from tether.preferences.log import append

        with self._database.appending() as connection:
            return [append(connection, a, lease=None, now=self._clock()) for a in answers]

    def restore(self, log: Iterable[tuple[Answer, bool]]) -> list[Receipt]:
        """Appends answers of another store with their marks (late or not), all or none.

        Raises:
            UserError: as for :meth:`answer`.
        """
        from tether.preferences.log import append

        with self._database.appending() as connection:
            now = self._clock()
            return [append(connection, a, lease=None, now=now, late=late) for a, late in log]

    def undo(self, annotator: str, uuid: str) -> Answer | None:
        """Takes back an annotator's newest standing answer; its query may be claimed again.

        Args:
            annotator: whose answer.
            uuid: made by whoever sends the undo; sent twice, it takes back one answer.

        Returns:
            The row that was appended; None: there is no answer to take back.
        """
        from tether.preferences.log import retract_newest

        check_annotator(annotator)
        uuid = uuid_of("uuid", uuid)
        return self._append(
            lambda connection: retract_newest(connection, annotator, uuid, now=self._clock())
        )

    def answers(self, after: int = 0, limit: int | None = None) -> list[tuple[int, Answer]]:
        """The log in its order: (cursor, answer) of rows with a cursor above `after`.

        A row never appears below a cursor that has been read; a cursor may be missing.
        """
        from sqlalchemy import select

        from tether.preferences.rows import answer_from
        from tether.preferences.schema import answers_table as table

        statement = select(table).where(table.c.cursor > after).order_by(table.c.cursor)
        with self._database.reading() as connection:
            rows = connection.execute(statement.limit(limit)).all()
        return [(row.cursor, answer_from(row)) for row in rows]

    def newest_cursor(self) -> int:
        """The cursor of the newest answer; 0: there is none."""
        from sqlalchemy import func, select

        from tether.preferences.schema import answers_table

        with self._database.reading() as connection:
            newest = connection.execute(select(func.max(answers_table.c.cursor))).scalar()
        return int(newest or 0)

    def log(self) -> Iterator[tuple[int, Answer, bool]]:
        """The whole log in its order: cursor, answer, and whether it came late."""
        from tether.preferences.rows import answer_from
        from tether.preferences.schema import answers_table

        return (
            (row.cursor, answer_from(row), row.late)
            for row in self._pages(answers_table, "cursor", 0)
        )

    def standing(self) -> Iterator[tuple[Query, Answer]]:
        """What counts: each annotator's newest answer to each query, unless retracted."""
        from tether.preferences import reading

        return reading.standing(self._database)

    def standing_answers(self, queries: Sequence[str]) -> dict[str, list[Answer]]:
        """Standing answers to some queries, by query, oldest first; those that have any."""
        from tether.preferences import reading

        return reading.standing_answers(self._database, queries)

    def counts(self) -> Counts:
        """How far the store has got."""
        from tether.preferences import reading

        return reading.counts(self._database, self._clock())

    def annotators(self) -> list[AnnotatorSummary]:
        """What each annotator has done, by name."""
        from tether.preferences import reading

        return reading.annotators(self._database)

    def note(self, key: str, value: Any) -> None:
        """Keeps a small fact (what JSON can hold) about the store; replaces one of this key."""
        from sqlalchemy import delete, insert

        from tether.preferences.schema import notes_table

        text = json.dumps(plain_json(f"note {key}", value))

        def work(connection: Connection) -> None:
            connection.execute(delete(notes_table).where(notes_table.c.key == key))
            connection.execute(insert(notes_table).values(key=key, value=text))

        self._append(work)

    def notes(self) -> dict[str, Any]:
        """The facts kept by :meth:`note`."""
        from sqlalchemy import select

        from tether.preferences.schema import notes_table

        with self._database.reading() as connection:
            rows = connection.execute(select(notes_table).order_by(notes_table.c.key)).all()
        return {row.key: json.loads(row.value) for row in rows}

    def _write(self, work: Callable[[Connection], T]) -> T:
        if self._database.serial:
            return self._append(work)
        # Claims of several annotators do not wait for each other where rows are locked one by one.
        with self._database.writing() as connection:
            return work(connection)

    def _pages(self, table: Table, order: str, after: int) -> Iterator[Any]:
        from tether.preferences import reading

        return reading.pages(self._database, table, order, after)
