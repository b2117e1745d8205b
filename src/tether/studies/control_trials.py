"""Trials of the control studies: one training by one method, its curve, and how good it became."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.control.envs import make
from tether.control.envs.vector import make_one
from tether.control.training import TrainedPolicy, configure, evaluate_run, resume, train
from tether.errors import NonFiniteError
from tether.learning.output.metrics import read_metrics
from tether.studies.trials import Result, Trial

CURVE_POINTS: Final = 100
"""Points of a learning curve that are kept; a million steps of PPO have five times as many."""

THREADS: Final = 1
"""Of a training's physics: the others belong to the trials beside it."""

MUJOCO: Final = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)
"""The seven tasks of the PPO paper, as Gymnasium has them today."""


def training_trial(
    name: str,
    method: str,
    env: str,
    seed: int,
    *,
    steps: int,
    episodes: int,
    preset: str = "default",
    **settings: Any,
) -> Trial:
    """A trial that trains `method`, and evaluates its last policy.

    Args:
        name: of the trial.
        method: one of `tether methods`.
        env: Gymnasium id.
        seed: of the training.
        steps: environment steps.
        episodes: of the evaluation, in which the policy takes its most probable actions.
        preset: of the method's settings.
        **settings: over the preset.

    Raises:
        UserError: an unknown method, preset or setting.
    """
    chosen = {
        "method": method,
        "env": env,
        "seed": seed,
        "total_steps": steps,
        "episodes": episodes,
        "preset": preset,
        "settings": settings,
        # What the two above mean today: a trial done under other defaults is another trial.
        "config": configure(method, preset, settings).dump(),
    }
    return Trial(name, learn, chosen)


def check_envs(envs: Sequence[str]) -> None:
    """Raise before anything is trained or written if an environment cannot be made.

    Raises:
        BadEnvironmentError: it names the one, and what was perhaps meant.
    """
    for env in envs:
        make_one(env).close()


def learn(settings: Mapping[str, Any], place: Path) -> Result:
    """Trains what `settings` say, or goes on with it; see :func:`training_trial`.

    Returns:
        ``curve``: (steps, mean return of the last 100 training episodes), thinned out; ``last_100``
        and ``last_tenth``: its end, and its mean over the last tenth of the steps; ``final`` and
        ``final_std``: return of whole evaluation episodes; ``steps_per_second``, and ``seconds``
        with start-up and evaluation, both since the last interruption. A training that diverged
        has its curve up to there, ``diverged`` with the reason, and no ``final``.
    """
    run = place / "run"
    began = time.perf_counter()
    try:
        trained = train_or_resume(run, settings, preset=settings["preset"])
    except NonFiniteError as error:
        return {"diverged": str(error), **training_curve(run / "metrics.jsonl")}
    evaluation = evaluate_run(run, episodes=settings["episodes"])
    return {
        **training_curve(run / "metrics.jsonl"),
        "final": float(evaluation.returns.mean()),
        "final_std": float(evaluation.returns.std()),
        "steps_per_second": trained.summary()["steps_per_second"],
        "seconds": time.perf_counter() - began,
    }


def train_or_resume(
    run: Path,
    settings: Mapping[str, Any],
    *,
    again: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> TrainedPolicy:
    """Trains what a trial's settings say, or goes on with it where it was interrupted.

    Args:
        run: the run's folder.
        settings: with method, env, total_steps, seed, and the method's own under settings.
        again: arguments that a training takes when it begins and whenever it goes on, such as
            callbacks and a teacher.
        **arguments: further ones of :func:`tether.control.training.train`.
    """
    quietly = {"threads": THREADS, "sinks": (), "progress": False, **(again or {})}
    if (run / "run.json").exists():
        return resume(run, **quietly)
    return train(
        settings["method"],
        env=settings["env"],
        total_steps=settings["total_steps"],
        seed=settings["seed"],
        out=run,
        **quietly,
        **arguments,
        **settings["settings"],
    )


def random_policy(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: mean return of uniformly random actions."""
    return {"return": float(random_returns(settings["env"], settings["episodes"])[0].mean())}


def random_returns(env_id: str, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and true returns, (episodes,) each, of uniformly random actions.

    The latter are zero where the environment reports no true reward.
    """
    env = make(env_id, episodes)
    try:
        env.action_space.seed(0)
        env.reset(0)
        totals, running = np.zeros((2, episodes)), np.ones(episodes, bool)
        while running.any():
            step = env.step(np.stack([env.action_space.sample() for _ in range(episodes)]))
            truth = 0.0 if step.true_reward is None else step.true_reward
            totals[0] += np.where(running, step.reward, 0.0)
            totals[1] += np.where(running, truth, 0.0)
            running &= ~(step.terminated | step.truncated)
    finally:
        env.close()
    return totals[0], totals[1]


def normalize(score: float, floor: float, best: float) -> float:
    """0 for the random policy, 1 for the best training on the task."""
    return (score - floor) / (best - floor) if best > floor else 0.0


def training_curve(metrics: Path) -> Result:
    """A run's curve and its end, from its measurements."""
    rows = [row for row in read_metrics(metrics) if row.get("return/mean") is not None]
    if not rows:
        return {"curve": [], "last_100": None, "last_tenth": None}
    steps = np.array([row["step"] for row in rows], float)
    means = np.array([row["return/mean"] for row in rows], float)
    return {
        "curve": thinned(rows, "return/mean"),
        "last_100": float(means[-1]),
        "last_tenth": float(means[steps > 0.9 * steps[-1]].mean()),
    }


def thinned(rows: Sequence[Mapping[str, Any]], *names: str) -> list[list[float]]:
    """At most :data:`CURVE_POINTS` of the rows: [step, value of each name]."""
    if not rows:
        return []
    kept = np.unique(np.linspace(0, len(rows) - 1, CURVE_POINTS).round().astype(int))
    return [
        [int(rows[i]["step"]), *(round(float(rows[i][name]), 3) for name in names)] for i in kept
    ]


def by_cell(
    results: Mapping[str, Result], trials: Sequence[Trial]
) -> dict[tuple[str, str], list[Result]]:
    """Results by (method, environment), in the order of the seeds."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for trial in trials:
        key = (trial.settings["method"], trial.settings["env"])
        cells.setdefault(key, []).append(results[trial.name])
    return cells


def mean_and_deviation(scores: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population deviation of those that are there; None and None if none is.

    A training that diverged before its first episode ended has no score. Zero would not do: it is
    the best there is where all rewards are negative.
    """
    there = [score for score in scores if score is not None]
    return (float(np.mean(there)), float(np.std(there))) if there else (None, None)
