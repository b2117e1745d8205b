"""What this machine and this process have, on Linux, macOS and Windows."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def usable_cores() -> int:
    """Cores that this process may use: macOS and Windows only know how many there are."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MiB; 0 where that cannot be known."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return 0.0
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # In bytes on macOS, in KiB elsewhere.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
