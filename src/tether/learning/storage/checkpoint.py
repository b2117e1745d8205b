"""One file that holds a learner: safetensors, sealed by a checksum, replaced in one stroke.

The file is an ordinary safetensors file: arrays by path, and one metadata entry, ``tether``, with
the structure and the scalars as JSON (see ``encoding``). That entry begins with a SHA-256 over the
whole file (its own 64 digits read as zeros), at a fixed place, so a change of any one byte is
noticed before anything is interpreted. Loading runs no code from the file: there is no pickle.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tether.errors import DamagedCheckpointError, RunError
from tether.learning.learner import State
from tether.learning.storage.durable import replaced
from tether.learning.storage.encoding import STORED_DTYPES, Arrays, decode, encode

FORMAT: Final = 1
"""Raised when a file of the new kind would be misread by an older tether."""

SUFFIX: Final = ".safetensors"

_PREFIX: Final = b'{"__metadata__":{"tether":"{\\"checksum\\":\\"'
_DIGITS: Final = 64
_SEAL: Final = 8 + len(_PREFIX)
_CHUNK: Final = 1 << 20
# safetensors' own readers refuse a longer header.
_MAX_HEADER: Final = 100_000_000


def save_checkpoint(path: str | Path, state: State, info: dict[str, Any]) -> None:
    """Writes a state to one file, or leaves whatever was there untouched.

    The bytes go to a temporary name in the same folder and reach the disk (fsync) before the
    rename, and the rename itself before the return, so that a crash or power cut at any moment
    leaves either the old file or the whole new one. Equal states give equal files.

    Args:
        path: the file to write, usually ``checkpoints/step_000000012345.safetensors``.
        state: what ``Learner.state`` returned.
        info: JSON-like facts kept beside it (steps, position in the metrics file).

    Raises:
        TypeError: the state holds something that is neither an array nor JSON-like.
        RunError: the file cannot be written: disk full, no permission.
    """
    path = Path(path)
    tree, arrays = encode(state)
    facts, strays = encode(info)
    if strays:
        raise TypeError(f"info holds the array {min(strays)!r}; arrays belong in the state")
    header, ordered = _header({"info": facts, "state": tree}, arrays)
    with replaced(path) as file:
        seal = hashlib.sha256()
        for block in _blocks(header, ordered):
            seal.update(block)
            file.write(block)
        file.seek(_SEAL)
        file.write(seal.hexdigest().encode())


def load_checkpoint(path: str | Path) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint after checking every byte of it.

    Returns:
        The state, with fresh writable arrays, and the info it was saved with.

    Raises:
        DamagedCheckpointError: truncated, altered, or not a checkpoint of tether at all.
        RunError: the file is missing, unreadable, or was written by a newer tether.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _check_seal(path, file)
        contents, arrays = _read(path)
        state, info = decode(contents["state"], arrays), decode(contents["info"], {})
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except _MALFORMED as error:
        raise _damaged(path, f"malformed content ({_one_line(error)})") from error
    return state, info


# What reading a sealed but hostile file can raise: LookupError for unknown dtypes and keys,
# SyntaxError and TokenError for the header of a .npy, which numpy reads as Python.
_MALFORMED: Final = (
    SafetensorError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
)


def _header(tree: Any, arrays: Arrays) -> tuple[bytes, list[NDArray[Any]]]:
    """The file up to its first array (checksum still zeros), and the arrays in file order."""
    # Wide types first keeps every array aligned to its own width.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    # ASCII throughout: Python strings may hold lone surrogates, which UTF-8 cannot.
    text = json.dumps({"checksum": "0" * _DIGITS, "format": FORMAT, **tree}, separators=(",", ":"))
    entries: dict[str, Any] = {"__metadata__": {"tether": text}}
    offset = 0
    for name in names:
        array = arrays[name]
        end = offset + array.nbytes
        entries[name] = {
            "dtype": STORED_DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)
    if len(header) > _MAX_HEADER:
        raise TypeError(
            f"the state's scalars and names take {len(header):,} bytes, more than the "
            f"{_MAX_HEADER:,} a checkpoint's header may hold; keep long lists as arrays"
        )
    if not header.startswith(_PREFIX):
        raise RuntimeError("the checksum is not at its fixed place in the header")
    return len(header).to_bytes(8, "little") + header, [arrays[name] for name in names]


def _blocks(header: bytes, arrays: list[NDArray[Any]]) -> Iterator[bytes | memoryview]:
    yield header
    for array in arrays:
        if array.size:
            yield array.reshape(-1).view(np.uint8).data


def _check_seal(path: Path, file: BinaryIO) -> None:
    start = file.read(_SEAL)
    if start[8:] != _PREFIX:
        raise _damaged(path, "it does not begin as a checkpoint of tether")
    digits = file.read(_DIGITS)
    seal = hashlib.sha256(start + b"0" * _DIGITS)
    while block := file.read(_CHUNK):
        seal.update(block)
    if seal.hexdigest().encode() != digits:
        raise _damaged(path, "its checksum does not match (truncated or altered)")


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    with safe_open(path, framework="np") as file:
        contents = json.loads(file.metadata()["tether"])
        version = contents["format"]
        if not isinstance(version, int) or version < 1:
            raise _damaged(path, f"format version {version!r}")
        if version > FORMAT:
            raise RunError(
                f"checkpoint {path} has format {version}, newer than the {FORMAT} this tether "
                "reads; upgrade tether-rl"
            )
        arrays = {name: _writable(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return contents, arrays


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.flags.writeable else array.copy()


def _damaged(path: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"checkpoint {path} is damaged: {reason}")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
