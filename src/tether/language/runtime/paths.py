"""Files and folders by the names that users give, whatever else such a name may turn out to be."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path


def is_file(name: str | Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    # pathlib raises where a name is too long or a folder unreadable.
    return os.path.isfile(expanded(name))  # noqa: PTH113


def is_folder(name: str | Path) -> bool:
    """Whether there is such a folder; a name that no folder can have is none."""
    return os.path.isdir(expanded(name))  # noqa: PTH112


def expanded(name: str | Path) -> Path:
    """The path, with the user's home in place of ~ where there is one."""
    return Path(os.path.expanduser(name))  # noqa: PTH111


def lasting(name: str | Path, known: Container[str] = ()) -> str:
    """The full path of a folder, to be found from everywhere; any other name as it is.

    Args:
        name: of a folder, or of something else.
        known: names that no folder hides.
    """
    if str(name) in known or not is_folder(name):
        return str(name)
    return str(expanded(name).resolve())


def short(name: str | Path, limit: int = 100) -> str:
    """A name as an error can show it, however long it is."""
    text = " ".join(str(name).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
