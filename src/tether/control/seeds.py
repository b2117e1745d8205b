"""Several seeds of one training, side by side in one process.

Start-up and compilation are paid once, and one seed's physics runs while another learns, so the
cores never wait. Each seed has its own run folder and the same numbers as if it ran alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tether.control import training
from tether.control.envs.vector import EnvLike
from tether.control.run_environment import default_threads
from tether.errors import Interrupted, UserError
from tether.learning.callbacks import BaseCallback
from tether.learning.learner import Learner, Metrics
from tether.learning.run import Run
from tether.learning.signals import StopRequest


@dataclass(frozen=True)
class Seeds:
    """Finished trainings, one for each seed, and the seconds all of them took together."""

    runs: list[training.Trained]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        means = [run.metrics.get("return/mean") for run in self.runs]
        known = [mean for mean in means if mean is not None]
        steps = sum(run.steps for run in self.runs)
        return {
            "runs": [run.summary() for run in self.runs],
            "steps": steps,
            "seconds": self.seconds,
            "steps_per_second": steps / self.seconds,
            "return_mean": float(np.mean(known)) if known else None,
            "return_std": float(np.std(known)) if known else None,
        }


def train_seeds(
    method: str,
    env: EnvLike,
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    progress: bool = True,
    **arguments: Any,
) -> Seeds:
    """Train one policy for each seed; arguments as :func:`tether.control.training.train`.

    Args:
        method: the method's name.
        env: a Gymnasium id or a function that makes an environment.
        seeds: distinct seeds.
        out: folder that gets one run folder `seed-<k>` for each seed.
        progress: show the progress of the first seed.
        **arguments: everything else `train` takes.

    Raises:
        UserError: no seeds, a seed twice, or whatever one training raises; the others are then
            stopped with a checkpoint.
        Interrupted: Ctrl-C or SIGTERM; every seed has saved a checkpoint.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds are {list(seeds)}; expected distinct integers such as 0,1,2")
    name = env if isinstance(env, str) else getattr(env, "__name__", "environment")
    folder = Path(out) if out is not None else training.default_folder(method, name, seeds[0])
    cores = default_threads()
    workers = min(len(seeds), max(2, cores))
    stop = _Stop()
    callbacks = (*arguments.pop("callbacks", ()), stop)
    arguments["threads"] = arguments.get("threads") or max(1, cores // workers)
    start = time.perf_counter()
    with ThreadPoolExecutor(workers, "seed") as pool:
        futures = [
            pool.submit(
                training.train,
                method,
                env,
                seed=seed,
                out=folder / f"seed-{seed}",
                callbacks=callbacks,
                progress=progress and i == 0,
                **arguments,
            )
            for i, seed in enumerate(seeds)
        ]
        with StopRequest() as request:
            while any(not future.done() for future in futures):
                # In slices, since only this thread hears Ctrl-C. After a failure FIRST_EXCEPTION
                # would return at once, and this loop would take the interpreter from the others.
                until = ALL_COMPLETED if stop.event.is_set() else FIRST_EXCEPTION
                done, _ = wait(futures, timeout=0.2, return_when=until)
                failed = any(future.exception() for future in done if not future.cancelled())
                if request.received or failed:
                    stop.event.set()
                    for future in futures:
                        future.cancel()
        if request.received:
            line = f"interrupted; checkpoints saved; go on with: tether resume {folder}/seed-..."
            print(line, file=sys.stderr, flush=True)
            raise Interrupted(line)
    for future in futures:
        if not future.cancelled() and (error := future.exception()) is not None:
            raise error
    return Seeds([future.result() for future in futures], time.perf_counter() - start)


class _Stop(BaseCallback):
    """Ends a training after the iteration under way, with a checkpoint."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def on_iteration(self, run: Run, learner: Learner, metrics: Metrics) -> bool | None:
        """False once another seed failed or Ctrl-C was pressed."""
        return False if self.event.is_set() else None
