"""The environment that a run goes on in: the one it recorded, or the one that is given again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tether.control.envs.protocol import GoesOn
from tether.control.envs.vector import EnvLike, is_vector, make
from tether.errors import UserError
from tether.learning.machine import usable_cores
from tether.learning.run import Run


class Task(NamedTuple):
    """What a method learns in: the environment, and how it differs from the registered one.

    Attributes:
        env_kwargs: passed to ``gymnasium.make``.
        goes_on: how episodes go on that the task would have ended; None: it ends them.
    """

    env_kwargs: dict[str, Any]
    goes_on: GoesOn | None = None

    def record(self) -> dict[str, Any]:
        """What a run records of it."""
        goes_on = {} if self.goes_on is None else {"goes_on": self.goes_on._asdict()}
        return {"env_kwargs": self.env_kwargs, **goes_on}


def recorded_task(run: Run) -> Task:
    """The task of a run.

    Raises:
        UserError: an earlier version made the run, in a task that is no longer there.
    """
    goes_on = run.spec.get("goes_on")
    if goes_on is not None and "reward" not in goes_on:
        raise UserError(
            f"run {run.path} was trained by an earlier version of tether, whose task paid "
            "differently where it would have ended an episode; train it again"
        )
    return Task(dict(run.spec["env_kwargs"]), None if goes_on is None else GoesOn(**goes_on))


def default_threads() -> int:
    """Physics threads that suit this machine."""
    return min(8, usable_cores())


def drawn_seed(seed: int | None) -> int:
    """The seed itself, or where there is none a fresh one from the operating system's entropy."""
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return seed


def adopt_num_envs(
    env: EnvLike, fields: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings that take their `num_envs` from a vector environment, unless they name one."""
    if is_vector(env) and "num_envs" in fields and "num_envs" not in settings:
        counted: Any = env
        return {**settings, "num_envs": int(counted.num_envs)}
    return dict(settings)


def recorded_settings(run: Run) -> dict[str, Any]:
    """A run's settings; those that older versions of tether lacked are as they were then."""
    policy = run.spec.get("policy", {})
    then = {"activation": "tanh", "scale_actions": False}
    return {**{name: policy.get(name, value) for name, value in then.items()}, **run.config}


def recorded_env(run: Run) -> str:
    """The id of the environment in a run's record, which a stranger may have written.

    An id such as ``module:Id`` imports a module from the current folder, and so runs its code. That
    is done for what the user names, never because a file says so.

    Raises:
        UserError: there is none, or it would import a module that is not imported yet.
    """
    env = run.spec["env"]
    if env is None:
        raise UserError(
            f"run {run.path} was made from a function, not a Gymnasium id; pass the same function "
            "as env="
        )
    module = str(env).rpartition(":")[0]
    if module and module not in sys.modules:
        raise UserError(
            f"run {run.path} was trained in {env}, which imports the module {module}, and a file "
            f"does not decide what is imported; if you trust it, name it yourself: --env {env} (in "
            f"Python env={env!r})"
        )
    return str(env)


def run_environment(run: Run, env: EnvLike | None, num_envs: int, threads: int | None) -> Any:
    """The vector environment that `run` goes on in.

    Args:
        run: the run.
        env: what the user gives in place of the run's own.
        num_envs: how many copies; a vector environment must have as many.
        threads: physics threads; as many as suit the machine when None.

    Raises:
        UserError: the run names no environment that may be made.
    """
    source = env if env is not None else recorded_env(run)
    threads = threads if threads is not None else default_threads()
    task = Task({}) if is_vector(source) else recorded_task(run)
    return make(
        source,
        num_envs,
        threads=threads,
        goes_on=task.goes_on,
        **task.env_kwargs,
    )
