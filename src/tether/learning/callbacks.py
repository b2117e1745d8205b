"""Hooks into the loop: watch it, add measurements, stop it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from tether.errors import UserError
from tether.learning.learner import Learner, Metrics

Outcome = Literal["running", "done", "stopped", "interrupted", "failed"]


class RunView(Protocol):
    """The run, as a callback sees it; a :class:`tether.learning.Run` is one."""

    @property
    def path(self) -> Path:
        """The run's folder."""
        ...

    @property
    def method(self) -> str:
        """Name of the method."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        ...

    @property
    def outcome(self) -> Outcome | None:
        """How the training ended; "running" until then."""
        ...

    def checkpoints(self) -> list[Path]:
        """The checkpoint files, newest first."""
        ...


class Callback(Protocol):
    """What the loop calls, in this order; derive from :class:`BaseCallback` to write only some.

    A callback that acts on the learner's random state or parameters must be a function of
    ``learner.steps`` alone, or a resumed run would not repeat a run that was never stopped.
    """

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Training is about to begin or go on at ``learner.steps``."""
        ...

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """An iteration is done. What is put into ``metrics`` here is written with the rest.

        Returns:
            False to stop training, after a checkpoint; anything else goes on.
        """
        ...

    def on_checkpoint(self, run: RunView, path: Path) -> None:
        """A checkpoint is safely on the disk at ``path``."""
        ...

    def on_end(self, run: RunView, learner: Learner) -> None:
        """Training ended; ``run.outcome`` says how: done, stopped, interrupted or failed."""
        ...


class BaseCallback:
    """A callback that does nothing."""

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Does nothing."""

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """Does nothing and goes on."""
        return None

    def on_checkpoint(self, run: RunView, path: Path) -> None:
        """Does nothing."""

    def on_end(self, run: RunView, learner: Learner) -> None:
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

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
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
        self, steps: int, function: Callable[[RunView, Learner, Metrics], Metrics | None]
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

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Begins to count from where the learner stands."""
        self._previous = learner.steps

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
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

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Calls each."""
        for callback in self.callbacks:
            callback.on_start(run, learner)

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """Calls each, also after one asked to stop; False if any did."""
        answers = [callback.on_iteration(run, learner, metrics) for callback in self.callbacks]
        return False if any(answer is False for answer in answers) else None

    def on_checkpoint(self, run: RunView, path: Path) -> None:
        """Calls each."""
        for callback in self.callbacks:
            callback.on_checkpoint(run, path)

    def on_end(self, run: RunView, learner: Learner) -> None:
        """Calls each."""
        for callback in self.callbacks:
            callback.on_end(run, learner)


@runtime_checkable
class HasCallbacks(Protocol):
    """A learner that keeps more than numbers, such as some of its completions."""

    def callbacks(self) -> Sequence[Callback]:
        """What is called before the user's own callbacks."""
        ...


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Checks that these are callbacks.

    Raises:
        UserError: they are no list, or one of them lacks a method.
    """
    hint = "derive from tether.learning.BaseCallback, or use Every(steps, function)"
    if not isinstance(callbacks, Sequence):
        raise UserError(f"callbacks is {_named(callbacks)}; expected a list of callbacks: {hint}")
    for place, callback in enumerate(callbacks):
        missing = [name for name in _CALLED if not callable(getattr(callback, name, None))]
        if missing or isinstance(callback, type):
            lacks = f"has no {missing[0]}" if missing else "is a class; expected an instance"
            raise UserError(f"callbacks[{place}] is {_named(callback)}, which {lacks}; {hint}")


_CALLED = ("on_start", "on_iteration", "on_checkpoint", "on_end")


def _named(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
