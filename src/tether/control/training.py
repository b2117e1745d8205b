"""From words to a run: build the environments and the learner, train, resume, load."""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tether.control.demonstrations import Recorder
from tether.control.envs import VectorEnv, make
from tether.control.evaluation import EVALUATION_SEED, Evaluation, evaluate
from tether.control.export.policy_folder import is_policy_folder, load_policy_folder
from tether.control.methods import find_method
from tether.control.policy import Policy, PolicySpec
from tether.control.policy_learner import PolicyConfig, PolicyLearner
from tether.errors import UserError
from tether.learning.callbacks import BaseCallback, Callback
from tether.learning.learner import Learner, Metrics
from tether.learning.loop import check_every
from tether.learning.metrics import read_metrics
from tether.learning.run import Run
from tether.learning.sinks import check_sinks

EnvLike = str | gym.Env[Any, Any] | Callable[[], gym.Env[Any, Any]]


@dataclass
class Trained:
    """A finished training.

    Attributes:
        run: the run's folder.
        policy: ready to `predict`.
        steps: environment steps in all.
        seconds: time spent training in this process, without start-up.
        metrics: the last iteration's measurements.
        first_iteration: steps and seconds of the first iteration, which compiles.
    """

    run: Path
    policy: Policy
    steps: int
    seconds: float
    metrics: Metrics
    first_iteration: tuple[int, float] = (0, 0.0)
    steps_here: int = field(default=0, repr=False)

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        metrics = self.metrics
        return {
            "run": str(self.run),
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_here / self.seconds if self.seconds else 0.0,
            "return_mean": metrics.get("return/mean"),
            "return_std": metrics.get("return/std"),
            "episodes": metrics.get("episode/count", 0),
            "steps_per_iteration": self.first_iteration[0],
            "first_iteration_seconds": self.first_iteration[1],
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def configure(
    method: str, preset: str = "default", settings: Mapping[str, Any] | None = None
) -> PolicyConfig:
    """The validated settings of `method`: a preset with `settings` laid over it.

    Raises:
        UserError: unknown method, preset or setting, or a bad value.
    """
    learner = find_method(method)
    if preset not in learner.presets:
        raise UserError(
            f"unknown preset {preset!r} of {method}; known: {', '.join(learner.presets)}"
        )
    return learner.config_class.load({**learner.presets[preset], **(settings or {})})


def train(
    method: str,
    env: EnvLike,
    *,
    preset: str = "default",
    total_steps: int = 1_000_000,
    seed: int = 0,
    out: str | Path | None = None,
    init_from: str | Path | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    threads: int | None = None,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[str] = ("tensorboard",),
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Train a policy: ``tether.train("ppo", env="HalfCheetah-v5")``.

    Args:
        method: one of :data:`tether.control.methods.METHODS`.
        env: a Gymnasium id, or a function that makes an environment.
        preset: "default" (what scores best) or "paper".
        total_steps: environment steps (behaviour cloning: pairs); rounded up to whole iterations.
        seed: decides everything random.
        out: the run's folder, new or empty; `runs/<method>-<env>-<seed>-<time>` when not given.
        init_from: another run, of equal spaces and network, whose policy to begin with.
        env_kwargs: passed to `gymnasium.make`.
        threads: physics threads; every core up to 8 when not given. Results do not depend on it.
        checkpoint_every: save whenever training passes a multiple of so many steps; every minute
            and at the end in any case.
        callbacks: see :mod:`tether.learning.callbacks`.
        sinks: where metrics go beside metrics.jsonl: "tensorboard", "wandb", "trackio".
        progress: show progress on stderr.
        **settings: fields of the method's config, over the preset.

    Raises:
        UserError: anything the user can mend; one line.
    """
    check_budget(total_steps, seed)
    check_sinks(sinks)
    check_every(checkpoint_every)
    config = configure(method, preset, settings)
    kind = find_method(method)
    initial = load(init_from) if init_from is not None else None
    threads = threads if threads is not None else default_threads()
    world = make(env, kind.environments(config), threads=threads, **(env_kwargs or {}))
    learner: PolicyLearner | None = None
    try:
        # Before the run's folder, so that a mistake which only the learner notices leaves none.
        learner = kind(config, world, seed=seed, total_steps=total_steps, initial=initial)
        spec = {
            "env": env if isinstance(env, str) else None,
            "env_name": world.id,
            "env_kwargs": dict(env_kwargs or {}),
            "seed": seed,
            "total_steps": total_steps,
            "preset": preset,
            "sinks": list(sinks),
            "policy": learner.spec.to_json(),
        }
        if initial is not None:
            source = str(Path(str(init_from)).resolve())
            spec["init_from"] = {"run": source, "policy": _fingerprint(initial)}
        run = Run.create(
            Path(out) if out is not None else default_folder(method, world.id, seed),
            method=method,
            config=config.dump(),
            spec=spec,
        )
        with run:
            return _train(run, learner, total_steps, callbacks, sinks, progress, checkpoint_every)
    finally:
        (learner or world).close()


def resume(
    run: str | Path,
    *,
    env: EnvLike | None = None,
    total_steps: int | None = None,
    threads: int | None = None,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[str] | None = None,
    progress: bool = True,
) -> Trained:
    """Go on with a run where its newest checkpoint left off, bit for bit.

    Args:
        run: the run's folder.
        env: the environment, needed only if the run was started from a function.
        total_steps: a new budget; the run's own when not given.
        threads: as in :func:`train`.
        checkpoint_every: as in :func:`train`.
        callbacks: as in :func:`train`.
        sinks: as in :func:`train`; those the run began with when not given.
        progress: as in :func:`train`.
    """
    opened = Run.open(run)
    spec = opened.spec
    if sinks is None:
        sinks = spec.get("sinks", ("tensorboard",))
    total = total_steps if total_steps is not None else int(spec["total_steps"])
    check_budget(total, int(spec["seed"]))
    check_sinks(sinks)
    config = configure(opened.method, spec["preset"], opened.config)
    kind = find_method(opened.method)
    initial = _initial_policy(opened)
    world = _environment(opened, env, kind.environments(config), threads)
    learner: PolicyLearner | None = None
    try:
        with opened:
            learner = kind(
                config, world, seed=int(spec["seed"]), total_steps=total, initial=initial
            )
            opened.resume(learner)
            return _train(opened, learner, total, callbacks, sinks, progress, checkpoint_every)
    finally:
        (learner or world).close()


def load(run: str | Path) -> Policy:
    """The policy in a run's newest checkpoint, or in a folder that ``tether.export`` wrote.

    Needs neither the environment nor, unless the policy looks at images, JAX.
    """
    if is_policy_folder(run):
        return load_policy_folder(run)
    opened = Run.open(run)
    if "policy" not in opened.spec:
        raise UserError(
            f"run {run} is one of {opened.method}, which has no policy for an environment; a "
            "language model is loaded by tether.language.training.load_language_model"
        )
    state: Any = opened.load()
    return Policy.from_state(PolicySpec.from_json(opened.spec["policy"]), state["policy"])


def evaluate_run(
    run: str | Path,
    *,
    episodes: int = 20,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    env: EnvLike | None = None,
    record: str | Path | None = None,
) -> Evaluation:
    """Evaluate a run's policy in its own environment; see :mod:`tether.control.evaluation`.

    `record` is a folder, new or empty, that keeps the episodes as demonstrations; see
    :mod:`tether.control.demonstrations`.
    """
    policy = load(run)
    recorder = Recorder(record) if record is not None else None
    world = _environment(Run.open(run), env, max(1, min(episodes, 20)), None)
    try:
        result = evaluate(
            policy,
            world,
            episodes=episodes,
            seed=seed,
            deterministic=deterministic,
            recorder=recorder,
        )
    finally:
        world.close()
    if recorder is not None:
        recorder.save(env=world.id, source_space=policy.spec.source_space, head=policy.spec.head)
    return result


def check_budget(total_steps: int, seed: int) -> None:
    """Raise a UserError unless there is something to do and the seed fits."""
    if total_steps < 1:
        raise UserError(f"total_steps is {total_steps}; expected at least 1")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; expected 0 to {2**31 - 1}")


def default_threads() -> int:
    """Physics threads that suit this machine."""
    return min(8, len(os.sched_getaffinity(0)))


def default_folder(method: str, env_id: str, seed: int) -> Path:
    """A fresh folder's name under ./runs."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in env_id)
    folder = Path("runs") / f"{method}-{name}-{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    copies = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in (folder, *itertools.islice(copies, 1000)) if not path.exists())


def _environment(run: Run, env: EnvLike | None, num_envs: int, threads: int | None) -> VectorEnv:
    source = env if env is not None else run.spec["env"]
    if source is None:
        raise UserError(
            f"run {run.path} was made from a function, not a Gymnasium id; pass the same function "
            "as env="
        )
    threads = threads if threads is not None else default_threads()
    return make(source, num_envs, threads=threads, **run.spec["env_kwargs"])


def _initial_policy(run: Run) -> Policy | None:
    """The policy a run began with, which it needs again if it died before its first checkpoint."""
    source = run.spec.get("init_from")
    if source is None or run.checkpoints():
        return None
    policy = load(source["run"])
    if _fingerprint(policy) != source["policy"]:
        raise UserError(
            f"run {run.path} has no checkpoint, and {source['run']}, whose policy it began with, "
            "has learnt since; start it again with tether train"
        )
    return policy


def _fingerprint(policy: Policy) -> str:
    """A SHA-256 over a policy's numbers."""
    digest = hashlib.sha256()
    network, log_std = policy.parameters
    arrays = [a for layers in network for layer in layers for a in layer] + [log_std]
    if policy.normalizer is not None:
        moments = policy.normalizer.moments
        arrays += [moments.mean, moments.variance]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _Clock(BaseCallback):
    """Notes when the first iteration of this process ended: it is the one that compiles."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.start_steps = 0
        self.first: tuple[int, float] = (0, 0.0)

    def on_start(self, run: Run, learner: Learner) -> None:
        self.start = time.perf_counter()
        self.start_steps = learner.steps

    def on_iteration(self, run: Run, learner: Learner, metrics: Metrics) -> bool | None:
        if not self.first[0]:
            self.first = (learner.steps - self.start_steps, time.perf_counter() - self.start)
        return None


class _StopWhenFinished(BaseCallback):
    """Ends a training that has nothing left to learn, such as one that stops early."""

    def on_iteration(self, run: Run, learner: Learner, metrics: Metrics) -> bool | None:
        return False if getattr(learner, "finished", False) else None


class _QuickHandOver:
    """While any training is under way, threads hand over the interpreter within half a millisecond.

    The critic's thread shares it with the one that acts; at the default 5 ms a hand-over would cost
    as much as several minibatches. Trainings of several seeds overlap, so only the last to end
    puts the interval back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._active:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(0.0005)
            self._active += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                sys.setswitchinterval(self._before)


_QUICK_HAND_OVER = _QuickHandOver()


def _train(
    run: Run,
    learner: PolicyLearner,
    total_steps: int,
    callbacks: Sequence[Callback],
    sinks: Sequence[str],
    progress: bool,
    checkpoint_every: int | None,
) -> Trained:
    clock = _Clock()
    with _QUICK_HAND_OVER:
        metrics = run.train(
            learner,
            learner.steps if learner.finished else total_steps,
            checkpoint_every=checkpoint_every,
            callbacks=(clock, _StopWhenFinished(), *callbacks),
            sinks=sinks,
            progress=progress,
        )
    if not metrics and run.metrics_path.exists():
        # Nothing was left to do: the run's last measurements still stand.
        for row in read_metrics(run.metrics_path)[-1:]:
            metrics = {name: value for name, value in row.items() if name != "step"}
    return Trained(
        run=run.path,
        policy=learner.policy,
        steps=learner.steps,
        seconds=time.perf_counter() - clock.start,
        metrics=metrics,
        first_iteration=clock.first,
        steps_here=learner.steps - clock.start_steps,
    )
