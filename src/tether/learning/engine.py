"""The one engine: from a method and settings to a run folder, and from the folder back to training.

A backend (control on JAX, language on PyTorch) derives from :class:`Engine` and says how a learner
is built, from settings or from a run's record. Checking what was asked, making the folder,
training, resuming and reporting happen here, once for every method.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

from tether.errors import RewardError, RunError, UserError
from tether.learning.callbacks import BaseCallback, Callback, HasCallbacks, RunView, check_callbacks
from tether.learning.learner import Finishes, Learner, Metrics
from tether.learning.loop import check_every
from tether.learning.methods import Method, find_method, name_of_class
from tether.learning.output.metrics import read_metrics
from tether.learning.output.sinks import check_sinks
from tether.learning.run import Run
from tether.learning.training import LearnerT, Prepared, Trained

TrainedT = TypeVar("TrainedT", bound=Trained)

DEFAULT_SINKS: Final = ("tensorboard",)


class Engine(ABC, Generic[LearnerT, TrainedT]):
    """Trains and resumes the methods of one backend.

    Attributes:
        name: what ``run.json`` records.
        methods: the registry.
    """

    name: ClassVar[str]
    methods: ClassVar[Mapping[str, Method]]

    @abstractmethod
    def prepare(self, method: str | type[Any], **arguments: Any) -> Prepared[LearnerT]:
        """Builds a learner from what a user gives; writes nothing.

        Raises:
            UserError: anything that the user can correct.
        """

    @abstractmethod
    def rebuild(
        self, run: Run, *, total_steps: int, method: type[Any] | None = None, **given: Any
    ) -> Prepared[LearnerT]:
        """Builds a run's learner again, from its record and what a record cannot hold.

        Args:
            run: whose learner it is.
            total_steps: the budget.
            method: the class, where the run was trained by one from outside tether.
            **given: objects that the run was started from, and settings of this process.

        Raises:
            UserError: something is missing, or is no longer what it was.
        """

    @abstractmethod
    def finished(self, prepared: Prepared[LearnerT], training: Trained) -> TrainedT:
        """Adds what was trained to what every training reports."""

    def driving(self, prepared: Prepared[LearnerT]) -> AbstractContextManager[Learner]:
        """What holds while the loop drives the learner; yields the learner to drive."""
        return nullcontext(prepared.learner)

    @abstractmethod
    def load(self, run: str | Path, **arguments: Any) -> Any:
        """What a run has learned, from its newest checkpoint."""

    @property
    def takes(self) -> frozenset[str]:
        """Names of what :meth:`prepare` takes beside settings."""
        return frozenset(inspect.signature(self.prepare).parameters)

    def subject(self, arguments: Mapping[str, Any]) -> str:
        """What is learned on or with, in a word, before anything is built."""
        return "seeds"

    def side_by_side(self, count: int, arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """How many of `count` trainings to run at once, and what each of them then takes."""
        return 1, {}

    def opened(self, method: str | type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a training, where the name of an object is replaced by the object.

        Several seeds record their arguments by name or not at all, and a record must not make
        anybody import what it names.
        """
        return dict(arguments)

    def remarks(self, prepared: Prepared[LearnerT]) -> Sequence[str]:
        """What the user should know before training begins, a line each."""
        return ()

    @property
    def leads(self) -> bool:
        """Whether this process owns the run's folder, where several train together."""
        return True

    def agree(self, folder: Path) -> Path:
        """The run's folder, as the leading process names it."""
        return folder

    def follow(self, prepared: Prepared[LearnerT]) -> Metrics:
        """Trains as a process that another one leads; returns the last iteration's metrics."""
        raise RuntimeError(f"the {self.name} engine trains in one process")

    def find(self, method: str | type[Any]) -> tuple[str, Any]:
        """A method's name and learner class, by its name or by the class itself."""
        if isinstance(method, str):
            return method, find_method(self.methods, method)
        self.check_class(method)
        return name_of_class(method), method

    def find_again(self, run: Run, method: type[Any] | None) -> Any:
        """The learner class of a run, which for a class from outside has to be given again.

        Raises:
            UserError: it is not given, or is another class.
        """
        if run.method in self.methods and method is None:
            return find_method(self.methods, run.method)
        if method is None:
            raise UserError(
                f"run {run.path} was trained by the class {run.method}, which is not one of "
                "tether's methods; pass the same class: tether.resume(run, method=...)"
            )
        if name_of_class(method) != run.method:
            raise UserError(
                f"run {run.path} was trained by {run.method}, and method is "
                f"{name_of_class(method)}; pass the same class"
            )
        self.check_class(method)
        return method

    @abstractmethod
    def check_class(self, method: type[Any]) -> None:
        """Checks that a class from outside has what this engine calls.

        Raises:
            UserError: it says which members are missing.
        """

    def train(
        self,
        method: str | type[Any],
        *,
        out: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        sinks: Sequence[str] = DEFAULT_SINKS,
        checkpoint_every: int | None = None,
        keep_checkpoints: int = 2,
        progress: bool = True,
        **arguments: Any,
    ) -> TrainedT:
        """Trains by a method in a new run folder.

        Args:
            method: a name of :attr:`methods`, or a learner class.
            out: the run's folder, new or empty; ``runs/METHOD-SUBJECT-SEED-TIME`` if not given.
            callbacks: see :mod:`tether.learning.callbacks`.
            sinks: where metrics go beside metrics.jsonl: "tensorboard", "wandb", "trackio".
            checkpoint_every: save whenever training passes a multiple of so many steps; every
                minute and at the end in any case.
            keep_checkpoints: how many of the newest checkpoints to keep, at least 1.
            progress: show progress on stderr.
            **arguments: see :meth:`prepare` of the engine.

        Raises:
            UserError: anything that the user can correct; one line.
        """
        how = _How(callbacks, sinks, checkpoint_every, keep_checkpoints, progress)
        with _closing(self.prepare(method, **arguments)) as prepared:
            if progress and self.leads:
                for line in self.remarks(prepared):
                    print(line, file=sys.stderr, flush=True)
            folder = Path(out) if out is not None else self._folder(prepared)
            folder = self.agree(folder)
            if not self.leads:
                return self._follow(folder, prepared)
            # Only now, or a mistake that a learner finds would leave a folder in the way.
            run = Run.create(
                folder,
                engine=self.name,
                method=prepared.method,
                config=prepared.config.dump(),
                spec={
                    **prepared.spec,
                    "seed": prepared.seed,
                    "total_steps": prepared.total_steps,
                    "sinks": list(sinks),
                },
            )
            with run:
                return self._train(run, prepared, how)

    def resume(
        self,
        run: str | Path,
        *,
        total_steps: int | None = None,
        callbacks: Sequence[Callback] = (),
        sinks: Sequence[str] | None = None,
        checkpoint_every: int | None = None,
        keep_checkpoints: int = 2,
        progress: bool = True,
        **given: Any,
    ) -> TrainedT:
        """Continues a run from its newest checkpoint, bit for bit.

        Args:
            run: the run's folder.
            total_steps: a new budget; the run's own if not given.
            callbacks: as in :meth:`train`.
            sinks: as in :meth:`train`; those that the run began with if not given.
            checkpoint_every: as in :meth:`train`.
            keep_checkpoints: as in :meth:`train`.
            progress: as in :meth:`train`.
            **given: see :meth:`rebuild` of the engine.

        Raises:
            UserError: not a run of this engine, or what it was built from is missing or changed.
        """
        opened = self.open(run)
        sinks = opened.spec.get("sinks", DEFAULT_SINKS) if sinks is None else sinks
        how = _How(callbacks, sinks, checkpoint_every, keep_checkpoints, progress)
        total = total_steps if total_steps is not None else int(opened.spec["total_steps"])
        check_total_steps(total)
        self._check_given(opened, given)
        with _closing(self.rebuild(opened, total_steps=total, **given)) as prepared:
            if not self.leads:
                if opened.checkpoints():
                    prepared.learner.restore(opened.load())
                return self._follow(opened.path, prepared)
            with opened:
                opened.resume(prepared.learner)
                return self._train(opened, prepared, how)

    def open(self, run: str | Path) -> Run:
        """Opens a run of this engine.

        Raises:
            UserError: no run, or one of another engine.
        """
        opened = Run.open(run)
        if opened.engine != self.name:
            raise UserError(
                f"run {run} was trained by {opened.method}; expected a run of "
                f"{', '.join(self.methods)}"
            )
        return opened

    def _check_given(self, run: Run, given: Mapping[str, Any]) -> None:
        known = [*inspect.signature(self.rebuild).parameters][1:]
        for name in given:
            if name not in known:
                raise UserError(
                    f"{name} is no argument for the run {run.path} of {run.method}, which takes "
                    f"{', '.join(known)}; its settings are those it began with"
                )

    def _train(self, run: Run, prepared: Prepared[LearnerT], how: _How) -> TrainedT:
        learner, clock = prepared.learner, _Clock()
        own = learner.callbacks() if isinstance(learner, HasCallbacks) else ()
        finished = _is_finished(learner)
        with _saying_what_is_saved(run), self.driving(prepared) as driven:
            metrics = run.train(
                driven,
                learner.steps if finished else prepared.total_steps,
                checkpoint_every=how.checkpoint_every,
                keep_checkpoints=how.keep_checkpoints,
                callbacks=(clock, _StopWhenFinished(), *own, *how.callbacks),
                sinks=how.sinks,
                progress=how.progress,
                progress_metric=prepared.progress_metric,
            )
        if not metrics and run.metrics_path.exists():
            # Nothing was left to do: the run's last measurements still stand.
            for row in read_metrics(run.metrics_path)[-1:]:
                metrics = {name: value for name, value in row.items() if name != "step"}
        return self._finish(run.path, prepared, metrics, clock)

    def _follow(self, folder: Path, prepared: Prepared[LearnerT]) -> TrainedT:
        clock = _Clock()
        clock.start_steps = prepared.learner.steps
        return self._finish(folder, prepared, self.follow(prepared), clock)

    def _finish(
        self, folder: Path, prepared: Prepared[LearnerT], metrics: Metrics, clock: _Clock
    ) -> TrainedT:
        training = Trained(
            run=folder,
            method=prepared.method,
            steps=prepared.learner.steps,
            seconds=time.perf_counter() - clock.start,
            metrics=metrics,
            steps_here=prepared.learner.steps - clock.start_steps,
            first_iteration=clock.first,
        )
        return self.finished(prepared, training)

    def _folder(self, prepared: Prepared[LearnerT]) -> Path:
        name = prepared.method.rpartition(":")[2]
        return default_folder(name, prepared.subject, prepared.seed)


@dataclass(frozen=True)
class _How:
    """How to run the loop; checked before anything is built."""

    callbacks: Sequence[Callback]
    sinks: Sequence[str]
    checkpoint_every: int | None
    keep_checkpoints: int
    progress: bool

    def __post_init__(self) -> None:
        check_callbacks(self.callbacks)
        check_sinks(self.sinks)
        check_every(self.checkpoint_every)


@contextmanager
def _closing(prepared: Prepared[LearnerT]) -> Iterator[Prepared[LearnerT]]:
    try:
        yield prepared
    finally:
        prepared.close()


@contextmanager
def _saying_what_is_saved(run: Run) -> Iterator[None]:
    """Adds to an error that ends a training what is left of it."""
    try:
        yield
    except (RunError, RewardError):
        raise
    except UserError as error:
        saved = run.checkpoints()
        left = f"{saved[0].name} is saved" if saved else "no checkpoint had been saved yet"
        error.args = (f"{error} ({left})",)
        raise


def check_total_steps(total_steps: int) -> None:
    """Raises a UserError unless there is something to do."""
    if total_steps < 1:
        raise UserError(f"total_steps is {total_steps}; expected at least 1")


def default_folder(method: str, subject: str, seed: int) -> Path:
    """The name of a new folder under ``./runs``: ``runs/METHOD-SUBJECT-SEED-TIME``."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in subject)
    folder = Path("runs") / f"{method}-{name}-{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    copies = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in (folder, *itertools.islice(copies, 1000)) if not path.exists())


class _Clock(BaseCallback):
    """Notes where this process began, and when its first iteration ended."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.start_steps = 0
        self.first: tuple[int, float] = (0, 0.0)

    def on_start(self, run: RunView, learner: Learner) -> None:
        self.start = time.perf_counter()
        self.start_steps = learner.steps

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        if not self.first[0]:
            self.first = (learner.steps - self.start_steps, time.perf_counter() - self.start)
        return None


class _StopWhenFinished(BaseCallback):
    """Ends a training that has nothing left to learn, such as one that stops early."""

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        return False if _is_finished(learner) else None


def _is_finished(learner: object) -> bool:
    return isinstance(learner, Finishes) and learner.finished
