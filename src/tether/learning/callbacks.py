"""Hooks into the loop: watch it, add measurements, stop it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tether.errors import UserError
from tether.learning.learner import Learner, Metrics

if TYPE_CHECKING:
    from tether.learning.run import Run


class Callback(Protocol):
    """What the loop calls, in this order; derive from :class:`BaseCallback` to write only some.

    A callback that acts on the learner's random state or parameters must be a function of
    ``learner.steps`` alone, or a resumed run would not repeat a run that was never stopped.
    """

    def on_start(self, run: "Run", learner: Learner) -> None:
        """Training is about to begin or go on at ``learner.steps``."""
        ...

    def on_iteration(self, run: "Run", learner: Learner, metrics: Metrics) -> bool | None:
        """An iteration is done. What is put into ``metrics`` here is written with the rest.

        Returns:
            False to stop training, after a checkpoint; anything else goes on.
        """
        ...

    def on_checkpoint(self, run: "Run", path: Path) -> None:
        """A checkpoint is safely on the disk at ``path``."""
        ...

    def on_end(self, run: "Run", learner: Learner) -> None:
        """Training ended; ``run.outcome`` says how: done, stopped, interrupted or failed."""
        ...


class BaseCallback:
    """A callback that does nothing."""

    def on_start(self, run: "Run", learner: Learner) -> None:
        """Does nothing."""

    def on_iteration(self, run: "Run", learner: Learner, metrics: Metrics) -> bool | None:
        """Does nothing and goes on."""
        return None

    def on_checkpoint(self, run: "Run", path: Path) -> None:
        """Does nothing."""

    def on_end(self, run: "Run", learner: Learner) -> None:
        """Does nothing."""


class StopOnReturn(BaseCallback):
    """Stops once a measurement reaches a threshold: the task is solved.

    Iterations that do not report the measurement, or report NaN, never stop training.
    """

    def __init__(self, threshold: float, metric: str = "return/mean") -> None:
        """Stops at the first iteration with ``metric >= threshold``."""
        if math.isnan(threshold):
            raise UserError("StopOnReturn: threshold is nan, expected a number")
        self.threshold = threshold
        self.metric = metric

    def on_iteration(self, run: "Run", learner: Learner, metrics: Metrics) -> bool | None:
        """Returns False when the threshold is reached."""
        reached = metrics.get(self.metric, math.nan) >= self.threshold
        return False if reached else None


class Every(BaseCallback):
    """Calls a function each time training passes a multiple of so many steps.

    For evaluation, videos, plots::

        def evaluate(run, learner, metrics):
            return {"evaluation/return": mean_return(learner.policy())}

        run.train(learner, 1_000_000, callbacks=[Every(100_000, evaluate)])
    """

    def __init__(
        self, steps: int, function: Callable[["Run", Learner, Metrics], Metrics | None]
    ) -> None:
        """Calls ``function(run, learner, metrics)``; what it returns joins the metrics line.

        Args:
            steps: distance between calls, in learner steps, at least 1. An iteration that passes
                several multiples at once calls the function once.
            function: takes the run, the learner and this iteration's metrics; returns further
                metrics or None.
        """
        if steps < 1:
            raise UserError(f"Every: steps is {steps}, expected at least 1")
        self.steps = steps
        self.function = function
        self._previous = 0

    def on_start(self, run: "Run", learner: Learner) -> None:
        """Begins to count from where the learner stands."""
        self._previous = learner.steps

    def on_iteration(self, run: "Run", learner: Learner, metrics: Metrics) -> bool | None:
        """Calls the function if this iteration passed a multiple of ``steps``."""
        passed = learner.steps // self.steps > self._previous // self.steps
        self._previous = learner.steps
        if passed and (further := self.function(run, learner, metrics)):
            metrics.update(further)
        return None


class CallbackList(BaseCallback):
    """Several callbacks as one, called in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        """Keeps the callbacks in the order given."""
        self.callbacks = tuple(callbacks)

    def on_start(self, run: "Run", learner: Learner) -> None:
        """Calls each."""
        for callback in self.callbacks:
            callback.on_start(run, learner)

    def on_iteration(self, run: "Run", learner: Learner, metrics: Metrics) -> bool | None:
        """Calls each, also after one asked to stop; False if any did."""
        answers = [callback.on_iteration(run, learner, metrics) for callback in self.callbacks]
        return False if any(answer is False for answer in answers) else None

    def on_checkpoint(self, run: "Run", path: Path) -> None:
        """Calls each."""
        for callback in self.callbacks:
            callback.on_checkpoint(run, path)

    def on_end(self, run: "Run", learner: Learner) -> None:
        """Calls each."""
        for callback in self.callbacks:
            callback.on_end(run, learner)
