"""How the training beside the labelling goes, read from its run folder while it writes there."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Final

import numpy as np

from tether.web.messages import Curve

POINTS: Final = 240
"""Of a curve; the page shows it some 250 pixels wide."""

# Titles, and the names under which methods write what they stand for, the best first.
_CURVES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Learned reward", ("reward/learned_mean", "reward/mean")),
    ("Policy return", ("return/mean", "win_rate")),
)


class Training:
    """The metrics of a run, read on from where they were read to.

    A run that is resumed cuts its metrics back; they are then read from the beginning.
    """

    def __init__(self, run: Path | None) -> None:
        """Nothing is read before :meth:`curves`.

        Args:
            run: the run's folder, which may not have metrics yet; None: there is no run.
        """
        self._path = None if run is None else run / "metrics.jsonl"
        self._offset = 0
        self._tail = b""
        self._rows: list[dict[str, float]] = []
        self._lock = threading.Lock()

    def curves(self) -> list[Curve]:
        """Learned reward and policy return over steps; those that are measured."""
        with self._lock:
            self._read()
            found = []
            for title, names in _CURVES:
                name = next((n for n in names if any(n in row for row in self._rows[-50:])), None)
                if name is not None:
                    found.append(Curve(title=title, points=_thinned(self._points(name))))
            return [curve for curve in found if len(curve.points) > 1]

    def _points(self, name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in self._rows if name in row and "step" in row]

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            size = self._path.stat().st_size
            if size < self._offset:
                self._offset, self._tail, self._rows = 0, b"", []
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read(size - self._offset)
        except OSError:
            return
        self._offset += len(new)
        # A last line without its newline is still being written.
        *lines, self._tail = (self._tail + new).split(b"\n")
        wanted = {"step", *(name for _, names in _CURVES for name in names)}
        for line in lines:
            try:
                row = json.loads(line)
                self._rows.append(
                    {k: float(v) for k, v in row.items() if k in wanted and _is_finite(v)}
                )
            except (ValueError, AttributeError, RecursionError):
                continue


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more points than a picture can show."""
    if len(points) <= POINTS:
        return points
    steps, values = np.array(points).T
    edges = np.linspace(0, len(points), POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(points)))
    means = zip(
        np.add.reduceat(steps, edges) / counts,
        np.add.reduceat(values, edges) / counts,
        strict=True,
    )
    return [(float(step), float(value)) for step, value in means]
