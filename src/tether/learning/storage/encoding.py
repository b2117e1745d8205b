"""A learner's state as JSON plus named flat arrays, and back, bit for bit.

JSON has no NaN, no integers beyond a reader's limit and no arrays, so those leaves become small
objects with one key that starts with ``$``:

==================================  =============================================================
``{"$array": name, ...}``           an array stored beside the JSON under ``name``
``{"$float": "7ff8000000000000"}``  a NaN or infinity by its IEEE 754 bits
``{"$int": "-1f..."}``              an integer of more than 4,096 bits, in hexadecimal
``{"$dict": [[key, value], ...]}``  a dict one of whose own keys starts with ``$``
==================================  =============================================================
"""

import io
import math
import struct
import warnings
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from tether.learning.learner import State, StateValue

Json: TypeAlias = Any
Arrays: TypeAlias = dict[str, NDArray[Any]]

STORED_DTYPES: Final[dict[str, str]] = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
"""NumPy's names of the types safetensors holds as they are, and safetensors' names for them."""

MAX_DEPTH: Final = 100
# NumPy refuses to parse longer ones, which could exhaust the parser.
MAX_NPY_HEADER: Final = 10_000
MAX_JSON_INT_BITS: Final = 4096
EXPECTED: Final = "a State holds NumPy arrays, int, float, str, bool, None, dicts and lists of them"


class EncodingError(ValueError):
    """JSON or arrays that no state encodes to: the mark of a damaged or hostile file."""


def encode(state: State) -> tuple[Json, Arrays]:
    """Splits a state into JSON and arrays.

    Args:
        state: nested dict of arrays and scalars; arrays of every NumPy dtype but ``object``.

    Returns:
        The JSON tree, and the arrays by name (``policy/mean/0/weight``): C-contiguous, in the
        machine's byte order, of the dtypes in ``STORED_DTYPES``.

    Raises:
        TypeError: a leaf or key that a state cannot hold; the message gives its path.
    """
    arrays: Arrays = {}
    return _encode(state, (), arrays), arrays


def decode(tree: Json, arrays: Mapping[str, NDArray[Any]]) -> State:
    """Puts a state together again; the inverse of :func:`encode`.

    Raises:
        EncodingError: the tree is not one that :func:`encode` makes.
    """
    state = _decode(tree, arrays, 0)
    if not isinstance(state, dict):
        raise EncodingError(f"the state is a {type(state).__name__}, expected a dict")
    return state


def _encode(value: Any, path: tuple[str, ...], arrays: Arrays) -> Json:
    if len(path) > MAX_DEPTH:
        raise TypeError(f"state nested deeper than {MAX_DEPTH} levels at {'/'.join(path)!r}")
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, path, arrays)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        small = value.bit_length() <= MAX_JSON_INT_BITS
        return int(value) if small else {"$int": f"{value:x}"}
    if isinstance(value, float):
        exact = {"$float": struct.pack(">d", value).hex()}
        return float(value) if math.isfinite(value) else exact
    if isinstance(value, list):
        return [_encode(item, (*path, str(i)), arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"state at {'/'.join(path)!r} has the key {key!r}; keys must be strings"
                )
        items = [[key, _encode(item, (*path, key), arrays)] for key, item in value.items()]
        if any(key.startswith("$") for key in value):
            return {"$dict": items}
        return dict(items)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise TypeError(
        f"state at {'/'.join(path)!r} is a {kind}; {EXPECTED}: convert it, for example with "
        "numpy.asarray"
    )


def _encode_array(value: Any, path: tuple[str, ...], arrays: Arrays) -> Json:
    array = np.asarray(value)
    node: dict[str, Json] = {"$array": _name(path, arrays)}
    if isinstance(value, np.generic):
        node["scalar"] = True
    if array.dtype.hasobject:
        raise TypeError(f"state at {'/'.join(path)!r} is an array of Python objects; {EXPECTED}")
    if array.dtype.isnative and array.dtype.name in STORED_DTYPES:
        if array.flags.f_contiguous and not array.flags.c_contiguous:
            # NumPy sums in memory order, so an array that came back in another order could add
            # up to another last bit.
            node["fortran"] = True
            array = array.T
        stored = np.asarray(array, order="C")
    elif _is_registered(array.dtype):
        node["dtype"] = array.dtype.name
        bits = f"u{array.dtype.itemsize}"
        stored = np.asarray(array, order="C").view(bits)
    else:
        node["npy"] = True
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # That NumPy before 1.17 could not read field names beyond Latin-1 is no news here.
            warnings.simplefilter("ignore", UserWarning)
            np.lib.format.write_array(buffer, array, allow_pickle=False)
        if buffer.tell() - array.nbytes > MAX_NPY_HEADER:
            raise TypeError(
                f"state at {'/'.join(path)!r} has too long a dtype: {array.dtype!s:.60}"
            )
        stored = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    arrays[node["$array"]] = stored
    return node


def _is_registered(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of the ``ml_dtypes`` (bfloat16, float8), which .npy would forget."""
    return dtype.type.__module__.startswith("ml_dtypes")


def _registered(name: str) -> np.dtype[Any]:
    import ml_dtypes

    scalar_type = getattr(ml_dtypes, name, None)
    if not (isinstance(scalar_type, type) and issubclass(scalar_type, np.generic)):
        raise EncodingError(f"unknown dtype {name!r}")
    return np.dtype(scalar_type)


def _name(path: tuple[str, ...], arrays: Arrays) -> str:
    # Lone surrogates are legal in Python strings and illegal in safetensors' UTF-8 names.
    name = "/".join(path).encode("utf-8", "backslashreplace").decode("utf-8")
    while name in arrays or name == "__metadata__":
        name += "~"
    return name


def _decode(tree: Json, arrays: Mapping[str, NDArray[Any]], depth: int) -> StateValue:
    if depth > MAX_DEPTH:
        raise EncodingError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(tree, list):
        return [_decode(item, arrays, depth + 1) for item in tree]
    if not isinstance(tree, dict):
        return _checked_scalar(tree)
    if "$array" in tree:
        return _decode_array(tree, arrays)
    if "$float" in tree:
        return float(struct.unpack(">d", bytes.fromhex(_text(tree["$float"])))[0])
    if "$int" in tree:
        return int(_text(tree["$int"]), 16)
    pairs = tree["$dict"] if "$dict" in tree else list(tree.items())
    result: State = {}
    for key, value in pairs:
        result[_text(key)] = _decode(value, arrays, depth + 1)
    return result


def _decode_array(node: dict[str, Json], arrays: Mapping[str, NDArray[Any]]) -> StateValue:
    name = _text(node["$array"])
    if name not in arrays:
        raise EncodingError(f"array {name!r} is missing")
    array = arrays[name]
    if node.get("npy"):
        array = np.lib.format.read_array(io.BytesIO(array.tobytes()), allow_pickle=False)
    elif "dtype" in node:
        array = array.view(_registered(_text(node["dtype"])))
    if node.get("fortran"):
        array = array.T
    if node.get("scalar"):
        if array.ndim:
            raise EncodingError(f"scalar {name!r} has shape {array.shape}")
        return cast(np.generic, array[()])
    return array


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise EncodingError(f"{value!r} is not a string")
    return value


def _checked_scalar(value: Json) -> StateValue:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise EncodingError(f"unexpected {type(value).__name__}")
