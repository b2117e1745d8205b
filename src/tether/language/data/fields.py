"""One field of a row, checked: what is wrong is named by file, row and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tether.errors import UserError
from tether.language.data.sources import Row


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


Text: TypeAlias = "str | tuple[Turn, ...]"
"""Plain text, or the turns of a conversation."""


def prompt_of(row: Row) -> Text:
    """The prompt: a text, possibly empty, or the turns up to the assistant's."""
    value = value_of(row, "prompt")
    if isinstance(value, str):
        return string_of(row, "prompt", allow_empty=True)
    turns = turns_of(row, "prompt")
    if turns[-1].role == "assistant":
        raise bad_field(row, "prompt", "ends with the assistant's message; expected one to answer")
    return turns


def answer_of(row: Row, name: str) -> str:
    """An answer: a text, or a list of one message of the assistant."""
    return _answer(row, name, value_of(row, name))


def answers_of(row: Row, name: str) -> tuple[str, ...]:
    """A list of at least two different answers."""
    values = value_of(row, name)
    if not isinstance(values, list | tuple):
        raise bad_field(row, name, f"{_kind(values)}; expected a list, best first")
    if len(values) < 2:
        raise bad_field(row, name, f"{len(values)} of them; expected at least two, best first")
    answers = tuple(_answer(row, f"{name}[{i}]", value) for i, value in enumerate(values))
    if len(set(answers)) < len(answers):
        raise bad_field(row, name, "two of them are equal, so neither can be the better")
    return answers


def turns_of(row: Row, name: str) -> tuple[Turn, ...]:
    """A list of messages."""
    return _checked_turns(row, name, value_of(row, name))


def _answer(row: Row, name: str, value: Any) -> str:
    if isinstance(value, str):
        return _checked(row, name, value, allow_empty=False)
    turns = _checked_turns(row, name, value)
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns)
        raise bad_field(
            row,
            name,
            f"messages of {roles}; expected one of the assistant (or give it all as messages)",
        )
    return turns[0].content


def _checked_turns(row: Row, name: str, value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list | tuple):
        raise bad_field(row, name, f"{_kind(value)}; expected a list of messages")
    if not value:
        raise bad_field(row, name, "an empty list; expected messages")
    turns = []
    for index, message in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            expected = '{"role": ..., "content": ...}'
            raise bad_field(row, place, f"{_kind(message)}; expected {expected}")
        for key in ("role", "content"):
            if key not in message:
                keys = ", ".join(map(str, message))
                raise bad_field(row, place, f"no {key!r} among its keys: {keys or 'none'}")
            if not isinstance(message[key], str):
                raise bad_field(row, f"{place}.{key}", f"{_kind(message[key])}; expected text")
        role = _checked(row, f"{place}.role", message["role"], allow_empty=False)
        spoken = role == "assistant"
        content = _checked(row, f"{place}.content", message["content"], allow_empty=not spoken)
        turns.append(Turn(role, content))
    return tuple(turns)


def string_of(row: Row, name: str, *, allow_empty: bool = False) -> str:
    """A text."""
    value = value_of(row, name)
    if not isinstance(value, str):
        raise bad_field(row, name, f"{_kind(value)}; expected text")
    return _checked(row, name, value, allow_empty=allow_empty)


def _checked(row: Row, name: str, text: str, *, allow_empty: bool) -> str:
    if not allow_empty and not text.strip():
        raise bad_field(row, name, "empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_field(
            row, name, f"character {error.start + 1} is half of a surrogate pair, which is no text"
        ) from None
    return text


def probability_of(row: Row, *, tie: bool) -> float:
    """The label: a number from 0 to 1, a truth value, or with `tie` the word "tie"."""
    value = value_of(row, "label")
    if tie and value == "tie":
        return 0.5
    # A NaN fails both comparisons.
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    also = ' or "tie"' if tie else ", true or false"
    raise bad_field(row, "label", f"{value!r:.60}; expected a probability from 0 to 1{also}")


def value_of(row: Row, name: str) -> Any:
    """The field as it is.

    Raises:
        UserError: this row has no such field.
    """
    if name not in row.values:
        found = ", ".join(map(str, row.values)) or "none"
        raise UserError(f"{row.place}: the field {name!r} is missing; found: {found}")
    return row.values[name]


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def bad_field(row: Row, name: str, problem: str) -> UserError:
    """The error that names file, row and field."""
    return UserError(f"{row.place}, field {name!r}: {problem}")
