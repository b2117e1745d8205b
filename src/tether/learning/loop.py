"""The one loop: iterate, write, checkpoint, until done or asked to stop."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tether.errors import RewardError, RunError, UserError
from tether.learning.callbacks import Callback, CallbackList, Outcome, RunView
from tether.learning.learner import Learner, Metrics
from tether.learning.output.metrics import MetricsFile
from tether.learning.output.progress import Progress
from tether.learning.output.sinks import Sink
from tether.learning.signals import StopRequest
from tether.learning.storage.checkpoint import save_checkpoint
from tether.learning.storage.folder import Position, RunFolder

logger = logging.getLogger(__name__)


def check_every(steps: int | None) -> None:
    """Raises a UserError if checkpoints cannot be saved whenever so many steps are passed."""
    if steps is not None and steps < 1:
        raise UserError(f"checkpoint_every is {steps}, expected at least 1 step or None")


@dataclass(frozen=True)
class Cadence:
    """When to save, and how many to keep."""

    every: int | None
    every_seconds: float | None
    keep: int

    def __post_init__(self) -> None:
        check_every(self.every)
        if self.every_seconds is not None and not self.every_seconds >= 0:
            raise UserError(
                f"checkpoint_every_seconds is {self.every_seconds}, expected at least 0 or None"
            )
        if self.keep < 1:
            raise UserError(f"keep_checkpoints is {self.keep}, expected at least 1")


class Loop:
    """One stretch of training, from a start or resume to an end, stop or interruption.

    Attributes:
        outcome: how it ended; None before it began.
    """

    def __init__(
        self,
        run: RunView,
        folder: RunFolder,
        learner: Learner,
        position: Position,
        *,
        cadence: Cadence,
        callbacks: Sequence[Callback],
    ) -> None:
        """Opens ``metrics.jsonl`` where ``position`` says it ends.

        Raises:
            RunError: the file ends elsewhere: someone else wrote to it.
        """
        self.outcome: Outcome | None = None
        self._run = run
        self._folder = folder
        self._learner = learner
        self._cadence = cadence
        self._callbacks = CallbackList(callbacks)
        self._file = MetricsFile(folder.metrics_path)
        if self._file.bytes != position.bytes:
            self._file.close()
            raise RunError(
                f"{folder.metrics_path} has changed since this run was opened; open it again and "
                f"resume: tether resume {folder.path}"
            )
        self._sinks: Sequence[Sink] = ()
        self._lines = position.lines
        self._unsaved = not folder.checkpoints()
        self._saved_steps = learner.steps
        self._start_clock(position.seconds)

    @property
    def position(self) -> Position:
        """Where the run stands now."""
        return Position(
            steps=self._learner.steps,
            lines=self._lines,
            bytes=self._file.bytes,
            seconds=time.monotonic() - self._began,
        )

    def train(self, total_steps: int, sinks: Sequence[Sink], progress: Progress) -> Metrics:
        """Iterates until ``total_steps``, a callback's False, or a signal; then saves.

        Returns:
            The last iteration's metrics. ``outcome`` says how it ended.
        """
        self._sinks = sinks
        # Opening the sinks may have taken a while, and is no training.
        self._start_clock(self._seconds)
        metrics: Metrics = {}
        go_on = True
        self.outcome = "running"
        try:
            with ExitStack() as stack:
                stack.callback(progress.close)
                stop = stack.enter_context(StopRequest())
                self._callbacks.on_start(self._run, self._learner)
                while go_on and not stop.received and self._learner.steps < total_steps:
                    metrics, go_on = self._iterate()
                    progress.update(self._learner.steps, metrics)
                    if self._due():
                        self._save()
                if self._unsaved:
                    self._save()
            if stop.received:
                self.outcome = "interrupted"
            else:
                self.outcome = "done" if go_on else "stopped"
        except BaseException:
            self.outcome = "failed"
            self._end_after_error()
            raise
        self._callbacks.on_end(self._run, self._learner)
        return metrics

    def _end_after_error(self) -> None:
        """Calls on_end, whose own errors must not hide the one that ended the training."""
        try:
            self._callbacks.on_end(self._run, self._learner)
        except Exception as error:
            logger.warning(
                "warning: on_end of a callback raised %s: %s", type(error).__name__, error
            )

    def _start_clock(self, seconds: float) -> None:
        self._seconds = seconds
        self._saved_at = self._iterated_at = time.monotonic()
        self._began = self._iterated_at - seconds

    def close(self) -> None:
        """Closes ``metrics.jsonl``."""
        self._file.close()

    def _iterate(self) -> tuple[Metrics, bool]:
        learner, before = self._learner, self._learner.steps
        try:
            metrics = dict(learner.iterate())
        except RewardError as error:
            raise self._all_saved(error) from error
        if learner.steps < before:
            raise RuntimeError(f"the learner's steps fell from {before} to {learner.steps}")
        now = time.monotonic()
        metrics["time/seconds"] = now - self._began
        metrics["time/steps_per_second"] = (learner.steps - before) / max(
            now - self._iterated_at, 1e-9
        )
        self._iterated_at = now
        self._unsaved = True
        go_on = self._callbacks.on_iteration(self._run, learner, metrics) is not False
        self._file.write(learner.steps, metrics)
        self._lines += 1
        for sink in self._sinks:
            sink.write(learner.steps, metrics)
        return metrics, go_on

    def _all_saved(self, error: RewardError) -> RewardError:
        """Saves what was learned before an error that has moved nothing; says how to go on."""
        if not self._lines:
            return error
        if self._unsaved:
            self._save()
        return RewardError(
            f"{error}; every finished iteration is saved: correct the reward, and resume "
            f"{self._folder.path}"
        )

    def _due(self) -> bool:
        cadence, steps = self._cadence, self._learner.steps
        if cadence.every and steps // cadence.every > self._saved_steps // cadence.every:
            return True
        seconds = cadence.every_seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _save(self) -> None:
        # The checkpoint names a length of metrics.jsonl, so those bytes must be safe before it is.
        self._file.sync()
        for sink in self._sinks:
            sink.flush()
        position = self.position
        path = self._folder.checkpoint_path(position.steps)
        save_checkpoint(path, self._learner.state(), position.model_dump())
        self._folder.prune(self._cadence.keep)
        self._unsaved = False
        self._saved_steps = position.steps
        self._saved_at = time.monotonic()
        self._callbacks.on_checkpoint(self._run, path)
