"""Fields of records, checked: what is wrong is named by the field and its value."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.errors import UserError

LONGEST_NAME: Final = 200
"""Characters of an annotator's name and of what says where a query comes from."""

Array: TypeAlias = NDArray[Any]
Messages: TypeAlias = "tuple[dict[str, str], ...]"


def check_id(name: str, value: Any) -> None:
    """Raises UserError unless `value` is an id: 32 hexadecimal digits."""
    if not (isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")):
        raise UserError(f"{name} holds {value!r:.60}; expected an id of 32 hexadecimal digits")


def check_annotator(name: Any) -> None:
    """Raises UserError unless `name` can be an annotator's."""
    refuse_bad_text("annotator", name, empty=False, longest=LONGEST_NAME, controls=False)


def ranking_of(value: Any) -> tuple[int, ...]:
    """The positions of K items, each once."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    good = (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in value)
        and sorted(value) == list(range(len(value)))
        and len(value) >= 2
    )
    if not good:
        raise UserError(
            f"ranking is {value!r:.60}; expected each position of the items once, best first, such "
            "as 2, 0, 1"
        )
    return tuple(int(v) for v in value)


def uuid_of(name: str, value: Any) -> str:
    """A UUID in its usual spelling."""
    try:
        if not isinstance(value, str) or len(value) > 64:
            raise ValueError
        return str(uuid.UUID(value))
    except ValueError:
        raise UserError(f"{name} is {value!r:.60}; expected a UUID") from None


def number_of(name: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, int | float | np.integer | np.floating | np.bool_):
        number = float(value)
        if math.isfinite(number):
            return number
    raise UserError(f"{name} is {value!r:.60}; expected a finite number")


def check_whole(record: Any, name: str) -> None:
    """Makes a field an int of at least 0 that a database can hold."""
    value = getattr(record, name)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise UserError(f"{name} is {value!r:.60}; expected a whole number of at least 0")
    if value >= 2**63:
        raise UserError(f"{name} is {value}; expected less than 2**63")
    object.__setattr__(record, name, int(value))


def check_text(
    record: Any,
    name: str,
    *,
    empty: bool = True,
    longest: int | None = LONGEST_NAME,
    controls: bool = False,
) -> None:
    """Checks a field that is text."""
    refuse_bad_text(name, getattr(record, name), empty=empty, longest=longest, controls=controls)


def refuse_bad_text(
    name: str, value: Any, *, empty: bool, longest: int | None, controls: bool
) -> None:
    """Raises UserError unless `value` is text that a database can hold."""
    if not isinstance(value, str):
        raise UserError(f"{name} is a {type(value).__name__}; expected text")
    if not empty and not value.strip():
        raise UserError(f"{name} is empty; expected text")
    if longest is not None and len(value) > longest:
        raise UserError(f"{name} has {len(value)} characters; expected at most {longest}")
    # A database keeps no NUL in a text, and no other control character belongs into a name.
    if not controls and any(c < " " and c not in "\n\t" for c in value):
        raise UserError(f"{name} is {value!r:.60}; expected text without control characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: character {error.start + 1} is half of a surrogate pair, which is no text"
        ) from None


def messages_of(value: Any) -> Messages:
    """The messages of a conversation."""
    expected = 'expected a text, or messages {"role": ..., "content": ...}'
    if not isinstance(value, Sequence) or not value:
        raise UserError(f"prompt is {value!r:.60}; {expected}")
    for message in value:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise UserError(f"prompt holds {message!r:.60}; {expected}")
        for name, text in message.items():
            refuse_bad_text(f"prompt's {name}", text, empty=True, longest=None, controls=True)
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def check_array(record: Any, name: str) -> None:
    """Makes a field an array of its own that cannot be changed."""
    value: ArrayLike | None = getattr(record, name)
    if value is None and name not in ("observation", "action"):
        return
    array = np.array(value, dtype=np.float64 if name == "reward" else None, order="C")
    if array.ndim == 0:
        raise UserError(f"{name} is {value!r:.60}; expected an array with one row for each step")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise UserError(f"{name} holds {array.dtype}; expected numbers of at most 64 bits")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{name} holds a NaN or an infinity; expected finite numbers")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    array.setflags(write=False)
    object.__setattr__(record, name, array)


def plain_json(name: str, value: Any) -> Any:
    """The value as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {value!r:.60}; expected what JSON can hold: {error}") from None


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
