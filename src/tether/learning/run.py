"""A run: one folder that explains itself, and the loop that fills it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tether.errors import Interrupted, RunError
from tether.learning.callbacks import Callback, Outcome, check_callbacks
from tether.learning.learner import Learner, Metrics, State
from tether.learning.loop import Cadence, Loop
from tether.learning.output.progress import open_progress
from tether.learning.output.sinks import open_sinks
from tether.learning.storage.folder import Position, RunFolder


class Run:
    """A run of a method.

    Killed at any moment and resumed, a run ends with the same parameters and the same
    ``metrics.jsonl`` (but for names under ``time/``) as one that was never stopped::

        run = Run.create("runs/first", method="ppo", config=config.dump(), spec={"env": "..."})
        run.train(learner, 1_000_000)

        run = Run.open("runs/first")  # later, or after a crash
        run.resume(learner)  # built anew from run.method, run.config, run.spec
        run.train(learner, 1_000_000)

    Attributes:
        outcome: how the last training ended; None before the first. ``"failed"`` is an error or
            a second Ctrl-C.
    """

    def __init__(self, folder: RunFolder, position: Position | None) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self._folder = folder
        # None: there may be progress on the disk that no learner has taken up.
        self._position = position
        self._loop: Loop | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        method: str,
        config: Mapping[str, Any],
        spec: Mapping[str, Any],
        engine: str | None = None,
    ) -> Self:
        """Makes a new run folder, and holds its lock until trained or closed.

        Args:
            path: a folder that does not exist or is empty.
            method: name of the method, such as ``"ppo"``.
            config: the resolved settings, JSON-able (``Config.dump()``).
            spec: what else is needed to build the learner again (environment, model, data).
            engine: name of the engine that can build it; None: only the caller can.

        Raises:
            RunError: the folder is not empty, cannot be written, or is in use.
            UserError: config or spec cannot be written as JSON.
        """
        folder = RunFolder.create(
            Path(path), engine=engine, method=method, config=config, spec=spec
        )
        return cls(folder, Position())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens an existing run, to look at it or to go on with it.

        Raises:
            RunError: missing, not a run, damaged, or written by a newer tether.
        """
        return cls(RunFolder.open(Path(path)), None)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def outcome(self) -> Outcome | None:
        """How the last training ended; None before the first."""
        return None if self._loop is None else self._loop.outcome

    @property
    def engine(self) -> str | None:
        """Name of the engine that trains its method; None: whoever made the run drives it."""
        return self._folder.record.engine

    @property
    def method(self) -> str:
        """Name of the method."""
        return self._folder.record.method

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings, as they were saved."""
        return self._folder.record.config

    @property
    def spec(self) -> dict[str, Any]:
        """What else is needed to build the learner again."""
        return self._folder.record.spec

    @property
    def created(self) -> str:
        """When the run was made, ISO 8601 in UTC."""
        return self._folder.record.created

    @property
    def metrics_path(self) -> Path:
        """``metrics.jsonl``; read it with :func:`tether.learning.output.metrics.read_metrics`."""
        return self._folder.metrics_path

    def checkpoints(self) -> list[Path]:
        """The checkpoint files, newest first."""
        return self._folder.checkpoints()

    def load(self) -> State:
        """The state in the newest good checkpoint, also while another process trains.

        Raises:
            RunError: no checkpoint yet, or every one is damaged.
        """
        found = self._folder.newest_good()
        if found is None:
            raise RunError(f"run {self.path} has no checkpoint yet")
        return found[0]

    def resume(self, learner: Learner) -> int:
        """Puts a learner where the newest good checkpoint left off.

        What came after that checkpoint is forgotten: metrics are cut back to it. A run that was
        killed before its first checkpoint begins anew with ``learner`` as it is.

        Args:
            learner: built anew from this run's method, config and spec.

        Returns:
            The learner's steps.

        Raises:
            RunError: the folder is in use, or every checkpoint is damaged.
        """
        self._folder.lock()
        try:
            self._folder.remove_temporaries()
            found = self._folder.newest_good()
            position = Position()
            if found is not None:
                state, position = found
                try:
                    learner.restore(state)
                except LookupError as error:
                    raise RunError(
                        f"{self.path}: the newest checkpoint has no {error}, which this version of "
                        "tether needs; resume with the version that run.json names"
                    ) from error
            if learner.steps != position.steps:
                raise RuntimeError(
                    f"the learner is at step {learner.steps} after restoring a checkpoint of "
                    f"step {position.steps}"
                )
            self._folder.set_aside_newer(position.steps)
            self._position = self._folder.truncate_metrics(position)
        except BaseException:
            self._folder.unlock()
            raise
        return learner.steps

    def close(self) -> None:
        """Lets other processes write to the folder; :meth:`train` does so when it ends."""
        self._folder.unlock()

    def __enter__(self) -> Self:
        """Returns the run."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the run."""
        self.close()

    def train(
        self,
        learner: Learner,
        total_steps: int,
        *,
        checkpoint_every: int | None = None,
        checkpoint_every_seconds: float | None = 60.0,
        keep_checkpoints: int = 2,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        progress_metric: str = "return/mean",
        sinks: Sequence[str] = ("tensorboard",),
    ) -> Metrics:
        """Learns until ``learner.steps >= total_steps``; the one loop of every method.

        Each iteration is written to ``metrics.jsonl`` and the sinks. Checkpoints are saved by
        steps and by the clock, at the end, when a callback stops training, and on the first
        SIGINT or SIGTERM, which is answered when the iteration under way ends.

        Args:
            learner: the method; after :meth:`open`, pass it to :meth:`resume` first.
            total_steps: learner steps at which training is done.
            checkpoint_every: save when training passes a multiple of so many learner steps.
            checkpoint_every_seconds: and when the last save is so many seconds ago; None: never.
            keep_checkpoints: how many of the newest to keep, at least 1; 2 survive damage to one.
            callbacks: called in order, see :class:`tether.learning.callbacks.Callback`.
            progress: show progress on stderr.
            progress_metric: the measurement shown beside it.
            sinks: any of ``"tensorboard"``, ``"wandb"``, ``"trackio"``.

        Returns:
            The last iteration's metrics; empty if there was nothing left to do.

        Raises:
            Interrupted: after SIGINT or SIGTERM; a line on stderr has said how to go on.
            RunError: the folder is in use, has progress that was not resumed, or cannot be
                written (disk full); the last good checkpoint stays.
            UserError: a bad argument, or what the learner raised; the last good checkpoint stays.
        """
        check_callbacks(callbacks)
        cadence = Cadence(checkpoint_every, checkpoint_every_seconds, keep_checkpoints)
        self._folder.lock()
        with ExitStack() as stack:
            stack.callback(self._folder.unlock)
            loop = Loop(
                self,
                self._folder,
                learner,
                self._known_position(),
                cadence=cadence,
                callbacks=callbacks,
            )
            self._loop = loop
            stack.callback(loop.close)
            opened = open_sinks(
                sinks, self.path, created=self.created, config=self.config, step=learner.steps
            )
            for sink in opened:
                stack.callback(sink.close)
            display = open_progress(
                total_steps, learner.steps, metric=progress_metric, show=progress
            )
            try:
                metrics = loop.train(total_steps, opened, display)
            finally:
                # After an error the learner may stand between two iterations; only its last
                # checkpoint is sure.
                self._position = None if self.outcome == "failed" else loop.position
        if self.outcome == "interrupted":
            line = (
                f"interrupted at step {learner.steps:,}; checkpoint saved; go on with: "
                f"tether resume {shlex.quote(str(self.path))}"
            )
            print(line, file=sys.stderr, flush=True)
            raise Interrupted(line)
        return metrics

    def _known_position(self) -> Position:
        if self._position is not None:
            return self._position
        if self.checkpoints() or self.metrics_path.exists():
            raise RunError(
                f"run {self.path} has progress already; pass the learner to run.resume first"
            )
        return Position()
