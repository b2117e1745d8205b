"""Records of comparisons that check themselves: queries and answers, beside the items."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tether.errors import UserError
from tether.preferences.fields import (
    canonical,
    check_annotator,
    check_id,
    check_text,
    check_whole,
    number_of,
    ranking_of,
    uuid_of,
)
from tether.preferences.items import Item, MinariReference, Segment, Text

__all__ = [
    "Answer",
    "Item",
    "MinariReference",
    "Query",
    "Segment",
    "Text",
    "check_fits",
    "standing",
]


@dataclass(frozen=True)
class Query:
    """A question: which of these items is better?

    Attributes:
        items: ids of at least two different items.
        context: what the items have in common, shown beside them.
        source: how the items were chosen, such as ``random-policy``, ``uniform`` or
            ``disagreement``.
        step: environment steps the policy had been trained for when the question was made.
        nonce: tells apart queries that ask the same, if they are meant to be asked twice.

    Raises:
        UserError: fewer than two items, the same one twice, or something that is no id.
    """

    items: tuple[str, ...]
    context: str = ""
    source: str = ""
    step: int = 0
    nonce: str = ""

    def __post_init__(self) -> None:
        items: object = self.items
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise UserError(f"items is {items!r:.60}; expected ids of at least two items")
        object.__setattr__(self, "items", tuple(items))
        for item in self.items:
            check_id("items", item)
        if len(self.items) < 2:
            raise UserError(f"the query has {len(self.items)} items; expected at least 2")
        if len(set(self.items)) < len(self.items):
            raise UserError("the query has the same item twice; expected different items")
        check_text(self, "context", longest=None)
        check_text(self, "source")
        check_text(self, "nonce")
        check_whole(self, "step")

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits, made of items, context and nonce."""
        content = canonical([list(self.items), self.context, self.nonce]).encode()
        return hashlib.sha256(b"query" + content).hexdigest()[:32]


@dataclass(frozen=True)
class Answer:
    """What a teacher said about a query.

    Attributes:
        query: id of the query.
        preference: probability in [0, 1] that the FIRST of two items is better; 0.5 is a tie;
            None: can't tell, or a ranking.
        ranking: positions of K > 2 items, best first; None: can't tell, or a preference.
        annotator: who answered.
        uuid: made by whoever sends the answer, so that sending it twice does no harm.
        time: when it was given, in seconds since 1970.
        latency: seconds from showing the query to the answer.
        supersedes: uuid of the same annotator's answer that this one replaces.
        retracted: whether this row takes the answer back and says nothing in its place.

    Raises:
        UserError: a value that is none of these.
    """

    query: str
    preference: float | None
    annotator: str
    ranking: tuple[int, ...] | None = None
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    time: float = field(default_factory=time.time)
    latency: float | None = None
    supersedes: str | None = None
    retracted: bool = False

    def __post_init__(self) -> None:
        check_id("query", self.query)
        check_annotator(self.annotator)
        if self.preference is not None:
            preference = number_of("preference", self.preference)
            if not 0 <= preference <= 1:
                raise UserError(
                    f"preference is {self.preference!r}; expected the probability in [0, 1] that "
                    "the first item is better, or None"
                )
            object.__setattr__(self, "preference", preference)
        if self.ranking is not None:
            object.__setattr__(self, "ranking", ranking_of(self.ranking))
            if self.preference is not None:
                raise UserError("the answer has a preference and a ranking; expected one of them")
        if self.retracted and self.says_something:
            raise UserError("a retracted answer says nothing; expected no preference, no ranking")
        object.__setattr__(self, "retracted", bool(self.retracted))
        object.__setattr__(self, "uuid", uuid_of("uuid", self.uuid))
        if self.supersedes is not None:
            object.__setattr__(self, "supersedes", uuid_of("supersedes", self.supersedes))
        object.__setattr__(self, "time", number_of("time", self.time))
        if self.latency is not None:
            object.__setattr__(self, "latency", number_of("latency", self.latency))
            if self.latency < 0:
                raise UserError(f"latency is {self.latency}; expected seconds of at least 0")

    @property
    def says_something(self) -> bool:
        """Whether it prefers, ranks or calls a tie; False: can't tell, or retracted."""
        return self.preference is not None or self.ranking is not None


def standing(answers: Iterable[Answer]) -> dict[tuple[str, str], Answer]:
    """What still counts of a log of answers, by (query, annotator), in the log's order.

    An annotator's newest answer to a query replaces the older ones; a retracted one leaves nothing.
    """
    found: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        found.pop((answer.query, answer.annotator), None)
        if not answer.retracted:
            found[answer.query, answer.annotator] = answer
    return found


def check_fits(answer: Answer, query: Query) -> None:
    """Raises UserError unless the answer is of the query's kind: a preference, or K positions."""
    items = len(query.items)
    if items > 2 and answer.preference is not None:
        raise UserError(
            f"query {query.id} has {items} items, but the answer has a preference; expected a "
            "ranking"
        )
    if answer.ranking is not None and (items == 2 or len(answer.ranking) != items):
        expected = "a preference" if items == 2 else f"a ranking of {items} positions"
        raise UserError(
            f"query {query.id} has {items} items, but the answer ranks {len(answer.ranking)}; "
            f"expected {expected}"
        )
