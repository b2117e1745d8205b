"""Asking people: queries go into the run's store, answers come out of its log by a cursor."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tether.preferences.items import Segment
from tether.preferences.records import Answer, Query
from tether.preferences.store import STORE_FILE, Store

REMIND_EVERY: Final = 60.0
"""Seconds between two lines that say what training waits for."""
LOOK_EVERY: Final = 0.5
"""Seconds between two looks into the store while training waits."""


class People:
    """The store of a run, as training sees it.

    Attributes:
        cursor: up to where the log of answers has been read.
    """

    def __init__(self, run: Path, labels: int) -> None:
        """Opens ``RUN/preferences.sqlite``, or makes it.

        Raises:
            StoreError: the file is something else, or a package is missing.
        """
        self.cursor = 0
        self._run, self._labels = run, labels
        self._store = Store.open(run / STORE_FILE)
        self._store.note("goal", labels)
        self._store.note("run", run.name)
        self._reminded = -REMIND_EVERY

    def ask(self, queries: Sequence[tuple[Query, Sequence[Segment]]]) -> None:
        """Puts queries where people find them."""
        self._store.add_items([item for _, items in queries for item in items])
        self._store.add_queries([query for query, _ in queries])

    def open(self) -> int:
        """How many queries nobody has answered yet."""
        counts = self._store.counts()
        return counts.open + counts.leased

    def news(self) -> list[Answer]:
        """What has been answered, changed or taken back since the last look."""
        rows = self._store.answers(self.cursor)
        if rows:
            self.cursor = rows[-1][0]
        return [answer for _, answer in rows]

    def items_of(self, query: str) -> list[Segment]:
        """The segments that a query shows."""
        items = self._store.items(self._store.query(query).items)
        return [item for item in items if isinstance(item, Segment)]

    def remind(self, missing: int) -> None:
        """Says, once a minute, what training waits for and how to answer."""
        now = time.monotonic()
        if now - self._reminded >= REMIND_EVERY:
            self._reminded = now
            print(
                f"waiting for {missing} more answers; compare the clips with: tether label "
                f"{shlex.quote(str(self._run))}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Closes the store."""
        self._store.close()


class Keeper:
    """Keeps what an automatic teacher was asked and said in the run's store, to be exported."""

    def __init__(self, run: Path, labels: int) -> None:
        """Opens ``RUN/preferences.sqlite``, or makes it."""
        self._store = Store.open(run / STORE_FILE)
        self._store.note("goal", labels)
        self._store.note("run", run.name)

    def keep(
        self,
        queries: Sequence[tuple[Query, Sequence[Segment]]],
        answers: Sequence[Answer | None],
    ) -> None:
        """Adds queries with their answers; those that are there already do no harm."""
        self._store.add_items([item for _, items in queries for item in items])
        self._store.add_queries([query for query, _ in queries])
        self._store.answer_all([answer for answer in answers if answer is not None])

    def close(self) -> None:
        """Closes the store."""
        self._store.close()
