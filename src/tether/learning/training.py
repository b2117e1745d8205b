"""What a training begins with, and what it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tether.learning.config import Config
from tether.learning.learner import Learner, Metrics
from tether.learning.machine import peak_memory_mb

LearnerT = TypeVar("LearnerT", bound=Learner)


@dataclass
class Prepared(Generic[LearnerT]):
    """A learner that is ready to train, and what its run records to build it again.

    Attributes:
        method: its name; ``module:Class`` for a class from outside tether.
        config: the resolved settings.
        learner: not yet trained, or not yet restored.
        total_steps: the budget, in the learner's steps.
        seed: decides everything random.
        subject: what it learns on or with (an environment, a model), for the folder's name.
        spec: what else is needed to build the learner again, JSON-able.
        progress_metric: the measurement to show beside the progress.
        close: releases what the learner holds.
    """

    method: str
    config: Config
    learner: LearnerT
    total_steps: int
    seed: int
    subject: str
    spec: dict[str, Any] = field(default_factory=dict)
    progress_metric: str = "return/mean"
    close: Callable[[], None] = lambda: None


@dataclass
class Trained:
    """A finished training.

    Attributes:
        run: the run's folder.
        method: its name.
        steps: the learner's steps in all.
        seconds: time spent training in this process, without start-up.
        metrics: the last iteration's measurements.
        steps_here: steps taken in this process.
        first_iteration: steps and seconds of this process's first iteration, which may compile.
    """

    run: Path
    method: str
    steps: int
    seconds: float
    metrics: Metrics
    steps_here: int = field(default=0, repr=False)
    first_iteration: tuple[int, float] = field(default=(0, 0.0), repr=False)

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        return {
            "run": str(self.run),
            "method": self.method,
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_here / self.seconds if self.seconds else 0.0,
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},
            "peak_memory_mb": peak_memory_mb(),
        }

    def score(self) -> str:
        """The measurements that matter most, in a few words."""
        return ""

    def line(self) -> str:
        """What the command line says of it when it ends."""
        rate = self.steps_here / self.seconds if self.seconds else 0.0
        parts = (
            f"{self.steps:,} steps in {self.seconds:.1f} s ({rate:,.0f}/s)",
            self.score(),
            f"run: {self.run}",
        )
        return "; ".join(part for part in parts if part)
