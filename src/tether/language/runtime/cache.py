"""Where what was computed once is kept between runs."""

import os
from pathlib import Path
from typing import Final

from tether.errors import UserError

VARIABLE: Final = "TETHER_CACHE"


def cache_folder() -> Path:
    """The user's cache of tether, made if need be.

    ``$TETHER_CACHE`` if set, else ``$XDG_CACHE_HOME/tether``, else ``~/.cache/tether``. Everything
    in it can be computed again; deleting it costs only time.

    Raises:
        UserError: it cannot be made.
    """
    chosen = os.environ.get(VARIABLE)
    folder = Path(chosen or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = folder.expanduser() if chosen else folder.expanduser() / "tether"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise unwritable(folder, error) from error
    return folder


def unwritable(folder: Path, error: Exception) -> UserError:
    """What to tell of a cache that cannot be used."""
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"the cache {folder} cannot be written: {reason}; set {VARIABLE} to a folder that can"
    )
