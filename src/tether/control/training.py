"""The control engine: build the environments and a policy's learner, from settings or a record."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from tether.control.architectures import given_network
from tether.control.demonstrations import Recorder
from tether.control.envs.protocol import VectorEnv
from tether.control.envs.vector import EnvLike, count_of, make
from tether.control.evaluation import EVALUATION_SEED, Evaluation, evaluate
from tether.control.methods import METHODS
from tether.control.named_objects import named_object
from tether.control.policy import Policy, PolicySpec
from tether.control.policy_folder import is_policy_folder, load_policy_folder
from tether.control.policy_learner import PolicyConfig, PolicyLearner, check_own_network
from tether.control.run_environment import (
    Task,
    adopt_num_envs,
    default_threads,
    drawn_seed,
    recorded_settings,
    recorded_task,
    run_environment,
)
from tether.errors import UserError
from tether.learning.engine import Engine, check_total_steps
from tether.learning.learner import Learner
from tether.learning.methods import Method, check_learner_class
from tether.learning.run import Run
from tether.learning.training import Prepared, Trained

TRUE = "true_return/mean"
"""The metric of what was meant, where an environment reports it."""


@dataclass
class TrainedPolicy(Trained):
    """A finished training of a policy.

    Attributes:
        policy: ready to `predict`.
    """

    policy: Policy = None  # type: ignore[assignment]

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        metrics = self.metrics
        return {
            **super().summary(),
            "return_mean": metrics.get("return/mean"),
            "return_std": metrics.get("return/std"),
            **({"true_return_mean": metrics[TRUE]} if TRUE in metrics else {}),
            "episodes": metrics.get("episode/count", 0),
            "steps_per_iteration": self.first_iteration[0],
            "first_iteration_seconds": self.first_iteration[1],
        }

    def score(self) -> str:
        """The training return, in a few words."""
        mean, std = (self.metrics.get(f"return/{name}") for name in ("mean", "std"))
        if mean is None:
            return "no episode ended"
        true = self.metrics.get(TRUE)
        return f"return {mean:.1f} +- {std:.1f}" + ("" if true is None else f", true {true:.1f}")


class ControlEngine(Engine[PolicyLearner, TrainedPolicy]):
    """Trains policies in Gymnasium and MuJoCo environments."""

    name: ClassVar[str] = "control"
    methods: ClassVar[Mapping[str, Method]] = METHODS

    def configure(
        self,
        method: str | type[Any],
        preset: str = "default",
        settings: Mapping[str, Any] | None = None,
    ) -> PolicyConfig:
        """The validated settings of `method`: a preset with `settings` laid over it.

        Raises:
            UserError: unknown method, preset or setting, or a bad value.
        """
        name, kind = self.find(method)
        return _configure(name, kind, preset, settings or {})

    def prepare(
        self,
        method: str | type[Any],
        *,
        env: EnvLike | None = None,
        preset: str = "default",
        total_steps: int = 1_000_000,
        seed: int | None = 0,
        init_from: str | Path | None = None,
        network: Any = None,
        env_kwargs: Mapping[str, Any] | None = None,
        threads: int | None = None,
        config: PolicyConfig | None = None,
        teacher: Any = None,
        **settings: Any,
    ) -> Prepared[PolicyLearner]:
        """Builds the environments and the learner.

        Args:
            method: one of :data:`tether.control.methods.METHODS`, or a class that derives from
                :class:`tether.control.policy_learner.PolicyLearner`.
            env: a Gymnasium id, an environment or a function that makes one, or a vector
                environment (`gymnasium.vector.VectorEnv`, or one of :mod:`tether.control.envs`),
                from which `num_envs` is taken.
            preset: "default" (what scores best) or "paper".
            total_steps: environment steps (behaviour cloning: pairs); rounded up to whole
                iterations.
            seed: decides everything random; None draws one, which the run records.
            init_from: another run, of equal spaces and network, whose policy to begin with.
            network: one's own network for the policy and its critic, in place of the built-in one;
                see :class:`tether.control.architectures.PolicyNetwork`. It is not saved: `resume`,
                `load` and `evaluate` ask for it again.
            env_kwargs: passed to `gymnasium.make`.
            threads: physics threads; every core up to 8 when not given. Results do not depend on
                it.
            config: the resolved settings, instead of `preset` and `settings`.
            teacher: for prefer: who compares; see
                :func:`tether.control.preferences.teachers.teacher_of`. The oracle, if not given.
            **settings: fields of the method's config, over the preset.

        Raises:
            UserError: anything that the user can correct; one line.
        """
        name, kind = self.find(method)
        if env is None:
            raise UserError(f"{name} needs an environment; give env=, such as 'HalfCheetah-v5'")
        seed, network = drawn_seed(seed), given_network(network)
        check_budget(total_steps, seed)
        if config is None:
            adopted = adopt_num_envs(env, kind.config_class.model_fields, settings)
            config = _configure(name, kind, preset, adopted)
        check_own_network(network, config, _configure(name, kind, preset, {}))
        initial = load(init_from, network=network) if init_from is not None else None
        task = _task(kind, config, env, env_kwargs or {})
        objects = _objects(name, kind, {"teacher": teacher}, task)
        world = make(
            env,
            kind.environments(config),
            threads=threads or default_threads(),
            goes_on=task.goes_on,
            **task.env_kwargs,
        )
        learner = _build(kind, config, world, seed, total_steps, initial, network, objects)
        spec: dict[str, Any] = {
            "env": env if isinstance(env, str) else None,
            "env_name": world.id,
            **task.record(),
            "preset": preset,
            "policy": learner.spec.to_json(),
            **(kind.record(objects) if objects else {}),
        }
        if initial is not None:
            source = str(Path(str(init_from)).resolve())
            spec["init_from"] = {"run": source, "policy": initial.fingerprint()}
        return _prepared(name, learner, total_steps, seed, world.id, spec)

    def rebuild(  # type: ignore[override]
        self,
        run: Run,
        *,
        total_steps: int,
        method: type[Any] | None = None,
        env: EnvLike | None = None,
        network: Any = None,
        threads: int | None = None,
        teacher: Any = None,
    ) -> Prepared[PolicyLearner]:
        """Builds a run's environments and learner again.

        Args:
            run: the run.
            total_steps: the budget.
            method: the learner class, if the run was trained by one from outside tether.
            env: the environment, needed if the run was not started from the id of an environment
                that is registered; see :func:`tether.control.run_environment.recorded_env`.
            network: as in :meth:`prepare`, needed if the run was started with one.
            threads: as in :meth:`prepare`.
            teacher: as in :meth:`prepare`, needed if the run was started with a function.
        """
        spec = run.spec
        seed = int(spec["seed"])
        check_budget(total_steps, seed)
        kind = self.find_again(run, method)
        network = given_network(network)
        config = _configure(run.method, kind, spec["preset"], recorded_settings(run), recorded=True)
        PolicySpec.from_json(spec["policy"], network)  # says so where the network does not fit
        initial = _initial_policy(run, network)
        objects = _objects(run.method, kind, {"teacher": teacher}, recorded_task(run), run)
        world = run_environment(run, env, kind.environments(config), threads)
        learner = _build(kind, config, world, seed, total_steps, initial, network, objects)
        return _prepared(run.method, learner, total_steps, seed, world.id, {})

    def finished(self, prepared: Prepared[PolicyLearner], training: Trained) -> TrainedPolicy:
        """Adds the policy."""
        own = {f.name: getattr(training, f.name) for f in fields(training)}
        return TrainedPolicy(**own, policy=prepared.learner.policy)

    @contextmanager
    def driving(self, prepared: Prepared[PolicyLearner]) -> Iterator[Learner]:
        """Lets the threads of actor and critic hand over quickly."""
        with _QUICK_HAND_OVER:
            yield prepared.learner

    def load(self, run: str | Path, **arguments: Any) -> Policy:
        """The policy; see :func:`load`."""
        return load(run, **arguments)

    def subject(self, arguments: Mapping[str, Any]) -> str:
        """The environment's id, or the name of the function that makes it."""
        env = arguments.get("env")
        name = env if isinstance(env, str) else getattr(env, "__name__", "environment")
        return str(name)

    def side_by_side(self, count: int, arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """One seed's physics runs while another learns, so that the cores never wait."""
        workers = min(count, max(2, default_threads()))
        threads = arguments.get("threads") or max(1, default_threads() // workers)
        return workers, {"threads": threads}

    def opened(self, method: str | type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, where the name of a teaching function is replaced by the function."""
        teacher = arguments.get("teacher")
        if not isinstance(teacher, str) or ":" not in teacher:
            return dict(arguments)
        return {**arguments, "teacher": named_object("teacher", teacher)}

    def check_class(self, method: type[Any]) -> None:
        """Checks that a class has what this engine calls."""
        members = (
            *("config_class", "presets", "environments", "steps", "iterate", "state", "restore"),
            "close",
        )
        check_learner_class(method, members, "tether.control.policy_learner.PolicyLearner")


ENGINE = ControlEngine()
train, resume, configure = ENGINE.train, ENGINE.resume, ENGINE.configure


def load(run: str | Path, *, network: Any = None) -> Policy:
    """The policy in a run's newest checkpoint, or in a file of :meth:`Policy.save`, or in a
    folder that ``tether.export`` wrote.

    Needs neither the environment nor, unless the policy looks at images, JAX. A policy with a
    network of its user's own needs that as `network`.
    """
    if Path(run).is_file():
        return Policy.load(run, network=network)
    if is_policy_folder(run):
        return load_policy_folder(run)
    opened = Run.open(run)
    if "policy" not in opened.spec:
        raise UserError(
            f"run {run} was trained by {opened.method}, and holds no policy that acts in an "
            f"environment; a language model answers: tether generate {run} --prompt ..."
        )
    state: Any = opened.load()
    return Policy.from_state(PolicySpec.from_json(opened.spec["policy"], network), state["policy"])


def evaluate_run(
    run: str | Path,
    *,
    episodes: int = 20,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    env: EnvLike | None = None,
    network: Any = None,
    record: str | Path | None = None,
) -> Evaluation:
    """Evaluate a run's policy in its own environment; see :mod:`tether.control.evaluation`.

    `record` is a folder, new or empty, that keeps the episodes as demonstrations; see
    :mod:`tether.control.demonstrations`.
    """
    policy = load(run, network=network)
    recorder = Recorder(record) if record is not None else None
    world = run_environment(Run.open(run), env, count_of(env, max(1, min(episodes, 20))), None)
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
    """Raises a UserError unless there is something to do and the seed fits."""
    check_total_steps(total_steps)
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; expected 0 to {2**31 - 1}, or None to draw one")


def _configure(
    name: str, kind: Any, preset: str, settings: Mapping[str, Any], *, recorded: bool = False
) -> PolicyConfig:
    if preset not in kind.presets:
        raise UserError(f"unknown preset {preset!r} of {name}; known: {', '.join(kind.presets)}")
    values = {**kind.presets[preset], **settings}
    config: PolicyConfig = kind.config_class.load(values, recorded=recorded)
    return config


def _build(
    kind: Any,
    config: PolicyConfig,
    world: VectorEnv,
    seed: int,
    total_steps: int,
    initial: Policy | None,
    network: Any,
    objects: Mapping[str, Any],
) -> PolicyLearner:
    try:
        learner: PolicyLearner = kind(
            config,
            world,
            seed=seed,
            total_steps=total_steps,
            initial=initial,
            network=network,
            **objects,
        )
    except BaseException:
        world.close()
        raise
    return learner


def _task(kind: Any, config: Any, env: EnvLike, env_kwargs: Mapping[str, Any]) -> Task:
    """The task as the method learns it; most learn it as it is."""
    change = getattr(kind, "task", None)
    return Task(dict(env_kwargs)) if change is None else change(config, env, env_kwargs)


def _objects(
    name: str, kind: Any, given: Mapping[str, Any], task: Task, run: Run | None = None
) -> dict[str, Any]:
    """What a method takes beside its settings, from what is given or what `run` has recorded."""
    if "teacher" not in getattr(kind, "takes", ()):
        for object_, value in given.items():
            if value is not None:
                raise UserError(f"{name} takes no {object_}; prefer learns from comparisons")
        return {}
    objects: dict[str, Any] = kind.objects(given["teacher"], task, run)
    return objects


def _prepared(
    name: str,
    learner: PolicyLearner,
    total_steps: int,
    seed: int,
    subject: str,
    spec: dict[str, Any],
) -> Prepared[PolicyLearner]:
    return Prepared(
        method=name,
        config=learner.config,
        learner=learner,
        total_steps=total_steps,
        seed=seed,
        subject=subject,
        spec=spec,
        close=learner.close,
    )


def _initial_policy(run: Run, network: Any) -> Policy | None:
    """The policy a run began with, which it needs again if it died before its first checkpoint."""
    source = run.spec.get("init_from")
    if source is None or run.checkpoints():
        return None
    policy = load(source["run"], network=network)
    if policy.fingerprint() != source["policy"]:
        raise UserError(
            f"run {run.path} has no checkpoint, and {source['run']}, whose policy it began with, "
            "has learnt since; start it again with tether train"
        )
    return policy


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
