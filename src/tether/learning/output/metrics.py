"""Where an iteration's measurements go: always a JSON line, and whatever else was asked for.

``metrics.jsonl`` holds one object per line: ``step`` first, then the names in alphabetical order.
JSON has no NaN or infinity; such a value is written as ``null``, and :func:`read_metrics` reads
``null`` as NaN. Names are ``group/quantity``; those under ``time/`` are the loop's clock
(``time/seconds`` since the first start, summed over resumes, and ``time/steps_per_second`` of this
iteration) and are the only ones that two runs of one seed may differ in.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tether.errors import UserError
from tether.learning.storage.durable import write_error


class MetricsFile:
    """Appends lines to ``metrics.jsonl`` and knows how far it has come.

    Each line reaches the operating system at once, so a killed process loses none; ``sync`` makes
    them survive a power cut as well.
    """

    def __init__(self, path: Path) -> None:
        """Opens ``path`` for appending, creating it where it is missing."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(path, error) from error
        self.bytes = os.fstat(self._descriptor).st_size

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Appends one line, whole or not at all.

        Raises:
            UserError: a measurement is named ``step``.
            RunError: the disk is full or the file is gone.
        """
        line = format_line(step, metrics)
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.bytes)
            raise write_error(self.path, error) from error
        self.bytes += len(line)

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def format_line(step: int, metrics: Mapping[str, float | int]) -> bytes:
    """One line of ``metrics.jsonl``, with its newline.

    Raises:
        UserError: a measurement is named ``step``, which is the line's own first key.
    """
    if "step" in metrics:
        raise UserError("a metric is named 'step', which each line already has; rename it")
    row: dict[str, float | int | None] = {"step": int(step)}
    for name in sorted(metrics):
        value = plain_number(metrics[name])
        row[name] = value if math.isfinite(value) else None
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def plain_number(value: Any) -> float | int:
    """A Python int or float from a Python, NumPy or array-library scalar."""
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, int | np.integer | np.bool_):
        return int(value)
    return float(value)


def read_metrics(path: str | Path) -> list[dict[str, float | int]]:
    """Reads ``metrics.jsonl``, also while a run is still writing it.

    Args:
        path: the file, or the run's folder.

    Returns:
        One dict per finished line; ``null`` becomes NaN. A last line without its newline is
        still being written and is left out.

    Raises:
        UserError: there is no such file, or a line is not a JSON object.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read metrics {path}: {error.strerror or error}") from error
    rows: list[dict[str, float | int]] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({k: math.nan if v is None else v for k, v in row.items()})
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not a JSON object") from error
    return rows
