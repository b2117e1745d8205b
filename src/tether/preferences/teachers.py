"""Who answers queries: an oracle, people, a file of answers, or any Python function."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tether.errors import UserError
from tether.preferences.items import Item
from tether.preferences.json_lines import json_objects
from tether.preferences.oracle import OracleTeacher
from tether.preferences.records import Answer, Query, check_fits, standing
from tether.preferences.store import Store

__all__ = ["CallableTeacher", "FileTeacher", "OracleTeacher", "StoreTeacher", "Teacher"]


class Teacher(Protocol):
    """Answers queries.

    Attributes:
        name: the annotator of its answers; for people, what they are called together.
    """

    name: str

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """One answer for each query, in their order; None: not answered yet.

        Args:
            queries: each with its items, in the query's order.
        """
        ...


class CallableTeacher:
    """Asks a Python function.

    Args:
        function: called with the items of one query. For two items it returns the probability in
            [0, 1] that the first is better (True and False will do); for more, their positions,
            best first; None: can't tell.
        name: the annotator of its answers.
    """

    def __init__(self, function: Callable[..., Any], *, name: str = "function") -> None:
        self.name = name
        self._function = function

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """Answers all of them.

        Raises:
            UserError: the function raised, or returned something else; the query is named.
        """
        return [self._answer(query, items) for query, items in queries]

    def _answer(self, query: Query, items: Sequence[Item]) -> Answer:
        try:
            said = self._function(*items)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"query {query.id}: teacher {self.name} raised {reason}") from error
        pair = len(items) == 2
        try:
            if isinstance(said, np.ndarray) and said.ndim == 0:
                said = said.item()
            answer = Answer(
                query=query.id,
                preference=said if pair else None,
                ranking=None if pair else said,
                annotator=self.name,
                uuid=_uuid(self.name, query, said),
            )
            check_fits(answer, query)
        except UserError as error:
            raise UserError(f"query {query.id}: teacher {self.name}: {error}") from None
        return answer


class FileTeacher:
    """Looks answers up in a file.

    The file has one JSON object on each line, with ``query`` (an id) and ``preference`` or
    ``ranking``; ``annotator`` and the other fields of an answer are optional. What ``tether
    preferences export --to jsonl`` writes is such a file; lines that are not answers are passed
    over. Where several annotators answered a query, the newest answer counts.

    Args:
        path: the file.
        name: the annotator of answers that name none; the file's name if not given.

    Raises:
        UserError: no such file, or a line that is no answer.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        path = Path(path)
        self.name = path.stem if name is None else name
        log = [
            _answer_of(values, place, self.name)
            for place, values in json_objects(path)
            if values.get("kind", "answer") == "answer"
        ]
        if not log:
            raise UserError(f"{path} holds no answers")
        self._answers = {answer.query: answer for answer in standing(log).values()}

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """The file's answers; None for what it does not have.

        Raises:
            UserError: an answer does not fit its query.
        """
        found = [self._answers.get(query.id) for query, _ in queries]
        for (query, _), answer in zip(queries, found, strict=True):
            if answer is not None:
                check_fits(answer, query)
        return found


class StoreTeacher:
    """Asks people: queries go into a store, answers come out of it when somebody has given them.

    Args:
        store: where the labelling page finds the queries.
        name: what the people are called together.
    """

    def __init__(self, store: Store, *, name: str = "people") -> None:
        self.name = name
        self._store = store

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """The newest standing answers; None for queries that nobody has answered yet."""
        self._store.add_items(item for _, items in queries for item in items)
        self._store.add_queries(query for query, _ in queries)
        newest = self._store.standing_answers([query.id for query, _ in queries])
        return [newest[query.id][-1] if query.id in newest else None for query, _ in queries]


def _answer_of(values: dict[str, Any], place: str, annotator: str) -> Answer:
    known = {key: value for key, value in values.items() if key in Answer.__dataclass_fields__}
    if "query" not in known or not {"preference", "ranking"} & set(known):
        raise UserError(f"{place}: expected an answer with query and preference or ranking")
    known.setdefault("preference", None)
    known.setdefault("annotator", annotator)
    try:
        if "uuid" not in known:
            said = (known["preference"], known.get("ranking"))
            known["uuid"] = str(uuid.uuid5(_NAMESPACE, f"{place}/{known['query']}/{said}"))
        return Answer(**known)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


_NAMESPACE = uuid.UUID("3c3a8a0e-53ce-5b5f-8b0e-0d5c2f7c9a41")


def _uuid(name: str, query: Query, said: Any) -> str:
    """Made of what was said, so that a function asked again after a crash answers once."""
    return str(uuid.uuid5(_NAMESPACE, f"{name}/{query.id}/{said!r}"))
