"""Errors inside a user's environment, in one line that says where."""

from __future__ import annotations

import traceback
from pathlib import Path

import gymnasium

from tether.errors import BadEnvironmentError, UserError

_LIBRARIES = tuple(str(Path(str(place)).parent) for place in (gymnasium.__file__, __file__))


def environment_fault(name: str, method: str, error: Exception) -> UserError:
    """The error to raise when an environment's `method` raised `error`.

    Args:
        name: of the environment.
        method: "reset" or "step".
        error: what it raised; its traceback begins in tether and ends where it was raised.

    Returns:
        `error` itself where it is one line of tether's already; else one line with the exception
        and the file and line, in the user's code where that is known.
    """
    if isinstance(error, UserError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    # The last line of the user's own, not that of a library which it called.
    own = [frame for frame in frames if not _is_library(frame.filename)]
    place = (own or frames)[-1:]
    where = "".join(f" at {frame.filename}:{frame.lineno}" for frame in place)
    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return BadEnvironmentError(
        f"{name}: {method} raised {said[:300]}{where}; TETHER_TRACEBACK=1 shows the whole traceback"
    )


def _is_library(file: str) -> bool:
    return file.startswith(_LIBRARIES) or "site-packages" in file or file.startswith("<")
