"""What a trial costs beside its own work: in this process, in processes beside it, on a cluster.

    python benchmarks/cluster.py --trials 200

Trials that do nothing are carried out by every executor of :mod:`tether.studies.trials`; the wall
time over their number is the overhead of one: its claim, the three files that reach the disk
(settings, versions, result), and the way to the process that does it. The first trials, which
start processes, are timed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tether.studies.trials import Trial, run_trials


def nothing(settings: Mapping[str, Any], place: Path) -> dict[str, Any]:
    return {}


def measure(folder: Path, count: int, **where: Any) -> dict[str, float]:
    from cluster import nothing  # By its module's name, so that other processes can import it.

    def seconds(prefix: str, number: int) -> float:
        trials = [Trial(f"{prefix}-{i}", nothing, {}) for i in range(number)]
        began = time.perf_counter()
        run_trials(trials, folder, progress=False, **where)
        return time.perf_counter() - began

    start = seconds("start", 2)
    # Processes of a pool are started for every call; those of a cluster stay.
    again = seconds("again", 2)
    whole = seconds("trial", count)
    return {
        "start_seconds": start,
        "milliseconds_per_trial": 1000 * (whole - again) / (count - 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cluster", default="local", help="local or HOST:PORT of a Ray cluster")
    parser.add_argument("--out", type=Path, help="a folder on the file system to measure")
    options = parser.parse_args()
    places = {
        "this process": {},
        f"{options.workers} processes": {"workers": options.workers},
        f"Ray, {options.cluster}": {"cluster": options.cluster},
    }
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "trials": options.trials,
    }
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        for number, (name, where) in enumerate(places.items()):
            found[name] = measure(Path(folder) / str(number), options.trials, **where)
            row = found[name]
            print(
                f"{name:16} {row['milliseconds_per_trial']:8.1f} ms a trial, the first two after "
                f"{row['start_seconds']:.1f} s"
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
