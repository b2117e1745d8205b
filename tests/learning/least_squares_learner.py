"""A small learner that hides nothing: momentum SGD on least squares, with shuffled minibatches.

Run as a program it is the child that the crash tests kill: it creates or resumes a run, says
``ready`` and trains.
"""

import signal
import sys
import time
from typing import Any

import numpy as np

from tether.errors import Interrupted, NonFiniteError, UserError
from tether.learning import Metrics, Run, State

ROWS, COLUMNS, BATCH = 64, 5, 8


class LeastSquares:
    def __init__(self, seed: int, *, fail_at: int | None = None, pause: float = 0.0) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs = self.random.normal(size=(ROWS, COLUMNS))
        self.targets = self.inputs @ self.random.normal(size=COLUMNS)
        self.weight = np.zeros(COLUMNS)
        self.velocity = np.zeros(COLUMNS)
        self.order = self.random.permutation(ROWS)
        self.cursor = 0
        self.total_loss = 0.0
        self._steps = 0
        self.fail_at = fail_at
        self.pause = pause

    @property
    def steps(self) -> int:
        return self._steps

    def iterate(self) -> Metrics:
        time.sleep(self.pause)
        if self.fail_at is not None and self._steps >= self.fail_at:
            raise NonFiniteError(f"the loss is nan at step {self._steps}; lower the learning rate")
        if self.cursor == ROWS:
            self.order = self.random.permutation(ROWS)
            self.cursor = 0
        rows = self.order[self.cursor : self.cursor + BATCH]
        self.cursor += BATCH
        noise = self.random.normal(size=BATCH)
        error = self.inputs[rows] @ self.weight - self.targets[rows] - 0.1 * noise
        self.velocity = 0.9 * self.velocity + self.inputs[rows].T @ error / BATCH
        self.weight = self.weight - 0.01 * self.velocity
        self._steps += BATCH
        loss = float(np.mean(error**2))
        self.total_loss += loss
        return {
            "loss/value": loss,
            "loss/total": self.total_loss,
            "return/mean": -loss if self._steps > BATCH else float("nan"),
            "data/epoch": self._steps // ROWS,
        }

    def state(self) -> State:
        generator: Any = self.random.bit_generator.state
        return {
            "weight": self.weight,
            "velocity": self.velocity,
            "data": {"order": self.order, "cursor": self.cursor},
            "random": generator,
            "steps": self._steps,
            "total_loss": self.total_loss,
        }

    def restore(self, state: Any) -> None:
        self.weight = state["weight"]
        self.velocity = state["velocity"]
        self.order = state["data"]["order"]
        self.cursor = state["data"]["cursor"]
        self.random.bit_generator.state = state["random"]
        self._steps = state["steps"]
        self.total_loss = state["total_loss"]


def main(path: str, total: str, every: str, pause: str = "0", sinks: str = "") -> int:
    learner = LeastSquares(seed=7, pause=float(pause))
    try:
        try:
            run = Run.open(path)
        except UserError:
            run = Run.create(path, method="least-squares", config={"seed": 7}, spec={})
        run.resume(learner)
        print("ready", flush=True)
        run.train(
            learner,
            int(total),
            checkpoint_every=int(every),
            checkpoint_every_seconds=None,
            progress=False,
            sinks=tuple(filter(None, sinks.split(","))),
        )
    except Interrupted:
        return 130
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # A background job's SIGINT is ignored, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(*sys.argv[1:]))
