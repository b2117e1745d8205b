"""Where what was computed once is kept between runs."""

import os
from pathlib import Path
from typing import Final

VARIABLE: Final = "TETHER_CACHE"


def cache_folder() -> Path:
    """The user's cache of tether, made if need be.

    ``$TETHER_CACHE`` if set, else ``$XDG_CACHE_HOME/tether``, else ``~/.cache/tether``. Everything
    in it can be computed again; deleting it costs only time.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tether"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
