"""Items, queries and answers as rows of the tables, and back."""

from __future__ import annotations

import json
from typing import Any

from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as arrays_to_bytes

from tether.preferences.items import Item, MinariReference, Segment, Text
from tether.preferences.records import Answer, Query

Values = dict[str, Any]


def item_values(item: Item) -> Values:
    """An item as a row; its arrays as one safetensors file."""
    arrays = None
    if isinstance(item, Segment):
        arrays = arrays_to_bytes(item.arrays())
    return {
        "id": item.id,
        "kind": "segment" if isinstance(item, Segment) else "text",
        "facts": json.dumps(item.facts()),
        "arrays": arrays,
    }


def item_from(row: Any) -> Item:
    """The item of a row."""
    facts = json.loads(row.facts)
    if row.kind == "text":
        return Text(**facts)
    minari = facts.pop("minari")
    facts["minari"] = None if minari is None else MinariReference(**minari)
    return Segment(**facts | arrays_from_bytes(row.arrays))


def query_values(query: Query) -> Values:
    """A query as a row."""
    return {
        "id": query.id,
        "items": json.dumps(query.items),
        "context": query.context,
        "source": query.source,
        "step": query.step,
        "nonce": query.nonce,
    }


def query_from(row: Any) -> Query:
    """The query of a row."""
    return Query(tuple(json.loads(row.items)), row.context, row.source, row.step, row.nonce)


def answer_values(answer: Answer) -> Values:
    """An answer as a row, but for its cursor."""
    return {
        "uuid": answer.uuid,
        "query": answer.query,
        "preference": answer.preference,
        "ranking": None if answer.ranking is None else json.dumps(answer.ranking),
        "annotator": answer.annotator,
        "time": answer.time,
        "latency": answer.latency,
        "supersedes": answer.supersedes,
        "retracted": answer.retracted,
    }


def answer_from(row: Any) -> Answer:
    """The answer of a row."""
    return Answer(
        query=row.query,
        preference=row.preference,
        annotator=row.annotator,
        ranking=None if row.ranking is None else tuple(json.loads(row.ranking)),
        uuid=row.uuid,
        time=row.time,
        latency=row.latency,
        supersedes=row.supersedes,
        retracted=row.retracted,
    )
