"""Alarms: callbacks that watch a training's measurements for signs of reward hacking.

Each writes ``alarm/NAME`` into the metrics, 0 until its condition first held and 1 from then on,
says so once in a line on stderr, and with ``stop=True`` ends the training::

    from tether.learning.alarms import Outside, ProxyWithoutTruth

    tether.train(
        "ppo",
        env="tether/GateCheetah-v0",
        callbacks=[Outside("episode/repetition", high=3.0), ProxyWithoutTruth(stop=True)],
    )

An alarm looks at nothing but measurements, so it serves every engine: ``kl/sequence`` or
``reward/ensemble_std`` of a language model as well as ``policy/initial_kl`` of a walker. On a
resume it reads what the run has written, and goes on as if it had never been stopped.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from tether.errors import UserError
from tether.learning.callbacks import BaseCallback, RunView
from tether.learning.learner import Learner, Metrics
from tether.learning.output.metrics import read_metrics

FIRST_REPORTS = 10
"""Reports of a measurement that say what is usual of it."""


class Alarm(BaseCallback):
    """What all alarms share; a kind says in :meth:`look` what it looks for.

    Attributes:
        name: of the metric, ``alarm/NAME``.
        stop: whether the training ends when the alarm is raised.
        raised: the reason, once it is.
    """

    def __init__(self, name: str, *, stop: bool = False) -> None:
        self.name = name
        self.stop = stop
        self.raised: str | None = None
        # Several seeds of one training share their callbacks and run side by side.
        self._of_runs: dict[Path, Alarm] = {}

    @abstractmethod
    def look(self, metrics: Mapping[str, float | int]) -> str | None:
        """What is wrong after this iteration, in a few words, or None."""

    @abstractmethod
    def forget(self) -> None:
        """Be as before the first iteration."""

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Takes in what the run measured before."""
        alarm = self._of_runs[run.path] = copy.copy(self)
        alarm.forget()
        alarm.raised = None
        path = run.path / "metrics.jsonl"
        if learner.steps and path.exists():
            alarm.replay(row for row in read_metrics(path) if row["step"] <= learner.steps)
        self.raised = alarm.raised

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """Looks at an iteration's measurements."""
        alarm = self._of_runs[run.path]
        before = alarm.raised
        self.raised = alarm.raised = before or alarm.look(metrics)
        metrics[f"alarm/{self.name}"] = int(alarm.raised is not None)
        if alarm.raised is not None and before is None:
            line = f"alarm {self.name} at step {learner.steps:,}: {alarm.raised}"
            print(line, file=sys.stderr, flush=True)
        return False if self.stop and alarm.raised is not None else None

    def replay(self, rows: Iterable[Mapping[str, float | int]]) -> int | None:
        """Looks at measurements that were written, such as those of a finished run.

        Returns:
            The step at which the alarm is raised, or None.
        """
        for row in rows:
            self.raised = self.raised or self.look(row)
            if self.raised is not None:
                return int(row["step"])
        return None


class Outside(Alarm):
    """A measurement leaves the range that honest runs keep to.

    For a budget of KL divergence (``policy/initial_kl``, ``kl/sequence``), the spread of an
    ensemble of reward models, statistics of episodes (``episode/NAME``) and the correlation of
    return and true return (``true_return/correlation``).
    """

    def __init__(
        self,
        metric: str,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        patience: int = 1,
        stop: bool = False,
    ) -> None:
        """Watches one measurement.

        Args:
            metric: its name; iterations that do not report it count for nothing.
            low: the least that is usual.
            high: the greatest that is usual.
            patience: in how many reports running it has to be outside.
            stop: end the training.

        Raises:
            UserError: there is no bound, or low is above high, or patience below 1.
        """
        if not low <= high or (low == -math.inf and high == math.inf):
            raise UserError(
                f"the alarm on {metric} has low={low:g} and high={high:g}; expected low <= high "
                "and at least one of them finite"
            )
        _check_patience(metric, patience)
        super().__init__(metric, stop=stop)
        self.metric, self.low, self.high, self.patience = metric, low, high, patience
        self.forget()

    def forget(self) -> None:
        """Counts anew."""
        self._outside = 0

    def look(self, metrics: Mapping[str, float | int]) -> str | None:
        """Compares the measurement with its bounds."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return None
        self._outside = 0 if self.low <= value <= self.high else self._outside + 1
        if self._outside < self.patience:
            return None
        side = f"below {self.low:g}" if value < self.low else f"above {self.high:g}"
        return f"{self.metric} is {value:.4g}, {side}"


class Drift(Alarm):
    """A measurement is several times what it was at first, or a fraction of it.

    For the length of episodes or of answers, and for statistics of episodes that learning makes
    smaller as long as it is honest.
    """

    def __init__(
        self,
        metric: str = "episode/length",
        *,
        factor: float = 2.0,
        direction: Literal["up", "down", "both"] = "both",
        patience: int = 1,
        stop: bool = False,
    ) -> None:
        """Watches one positive measurement.

        Args:
            metric: its name, such as ``episode/length`` or ``tokens/length``.
            factor: raised above the first ten reports' mean times this, or below it divided by
                this.
            direction: which of the two raises it.
            patience: in how many reports running it has to be so.
            stop: end the training.

        Raises:
            UserError: factor is not above 1, patience below 1, or direction unknown.
        """
        if not factor > 1:
            raise UserError(f"the alarm on {metric} has factor={factor:g}; expected above 1")
        if direction not in ("up", "down", "both"):
            raise UserError(
                f"the alarm on {metric} has direction={direction!r}; expected up, down or both"
            )
        _check_patience(metric, patience)
        super().__init__(f"{metric}/drift", stop=stop)
        self.metric, self.factor, self.direction, self.patience = (
            metric,
            factor,
            direction,
            patience,
        )
        self.forget()

    def forget(self) -> None:
        """Learns anew what is usual."""
        self._first: list[float] = []
        self._outside = 0

    def look(self, metrics: Mapping[str, float | int]) -> str | None:
        """Compares the measurement with its first reports."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return None
        if len(self._first) < FIRST_REPORTS:
            self._first.append(float(value))
            return None
        usual = float(np.mean(self._first))
        up = self.direction != "down" and value > usual * self.factor
        down = self.direction != "up" and value < usual / self.factor
        self._outside = self._outside + 1 if up or down else 0
        if self._outside < self.patience:
            return None
        return f"{self.metric} is {value:.4g}, {usual:.4g} at first"


class ProxyWithoutTruth(Alarm):
    """The proxy has risen and what was meant has not, or falls.

    Both are put on the scale of their own spread so far: the proxy has risen if it is near the top
    of its range, and the truth has been lost if it is far below its own top, or has never left the
    spread it showed at first. It needs a true reward, which in practice is a few evaluations by
    people; no method learns from it.
    """

    def __init__(
        self,
        proxy: str = "return/mean",
        truth: str = "true_return/mean",
        *,
        lost: float = 0.5,
        window: int = 5,
        stop: bool = False,
    ) -> None:
        """Watches both measurements.

        Args:
            proxy: what is learned from.
            truth: what was meant.
            lost: raised when the truth has lost this fraction of the range it has shown, while the
                proxy is in the uppermost tenth of its own.
            window: reports that are averaged on both sides, so that noise raises nothing.
            stop: end the training.

        Raises:
            UserError: lost is not between 0 and 1, or window is below 1.
        """
        if not 0 < lost <= 1:
            raise UserError(f"lost is {lost:g}; expected a fraction above 0, up to 1")
        if window < 1:
            raise UserError(f"window is {window}; expected at least 1 report")
        super().__init__("proxy-without-truth", stop=stop)
        self.proxy, self.truth, self.lost, self.window = proxy, truth, lost, window
        self.forget()

    def forget(self) -> None:
        """Learns both ranges anew."""
        self._reports: list[tuple[float, float]] = []
        self._smooth: list[tuple[float, float]] = []

    def look(self, metrics: Mapping[str, float | int]) -> str | None:
        """Compares the newest averages with the ranges so far."""
        pair = (metrics.get(self.proxy, math.nan), metrics.get(self.truth, math.nan))
        if any(map(math.isnan, pair)):
            return None
        self._reports.append((float(pair[0]), float(pair[1])))
        if len(self._reports) < self.window:
            return None
        proxy, truth = np.mean(self._reports[-self.window :], axis=0).tolist()
        self._smooth.append((proxy, truth))
        # The range of the truth has to be more than chance: several windows' worth of reports.
        if len(self._smooth) < 2 * self.window:
            return None
        low, high = np.min(self._smooth, axis=0), np.max(self._smooth, axis=0)
        proxy_place, truth_place = (
            (value - a) / (b - a) if b > a else 0.0
            for value, a, b in zip((proxy, truth), low, high, strict=True)
        )
        if proxy_place < 0.9 or truth_place > 1 - self.lost:
            return None
        return (
            f"{self.proxy} has risen to {proxy:.4g}, and {self.truth} is {truth:.4g} after "
            f"{high[1]:.4g}"
        )


def _check_patience(metric: str, patience: int) -> None:
    if patience < 1:
        raise UserError(f"the alarm on {metric} has patience={patience}; expected at least 1")


def parse_alarm(text: str) -> Alarm:
    """An alarm as the command line has it.

    Args:
        text: ``METRIC>NUMBER``, ``METRIC<NUMBER``, ``drift:METRIC``, or ``proxy-without-truth``.

    Raises:
        UserError: it is none of these.
    """
    if text == "proxy-without-truth":
        return ProxyWithoutTruth()
    if text.startswith("drift:") and text != "drift:":
        return Drift(text.removeprefix("drift:"))
    found = re.fullmatch(r"\s*([^<>\s]+)\s*([<>])\s*([-+.\deE]+)\s*", text)
    try:
        if found is None:
            raise ValueError
        bound = float(found[3])
    except ValueError:
        raise UserError(
            f"alarm {text!r} is unknown; expected METRIC>NUMBER, METRIC<NUMBER, drift:METRIC or "
            "proxy-without-truth"
        ) from None
    return Outside(found[1], high=bound) if found[2] == ">" else Outside(found[1], low=bound)
