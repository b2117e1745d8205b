"""Where a store is: a file, a run's folder that has one, or a URL. Nothing is opened here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

STORE_FILE: Final = "preferences.sqlite"
"""A run's own store, in its folder."""

SQLITE_MAGIC: Final = b"SQLite format 3\0"


def store_in(location: str | Path) -> str | Path:
    """Where the store is that a user means: a run's folder stands for the store in it."""
    if is_url(str(location)):
        return location
    # pathlib raises where there is no home, or a name is too long.
    path = Path(os.path.expanduser(location))  # noqa: PTH111
    return path / STORE_FILE if os.path.isdir(path) else path  # noqa: PTH112


def is_store(location: str | Path) -> bool:
    """Whether a store is meant: by URL, or a file or a run's folder that has one."""
    if is_url(str(location)):
        return True
    try:
        with Path(store_in(location)).open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except (OSError, ValueError):
        return False


def is_url(location: str) -> bool:
    """Whether a store is meant by URL."""
    return location.startswith(("sqlite:", "postgresql:", "postgresql+", "postgres:"))


def lasting_place(location: str | Path) -> str:
    """Where to find a store again from another folder; without the password of a URL.

    PostgreSQL's client takes the password from PGPASSWORD or the user's password file.
    """
    if not is_url(str(location)):
        return str(Path(store_in(location)).resolve())
    bare = re.sub(r"(://[^:/?@]*):[^/?]*@", r"\1@", str(location))
    return re.sub(r"[?&]password=[^&]*", "", bare)
