"""Making vector environments: any Gymnasium environment by id, instance or factory.

Two backends. Gymnasium's MuJoCo v5 tasks (:data:`BATCHED_TASKS`) are stepped by MuJoCo directly,
everything else through Gymnasium itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import gymnasium

from tether.control.envs.given_vector import BorrowedVectorEnv, GivenVectorEnv
from tether.control.envs.gymnasium_vector import GymnasiumVectorEnv
from tether.control.envs.protocol import GoesOn, Step, VectorEnv
from tether.control.envs.registry import BATCHED_TASKS, close_ids
from tether.errors import BadEnvironmentError, UserError

__all__ = ["BATCHED_TASKS", "Backend", "Step", "VectorEnv", "make", "make_one"]

Backend = Literal["auto", "mujoco", "gymnasium"]
Env = gymnasium.Env[Any, Any]
EnvLike: TypeAlias = (
    str | Env | Callable[..., Env] | gymnasium.vector.VectorEnv[Any, Any, Any] | VectorEnv
)

# Users' own instances that a vector environment steps, by their address.
_DRIVEN: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def make(
    env: EnvLike,
    num_envs: int,
    *,
    backend: Backend = "auto",
    threads: int = 1,
    goes_on: GoesOn | None = None,
    **env_kwargs: Any,
) -> VectorEnv:
    """N environments of one kind behind the :class:`VectorEnv` protocol.

    Args:
        env: an id, also ``"module:EnvId"``, as ``gymnasium.make`` takes it; a function or class
            that makes a new environment at every call; or an environment. An environment is stepped
            itself when ``num_envs`` is 1 and nothing else steps it, otherwise its copies are made
            anew from its ``spec``, which does not know changes made to it by hand. Also a vector
            environment, of Gymnasium or of this protocol, which is stepped itself.
        num_envs: N >= 1.
        backend: "mujoco" to step MuJoCo directly, "gymnasium" for Gymnasium itself; "auto" takes
            the first where an id is one of :data:`BATCHED_TASKS`. Both give the same numbers until
            an episode ends; then the Gymnasium backend reseeds, to be resumable, where the MuJoCo
            backend goes on with the same generator, as Gymnasium does.
        threads: threads that step the physics, the caller's included; the Gymnasium backend has
            one.
        goes_on: how episodes go on that the task would have ended, for what backend "mujoco" steps;
            None: the task ends them.
        **env_kwargs: passed to ``gymnasium.make`` (``max_episode_steps`` among them), or to the
            function.

    Returns:
        The environments, to be ``reset`` first.

    Raises:
        BadEnvironmentError: the environment is unknown, cannot be made, or has unsupported spaces.
        UserError: another argument is wrong.
    """
    for name, number in (("num_envs", num_envs), ("threads", threads)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(f"{name} must be an integer of at least 1, got {number!r}")
    if backend not in get_args(Backend):
        raise UserError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if is_vector(env):
        _refuse_going_on(goes_on, type(env).__name__)
        return _given(env, num_envs, env_kwargs)
    if isinstance(env, str):
        factory = _from_id(env, env_kwargs)
    elif isinstance(env, gymnasium.Env):
        if env_kwargs:
            raise UserError(
                f"{_name(env)} is made already, so {sorted(env_kwargs)} cannot be applied; pass "
                "its id or a function"
            )
        if num_envs == 1 and backend != "mujoco" and id(env) not in _DRIVEN:
            _refuse_going_on(goes_on, _name(env))
            return _InstanceVectorEnv(env)
        factory = _from_spec(env)
    elif callable(env):
        factory = _from_function(env, env_kwargs)
    else:
        raise UserError(
            "env must be a Gymnasium id, an environment, a function that makes one or a vector "
            f"environment, got {env!r}"
        )

    first = factory()
    # A function may do anything to what it makes, so only ids take the fast backend unasked.
    if backend == "mujoco" or (backend == "auto" and not _is_function(env) and _is_batched(first)):
        from tether.control.envs.mujoco_batch import MujocoVectorEnv

        try:
            return MujocoVectorEnv(first, num_envs, threads, goes_on)
        finally:
            first.close()
    _refuse_going_on(goes_on, _name(first))
    envs = [first, *(factory() for _ in range(num_envs - 1))]
    if len({id(one) for one in envs}) < num_envs:
        raise BadEnvironmentError(
            f"{_name(first)}: the function must make a new environment at every call"
        )
    return GymnasiumVectorEnv(envs, _name(first))


def can_go_on(env: EnvLike) -> bool:
    """Whether `goes_on` of :func:`make` works for an environment."""
    return isinstance(env, str) and env in BATCHED_TASKS


def _refuse_going_on(goes_on: GoesOn | None, name: str) -> None:
    if goes_on is not None:
        raise BadEnvironmentError(
            f"{name} cannot go on after it has ended an episode, which only tether's own MuJoCo "
            f"tasks can ({', '.join(BATCHED_TASKS[:3])}, ...); give --termination keep"
        )


def make_one(env_id: str, **env_kwargs: Any) -> Env:
    """One Gymnasium environment by its id, with the same errors as :func:`make`.

    Args:
        env_id: an id, also ``"module:EnvId"``.
        **env_kwargs: passed to ``gymnasium.make``.

    Raises:
        BadEnvironmentError: the environment is unknown or cannot be made.
    """
    return _from_id(env_id, env_kwargs)()


def is_vector(env: Any) -> bool:
    """Whether `env` is a vector environment already: Gymnasium's, or one of the protocol."""
    if isinstance(env, str | type | gymnasium.Env):
        return False
    return isinstance(env, gymnasium.vector.VectorEnv | VectorEnv)


def count_of(env: Any, otherwise: int) -> int:
    """How many environments a vector environment has; `otherwise` for anything else."""
    return int(env.num_envs) if is_vector(env) else otherwise


def _given(env: Any, num_envs: int, env_kwargs: dict[str, Any]) -> VectorEnv:
    name = type(env).__name__
    if env_kwargs:
        raise UserError(
            f"{name} is made already, so {sorted(env_kwargs)} cannot be applied; pass an id or a "
            "function"
        )
    if env.num_envs != num_envs:
        raise UserError(
            f"{name} has {env.num_envs} environments, and the settings ask for {num_envs}; make it "
            f"with {num_envs}, or change the settings"
        )
    if id(env) in _DRIVEN:
        raise UserError(
            f"{name} is stepped by a training already; several trainings at once need an id or a "
            "function as env"
        )
    return _GivenVectorEnv(env) if isinstance(env, gymnasium.vector.VectorEnv) else _Borrowed(env)


class _GivenVectorEnv(GivenVectorEnv):
    """The user's own vector environment, which one training steps at a time."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        _DRIVEN[id(env)] = env

    def close(self) -> None:
        _DRIVEN.pop(id(self._env), None)


class _Borrowed(BorrowedVectorEnv):
    """The user's own vector environment of the protocol, likewise."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        _DRIVEN[id(env)] = env

    def close(self) -> None:
        _DRIVEN.pop(id(self._env), None)


class _InstanceVectorEnv(GymnasiumVectorEnv):
    """The user's own environment, which is theirs to close."""

    def __init__(self, env: Env) -> None:
        super().__init__([env], _name(env), owned=False)
        _DRIVEN[id(env)] = env

    def close(self) -> None:
        _DRIVEN.pop(id(self._envs[0]), None)


def _from_id(env_id: str, env_kwargs: dict[str, Any]) -> Callable[[], Env]:
    # Tether checks what environments return itself, at every step and in one line.
    settings = {"disable_env_checker": True, **env_kwargs}

    def factory() -> Env:
        with _one_line(env_id):
            module, _, name = env_id.rpartition(":")
            if module:
                importlib.import_module(module)
            known = gymnasium.registry.values()
            # Without its version, a name means the latest.
            entries = [str(spec.entry_point) for spec in known if name in (spec.id, spec.name)]
            with _quiet_models(entries):
                made: Env = gymnasium.make(env_id, **settings)
                return made

    return factory


def _from_spec(env: Env) -> Callable[[], Env]:
    name, spec = _name(env), env.spec
    if spec is None:
        raise BadEnvironmentError(
            f"{name} is one environment without a spec, so it cannot be copied and can be used "
            "only for num_envs=1 and by one vector environment at a time; pass a function that "
            "makes one"
        )
    warnings.warn(
        f"{name} is made anew from its spec, without changes made to it by hand; pass a function "
        "that makes it to keep them",
        stacklevel=3,
    )

    def factory() -> Env:
        with _one_line(name), _quiet_models([str(spec.entry_point)]):
            made: Env = gymnasium.make(spec)
            return made

    return factory


def _from_function(function: Callable[..., Env], env_kwargs: dict[str, Any]) -> Callable[[], Env]:
    def factory() -> Env:
        made = function(**env_kwargs)
        if not isinstance(made, gymnasium.Env):
            raise BadEnvironmentError(
                f"the function {function!r} must make a gymnasium.Env, it made {made!r}"
            )
        if id(made) in _DRIVEN:
            raise BadEnvironmentError(
                f"{_name(made)}: the function must make a new environment at every call"
            )
        return made

    return factory


def _is_function(env: Any) -> bool:
    return not isinstance(env, str | gymnasium.Env)


def _is_batched(env: Env) -> bool:
    # Gymnasium's MuJoCo tasks cannot exist before this module is loaded; others need no MuJoCo.
    if "gymnasium.envs.mujoco" not in sys.modules:
        return False
    from tether.control.envs.mujoco_batch import task_of

    return task_of(env) is not None


def _name(env: Env) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn Gymnasium's ways of not making an environment into one clear line."""
    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        raise BadEnvironmentError(f"{name} needs another package: {_flat(error)}") from error
    except ModuleNotFoundError as error:
        module = name.rpartition(":")[0]
        if not module or error.name != module.partition(".")[0]:
            raise BadEnvironmentError(f"{name} cannot be made: {_flat(error)}") from error
        raise BadEnvironmentError(
            f"{name} names the module {module}, which is neither installed nor in the current "
            f"folder, {Path.cwd()}; go to the folder that holds {module}.py, or add that folder "
            "to PYTHONPATH"
        ) from error
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        similar = close_ids(name)
        hint = f"; did you mean {', '.join(similar)}?" if similar else ""
        raise BadEnvironmentError(
            f"no environment is called {name!r}{hint} (`tether envs` lists what there is; "
            "'module:EnvId' imports a module that registers its own)"
        ) from error
    except (gymnasium.error.Error, ImportError, OSError, TypeError, ValueError) as error:
        raise BadEnvironmentError(f"{name} cannot be made: {_flat(error)}") from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


# MuJoCo has one listener for the whole process, and aborts when two threads change it under a model
# that is being loaded; several seeds make their environments at the same moment.
_LISTENING = threading.RLock()


_WITH_MODELS = (
    "gymnasium.envs.mujoco",
    "tether.control.hacking.gate_cheetah",
    "tether.control.hacking.sleeping_walker",
    "tether.control.tumbling.hopper",
)
"""Modules of environments that load MuJoCo models."""


@contextlib.contextmanager
def _quiet_models(entry_points: list[str]) -> Iterator[None]:
    """Keep MuJoCo from writing MUJOCO_LOG.TXT about Gymnasium's own model files.

    Gymnasium's HalfCheetah model uses an attribute that MuJoCo 4 calls deprecated, which no user
    can change. Whatever else MuJoCo says while loading becomes a Python warning.
    """
    if not any(module in entry for entry in entry_points for module in _WITH_MODELS):
        yield
        return
    try:
        import mujoco
    except ImportError:
        raise
    except Exception as error:
        # A drawing backend that does not load ends MuJoCo's import with whatever broke inside it.
        raise BadEnvironmentError(
            f"MuJoCo does not load with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: "
            f"{_flat(error)}; unset MUJOCO_GL, or set it to egl or osmesa where that is installed"
        ) from error

    said: list[str] = []
    with _LISTENING:
        previous = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(said.append)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(previous)
    for text in said:
        if "settotalmass" not in text:
            warnings.warn(text, stacklevel=2)
