"""How far training is, on stderr: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Protocol, TextIO

PREPARED: Final = "reference/done"
"""The share of what a learner computes before its first update; shown until it is done."""

_WINDOW: Final = 50


class Progress(Protocol):
    """Shows how far training is."""

    def update(self, steps: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the learner's steps and this iteration's metrics."""
        ...

    def at(self, steps: int) -> None:
        """Takes the steps alone."""
        ...

    def close(self) -> None:
        """Shows the last state and lets go of the terminal."""
        ...


def open_progress(
    total: int,
    start: int,
    *,
    metric: str,
    show: bool = True,
    stream: TextIO | None = None,
    unit: str = "steps",
) -> Progress:
    """The progress display that fits where stderr goes.

    Args:
        total: steps at which training is done.
        start: steps done before, not counted in the rate.
        metric: name of the metric to show, usually ``return/mean``.
        show: False for silence.
        stream: where to write, stderr unless given.
        unit: what is counted.
    """
    stream = sys.stderr if stream is None else stream
    if not show:
        return NoProgress()
    if stream.isatty():
        return ProgressBar(total, start, metric=metric, stream=stream, unit=unit)
    return ProgressLines(total, start, metric=metric, stream=stream, unit=unit)


class _At:
    def at(self, steps: int) -> None:
        """Takes the steps alone."""
        self.update(steps, {})

    def update(self, steps: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the learner's steps and this iteration's metrics."""


class NoProgress(_At):
    """Says nothing."""

    def update(self, steps: int, metrics: Mapping[str, float | int]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _Pace:
    """Steps, rate over the last few seconds, time left, and the last value of one metric."""

    def __init__(self, total: int, start: int, metric: str, unit: str) -> None:
        self.unit = unit
        self.total = total
        self.steps = start
        self.metric = metric
        self.value: float | int | None = None
        self.prepared: float | int | None = None
        self._begun = False
        self._marks = deque([(time.monotonic(), start)], maxlen=_WINDOW)

    def update(self, now: float, steps: int, metrics: Mapping[str, float | int]) -> None:
        self.steps = steps
        self.value = metrics.get(self.metric, self.value)
        self.prepared = metrics.get(PREPARED)
        if not self._begun:
            # The first iteration compiles and fills caches, which says nothing of the others.
            self._begun = True
            self._marks.clear()
        # Marks a quarter of a second apart let the window span seconds however short iterations
        # are; a slow learner's every iteration is a mark.
        if len(self._marks) < 2 or now - self._marks[-2][0] >= 0.25:
            self._marks.append((now, steps))
        else:
            self._marks[-1] = (now, steps)

    @property
    def rate(self) -> float:
        (first, begun), (last, done) = self._marks[0], self._marks[-1]
        return (done - begun) / (last - first) if last > first else 0.0

    @property
    def left(self) -> str:
        if self.rate <= 0.0:
            return "-:--:--"
        seconds = round(max(self.total - self.steps, 0) / self.rate)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    @property
    def speed(self) -> str:
        return f"{self.rate:,.0f} {self.unit}/s" if self.rate > 0.0 else ""

    @property
    def result(self) -> str:
        if self.prepared is not None:
            return f"preparing: {self.prepared:.0%} of the reference's log-probabilities"
        return "" if self.value is None else f"{self.metric} {self.value:.6g}"


class ProgressLines(_At):
    """One line every so many seconds, for log files and pipes."""

    def __init__(
        self,
        total: int,
        start: int,
        *,
        metric: str,
        stream: TextIO,
        unit: str = "steps",
        seconds: float = 10.0,
    ) -> None:
        """Writes the first line after the first iteration, then one every ``seconds``."""
        self._pace = _Pace(total, start, metric, unit)
        self._stream = stream
        self._seconds = seconds
        self._written: float | None = None
        self._shown = start

    def update(self, steps: int, metrics: Mapping[str, float | int]) -> None:
        """Writes a line if the last one is long enough ago."""
        now = time.monotonic()
        self._pace.update(now, steps, metrics)
        if self._written is None or now - self._written >= self._seconds:
            self._written = now
            self._write()

    def close(self) -> None:
        """Writes the last state, unless the last line already showed it."""
        if self._pace.steps != self._shown:
            self._write()

    def _write(self) -> None:
        pace = self._pace
        share = pace.steps / pace.total if pace.total else 1.0
        parts = [
            f"{pace.unit.removesuffix('s')} {pace.steps:,}/{pace.total:,} ({share:.0%})",
            pace.speed,
            f"ETA {pace.left}",
            pace.result,
        ]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)
        self._shown = pace.steps


class ProgressBar(_At):
    """A live bar on a terminal, redrawn at most four times a second."""

    def __init__(
        self, total: int, start: int, *, metric: str, stream: TextIO, unit: str = "steps"
    ) -> None:
        """Takes the last line of the terminal until closed."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._pace = _Pace(total, start, metric, unit)
        # Each column must be set not to read markup: metric names come from learners.
        texts = [
            TextColumn("{task.fields[" + name + "]}", markup=False)
            for name in ("count", "rate", "left", "result")
        ]
        # The bar redraws when an iteration ends, not from a thread of its own, which would take
        # the interpreter from the learner.
        self._bar: Any = Progress(
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            *texts,
            console=Console(file=stream),
            # On one terminal a print must not run into the bar; in a pipe it belongs to the reader.
            redirect_stdout=sys.stdout.isatty(),
            auto_refresh=False,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, completed=start, **self._fields())
        self._drawn = time.monotonic()
        self._bar.start()

    def update(self, steps: int, metrics: Mapping[str, float | int]) -> None:
        """Redraws if the last time is a quarter of a second ago."""
        now = time.monotonic()
        self._pace.update(now, steps, metrics)
        if now - self._drawn >= 0.25:
            self._drawn = now
            self._draw()

    def close(self) -> None:
        """Draws the last state and gives the terminal back."""
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self._pace.steps, refresh=True, **self._fields())

    def _fields(self) -> dict[str, Any]:
        pace = self._pace
        return {
            "count": f"{pace.steps:,}/{pace.total:,}",
            "rate": pace.speed,
            "left": f"ETA {pace.left}",
            "result": pace.result,
        }
