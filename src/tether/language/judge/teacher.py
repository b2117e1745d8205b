"""A judge as a teacher of the preferences' stores."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from tether.errors import UserError
from tether.language.data.fields import Text, Turn
from tether.language.judge.judges import Judge
from tether.language.judge.labelling import Pair
from tether.preferences.items import Item
from tether.preferences.items import Text as TextItem
from tether.preferences.records import Answer, Query
from tether.preferences.store import Store

_NAMESPACE = uuid.UUID("6f0c2c0e-3c0b-5f0e-9a54-0d6d3c3f8a11")


class JudgeTeacher:
    """Answers queries about two texts by a judge.

    Attributes:
        name: the annotator of its answers.
    """

    def __init__(self, judge: Judge) -> None:
        """Takes an open judge."""
        self.name = judge.name
        self._judge = judge

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """One answer for each query.

        Raises:
            UserError: a query shows no two texts of one prompt.
            JudgeError: the judge failed on one.
        """
        pairs = [pair_of(query, items) for query, items in queries]
        labels = self._judge.compare(
            [pair.prompt for pair in pairs],
            [pair.first for pair in pairs],
            [pair.second for pair in pairs],
        )
        return [
            answer_of(self._judge, query, float(label))
            for (query, _), label in zip(queries, labels, strict=True)
        ]


def answer_of(judge: Judge, query: Query, label: float) -> Answer:
    """What a judge says of a query; the same judge's answer has the same uuid."""
    return Answer(
        query=query.id,
        preference=label,
        annotator=judge.name,
        uuid=str(uuid.uuid5(_NAMESPACE, f"{judge.digest} {judge.temperature} {query.id}")),
    )


def pair_of(query: Query, items: Sequence[Item], human: float | None = None) -> Pair:
    """The two texts of a query.

    Raises:
        UserError: it shows something else.
    """
    texts = [item for item in items if isinstance(item, TextItem)]
    if len(texts) != 2 or len(items) != 2 or texts[0].prompt != texts[1].prompt:
        raise UserError(
            f"query {query.id} shows no two texts of one prompt; a judge of texts can't answer it"
        )
    prompt = texts[0].prompt
    told: Text = (
        prompt
        if isinstance(prompt, str)
        else tuple(Turn(message["role"], message["content"]) for message in prompt)
    )
    return Pair(f"query {query.id}", told, texts[0].completion, texts[1].completion, human)


def unanswered(store: Store, judge: Judge) -> Iterator[tuple[Query, Pair]]:
    """The pairs of texts in a store that the judge has not answered, with people's labels.

    Raises:
        UserError: the store has answers of another judge of this name.
    """
    note = f"judge {judge.name}"
    noted = store.notes().get(note)
    said: dict[str, list[float]] = {}
    done: set[str] = set()
    for query, answer in store.standing():
        if answer.annotator == judge.name:
            done.add(query.id)
        elif answer.preference is not None:
            said.setdefault(query.id, []).append(answer.preference)
    mine = f"{judge.digest} {judge.temperature}"
    if noted != mine and (noted is not None or done):
        raise UserError(
            f"store {store.name} has answers of another judge with the name {judge.name!r}; give "
            "this one another --name"
        )
    store.note(note, mine)
    for query in store.queries():
        items = store.items(query.items)
        if query.id in done or len(items) != 2 or not all(isinstance(i, TextItem) for i in items):
            continue
        human = said.get(query.id)
        yield query, pair_of(query, items, None if human is None else sum(human) / len(human))
