"""Spaces as JSON, so that a saved policy knows what it sees and does without its environment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from tether.control.envs.arrays import MAX_ELEMENTS, Array, Space
from tether.errors import UserError

_MAX_DEPTH = 16
_DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def space_to_json(space: Space) -> dict[str, Any]:
    """A space as plain JSON types; :func:`space_from_json` gives back an equal space.

    Infinite bounds are written as "inf" and "-inf", which strict JSON can hold; equal bounds as
    one number. Dict keys keep their order, for it decides the order of the flat vector.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these, nested freely.

    Returns:
        A dict of str, int, float, list and dict.

    Raises:
        UserError: another kind of space, or Dict keys that are not strings.
    """
    if isinstance(space, spaces.Box):
        return {
            "type": "box",
            "shape": list(space.shape),
            "dtype": space.dtype.name,
            "low": _bounds_to_json(space.low),
            "high": _bounds_to_json(space.high),
        }
    if isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        return {"type": "discrete", "n": n, "start": start, "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "multi_discrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": space.dtype.name,
        }
    if isinstance(space, spaces.MultiBinary):
        # MultiBinary(3) and MultiBinary([3]) are not equal, so the form is kept.
        n_or_shape = space.n if isinstance(space.n, int) else [int(n) for n in space.shape]
        return {"type": "multi_binary", "shape": n_or_shape}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise UserError(f"Dict keys must be strings to be saved, got {list(space.spaces)}")
        pairs = [[key, space_to_json(part)] for key, part in space.spaces.items()]
        return {"type": "dict", "spaces": pairs}
    if isinstance(space, spaces.Tuple):
        return {"type": "tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise UserError(
        f"cannot save space {space}: Box, Discrete, Multi*, Dict and Tuple can be saved"
    )


def space_in_words(space: Space) -> str:
    """A space in one line short enough for a message."""
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else text[:97] + "..."


def space_from_json(data: dict[str, Any]) -> Space:
    """The space that :func:`space_to_json` wrote.

    The data may come from a foreign file: every field is checked, nothing is executed, and nothing
    larger than a real observation is allocated.

    Args:
        data: the parsed JSON object.

    Returns:
        A space equal to the one written.

    Raises:
        UserError: the data does not describe a space; the message names the field.
    """
    return _Reader().space(data, 0)


class _Reader:
    """One reading: keeps the count of elements over the whole tree."""

    def __init__(self) -> None:
        self.elements = 0

    def space(self, data: Any, depth: int) -> Space:
        if depth > _MAX_DEPTH:
            raise UserError(f"a saved space is nested deeper than {_MAX_DEPTH} levels")
        if not isinstance(data, dict):
            raise UserError(f"a saved space must be a JSON object, got {type(data).__name__}")
        kind = data.get("type")
        try:
            if kind == "box":
                return self.box(data)
            if kind == "discrete":
                return self.discrete(data)
            if kind == "multi_discrete":
                return self.multi_discrete(data)
            if kind == "multi_binary":
                return self.multi_binary(data)
            if kind in ("dict", "tuple"):
                return self.nested(data, depth)
        except (ValueError, OverflowError, AssertionError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"a saved {kind} space is inconsistent: {error}") from error
        raise UserError(
            f"a saved space has type {_short(kind)}; expected box, discrete, multi_discrete, "
            "multi_binary, dict or tuple"
        )

    def box(self, data: dict[str, Any]) -> spaces.Box:
        shape, dtype = self.shape(data), _dtype(data)
        low, high = (_bounds_from_json(data, name, shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)

    def discrete(self, data: dict[str, Any]) -> spaces.Discrete:
        n, start = _integer(data, "n"), _integer(data, "start")
        return spaces.Discrete(self.count(n, "n"), start=start, dtype=_dtype(data).type)

    def multi_discrete(self, data: dict[str, Any]) -> spaces.MultiDiscrete:
        nvec, start = (_integers(data, name) for name in ("nvec", "start"))
        if nvec.shape != start.shape or nvec.size == 0 or nvec.min() < 1:
            raise UserError("a saved multi_discrete needs nvec >= 1 and start of the same shape")
        # Summed as Python numbers: a hostile nvec must not wrap around.
        self.count(sum(nvec.ravel().tolist()), "nvec")
        return spaces.MultiDiscrete(nvec, dtype=_dtype(data).type, start=start)

    def multi_binary(self, data: dict[str, Any]) -> spaces.MultiBinary:
        n = data.get("shape")
        if type(n) is int:
            self.shape({**data, "shape": [n]}, at_least=1)
            return spaces.MultiBinary(n)
        return spaces.MultiBinary(self.shape(data, at_least=1))

    def nested(self, data: dict[str, Any], depth: int) -> Space:
        parts = data.get("spaces")
        if not isinstance(parts, list):
            raise UserError(f"a saved {data['type']} space needs a list of spaces")
        if data["type"] == "tuple":
            return spaces.Tuple([self.space(part, depth + 1) for part in parts])
        pairs: dict[str, Space] = {}
        for pair in parts:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                raise UserError("a saved dict space needs [name, space] pairs")
            if pair[0] in pairs:
                raise UserError(f"a saved dict space names {pair[0]!r} twice")
            pairs[pair[0]] = self.space(pair[1], depth + 1)
        return spaces.Dict(pairs, sort_keys=False)

    def shape(self, data: dict[str, Any], at_least: int = 0) -> tuple[int, ...]:
        shape = data.get("shape")
        if not isinstance(shape, list) or not at_least <= len(shape) <= 32:
            raise UserError(f"a saved {data['type']} needs a shape, got {_short(shape)}")
        if not all(type(n) is int and n >= at_least for n in shape):
            raise UserError(f"a saved {data['type']} has a bad shape {_short(shape)}")
        self.count(math.prod(shape), "shape")
        return tuple(shape)

    def count(self, elements: int, name: str) -> int:
        self.elements += elements
        if elements < 0 or self.elements > MAX_ELEMENTS:
            raise UserError(
                f"a saved space holds {_short(elements)} elements by its {name}; "
                f"at most {MAX_ELEMENTS} are supported"
            )
        return elements


def _bounds_to_json(bounds: Array) -> Any:
    values = [_number_to_json(value) for value in bounds.ravel().tolist()]
    return values[0] if values and len(set(values)) == 1 else values


def _number_to_json(value: float | bool) -> float | bool | str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _bounds_from_json(
    data: dict[str, Any], name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    value = data.get(name)
    values = value if isinstance(value, list) else [value]
    allowed = (int, float) if dtype.kind == "f" else (bool,) if dtype.kind == "b" else (int,)
    for item in values:
        infinite = dtype.kind == "f" and item in ("inf", "-inf")
        if not infinite and not (isinstance(item, allowed) and _finite(item, allowed)):
            raise UserError(f"a saved box has a bad {name} bound {_short(item)} for {dtype}")
    numbers = np.array([float(v) if isinstance(v, str) else v for v in values], dtype)
    if not isinstance(value, list):
        return np.full(shape, numbers[0], dtype)
    return numbers.reshape(shape)


def _finite(value: float, allowed: tuple[type, ...]) -> bool:
    # bool is an int to isinstance, and a file's true is no number.
    return type(value) in allowed and math.isfinite(value)


def _dtype(data: dict[str, Any]) -> np.dtype[Any]:
    name = data.get("dtype")
    integers_only = data["type"] != "box"
    if not isinstance(name, str) or name not in _DTYPES or (integers_only and "int" not in name):
        raise UserError(f"a saved {data['type']} has an unknown dtype {_short(name)}")
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _integer(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    if type(value) is not int:
        raise UserError(f"a saved {data['type']} needs an integer {name}, got {_short(value)}")
    return value


def _integers(data: dict[str, Any], name: str) -> Array:
    value = data.get(name)
    array = np.array(value) if isinstance(value, list) else None
    if array is None or array.dtype.kind not in "iu":
        raise UserError(f"a saved {data['type']} needs integers {name}, got {_short(value)}")
    return array


def _short(value: Any) -> str:
    # Lists and objects may be nested beyond what repr can recurse into.
    if isinstance(value, list | dict):
        return f"a JSON {'list' if isinstance(value, list) else 'object'}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
