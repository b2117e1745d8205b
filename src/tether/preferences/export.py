"""What a store holds as files: everything, pairs of texts, or references into Minari data sets.

The first can be read back into a store that is equal to the first one; the second is what `tether
reward`, `tether dpo` and other libraries read.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from tether.errors import UserError
from tether.learning.storage.durable import check_new_file, replaced
from tether.preferences.items import Item, Segment, Text
from tether.preferences.json_lines import json_objects
from tether.preferences.records import Answer, Query
from tether.preferences.store import Store

FORMAT: Final = 1
"""Raised when an older tether would misread a lossless file."""

PAIR_COLUMNS: Final = ("prompt", "chosen", "rejected", "label", "annotator")


@dataclass
class Exported:
    """What has been written.

    Attributes:
        path: the file.
        rows: lines in it.
        left_out: standing answers that the format cannot hold, by reason.
    """

    path: Path
    rows: int
    left_out: dict[str, int]


def export(store: Store, to: str, out: str | Path) -> Exported:
    """Writes a store to a file, whole or not at all.

    Args:
        store: what to write.
        to: a key of :data:`FORMATS`.
        out: a file that does not exist yet.

    Raises:
        UserError: no such format, a file that cannot be written, or nothing to write.
    """
    if to not in FORMATS:
        raise UserError(f"to is {to!r}; expected {' or '.join(FORMATS)}")
    path = Path(out)
    check_new_file(path)
    left_out: dict[str, int] = {}
    rows = FORMATS[to](store, left_out)
    first = next(rows, None)
    if first is None:
        raise UserError(f"store {store.name} has nothing to write as {to}{_why(left_out)}")
    exported = Exported(path, 0, left_out)
    with replaced(path) as file:
        for row in itertools.chain([first], rows):
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            exported.rows += 1
    return exported


def pair_rows(store: Store, left_out: dict[str, int] | None = None) -> Iterator[dict[str, Any]]:
    """Comparisons of texts as `prompt`, `chosen`, `rejected`, `label` and `annotator`.

    One row for each standing answer to a pair, and for each pair of a ranking. `label` is the
    probability that `chosen` is better, from 0.5 (a tie) to 1.

    Args:
        store: where the answers are.
        left_out: counts, by reason, the answers that make no row.
    """
    left_out = {} if left_out is None else left_out
    for query, answer in store.standing():
        if not answer.says_something:
            _leave_out(left_out, "can't tell")
            continue
        texts = [item for item in store.items(query.items) if isinstance(item, Text)]
        if len(texts) < len(query.items):
            _leave_out(left_out, "not a comparison of texts")
        elif any(text.prompt != texts[0].prompt for text in texts):
            _leave_out(left_out, "texts with different prompts")
        else:
            yield from _pairs(texts, answer)


def import_jsonl(path: str | Path, store: Store) -> int:
    """Adds what :func:`export` wrote as ``jsonl`` to a store; returns the number of answers.

    Answers keep their order, UUIDs and marks; what the store has already does no harm.

    Raises:
        UserError: a line that is none of the format's, or a file of a newer tether. What comes
            before a bad line has been added.
    """
    path = Path(path)
    pending: dict[str, list[Any]] = {"item": [], "query": [], "answer": []}
    add: dict[str, Callable[[list[Any]], object]] = {
        "item": store.add_items,
        "query": store.add_queries,
        "answer": store.restore,
    }
    answers = 0
    last = ""
    for number, (place, values) in enumerate(json_objects(path)):
        kind = values.pop("kind", None)
        if number == 0 and kind != "store":
            raise UserError(f"{place}: expected the first line of a store that was exported")
        if last in add and (kind != last or len(pending[last]) == _AT_ONCE):
            add[last](pending[last])
            pending[last].clear()
        try:
            if kind == "store":
                _check_format(values, place)
                for key, value in values["notes"].items():
                    store.note(key, value)
            elif kind == "item":
                pending[kind].append(_item_of(values))
            elif kind == "query":
                pending[kind].append(_query_of(values))
            elif kind == "answer":
                late = values.pop("late")
                pending[kind].append((_answer_of(values), late))
                answers += 1
            else:
                raise UserError(f"kind is {kind!r:.40}; expected store, item, query or answer")
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{place}: not a line of an exported store ({error!r:.80})") from None
        last = kind
    if not last:
        raise UserError(f"{path} is empty")
    if last in add:
        add[last](pending[last])
    return answers


_AT_ONCE: Final = 500


def _everything(store: Store, _: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield {"kind": "store", "format": FORMAT, "notes": store.notes()}
    # Others may be writing: every answer's query, and every query's items, must be among them.
    end = store.newest_cursor()
    queries = list(store.queries())
    for item in store.all_items():
        yield {"kind": "item", **_item_values(item)}
    for query in queries:
        yield {"kind": "query", "id": query.id, **vars_of(query)}
    for cursor, answer, late in store.log():
        if cursor > end:
            return
        yield {"kind": "answer", **vars_of(answer), "late": late}


def _minari_rows(store: Store, left_out: dict[str, int]) -> Iterator[dict[str, Any]]:
    for query, answer in store.standing():
        if not answer.says_something:
            _leave_out(left_out, "can't tell")
            continue
        segments = [item for item in store.items(query.items) if isinstance(item, Segment)]
        references = [s.minari for s in segments if s.minari is not None]
        if len(references) < len(query.items):
            _leave_out(left_out, "not segments of a Minari data set")
            continue
        yield {
            "segments": [vars_of(reference) for reference in references],
            "preference": answer.preference,
            "ranking": answer.ranking,
            "annotator": answer.annotator,
        }


def _pairs_only(store: Store, left_out: dict[str, int]) -> Iterator[dict[str, Any]]:
    return pair_rows(store, left_out)


FORMATS: Final[Mapping[str, Callable[[Store, dict[str, int]], Iterator[dict[str, Any]]]]] = {
    "jsonl": _everything,
    "pairs": _pairs_only,
    "minari": _minari_rows,
}
"""Every format by name."""


def _pairs(texts: list[Text], answer: Answer) -> Iterator[dict[str, Any]]:
    if answer.ranking is not None:
        ordered = [texts[position] for position in answer.ranking]
        for better, worse in itertools.combinations(ordered, 2):
            yield _pair(better, worse, 1.0, answer.annotator)
    elif answer.preference is not None:
        first, second = texts
        if answer.preference >= 0.5:
            yield _pair(first, second, answer.preference, answer.annotator)
        else:
            yield _pair(second, first, 1 - answer.preference, answer.annotator)


def _pair(better: Text, worse: Text, label: float, annotator: str) -> dict[str, Any]:
    prompt = better.facts()["prompt"]
    values = (prompt, better.completion, worse.completion, label, annotator)
    return dict(zip(PAIR_COLUMNS, values, strict=True))


def _leave_out(left_out: dict[str, int], reason: str) -> None:
    left_out[reason] = left_out.get(reason, 0) + 1


def _why(left_out: dict[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return f" (answers left out: {reasons})" if reasons else ""


def vars_of(record: Any) -> dict[str, Any]:
    """The fields of a record, without what it has worked out from them."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _item_values(item: Item) -> dict[str, Any]:
    from tether.preferences.rows import item_values

    values = item_values(item)
    arrays = values.pop("arrays")
    return {
        "id": values["id"],
        "item": values["kind"],
        "facts": json.loads(values["facts"]),
        "arrays": None if arrays is None else base64.b64encode(arrays).decode(),
    }


def _item_of(values: dict[str, Any]) -> Item:
    from safetensors import SafetensorError

    from tether.preferences.rows import item_from

    arrays = values["arrays"]
    row = SimpleNamespace(
        kind=values["item"],
        facts=json.dumps(values["facts"]),
        arrays=None if arrays is None else base64.b64decode(arrays, validate=True),
    )
    try:
        item = item_from(row)
    except SafetensorError as error:
        raise UserError(f"the item's arrays are damaged: {error}") from None
    if item.id != values["id"]:
        raise UserError(f"the item's id is {values['id']!r:.60}, but its content's is {item.id}")
    return item


def _query_of(values: dict[str, Any]) -> Query:
    query = Query(**{name: values[name] for name in Query.__dataclass_fields__})
    if query.id != values["id"]:
        raise UserError(f"the query's id is {values['id']!r:.60}, but its content's is {query.id}")
    return query


def _answer_of(values: dict[str, Any]) -> Answer:
    return Answer(**values)


def _check_format(values: dict[str, Any], place: str) -> None:
    found = values["format"]
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(
            f"format {found!r:.20} is newer than the {FORMAT} this tether reads; upgrade tether-rl"
        )
