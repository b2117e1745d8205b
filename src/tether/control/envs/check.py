"""The contract of a vector environment, as a test that users can run on their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from tether.control.envs.arrays import Array, policy_space
from tether.control.envs.protocol import Step, VectorEnv
from tether.errors import BadEnvironmentError


def check_vector_env(env: VectorEnv, steps: int = 200, seed: int = 0) -> int:
    """Check that an environment keeps the promises of :class:`VectorEnv`.

    Shapes and dtypes; that the same seed gives the same episodes and environment i is seeded with
    seed + i; that an ended episode hands on its true final observation and starts anew within the
    same step; that a state taken between steps stays as it was and continues bit for bit.

    Args:
        env: the environment; it is left in the middle of an episode.
        steps: how many steps to take with random actions; enough for some episodes to end.
        seed: for the environment and the actions.

    Returns:
        How many episodes ended during the check: with 0, ends were not checked at all.

    Raises:
        BadEnvironmentError: a promise is broken; the message says which and where.
    """
    _check(env, env.num_envs >= 1, f"num_envs must be at least 1, it is {env.num_envs}")
    seen = policy_space(env.source_observation_space)
    _check(
        env,
        seen == env.observation_space,
        f"observation_space is {env.observation_space}, but source_observation_space "
        f"{env.source_observation_space} makes it {seen}",
    )
    actions = _actions(env, steps, seed)
    first = _copied(env.reset(seed))
    _check_array(env, "reset", first, (env.num_envs, *seen.shape), seen.dtype)
    _check(env, _same(first, env.reset(seed)), "two resets with one seed differ")
    try:
        staggered = env.reset(seed, stagger=True)
    except TypeError as error:
        raise BadEnvironmentError(
            f"{env.id}: reset must take the keyword stagger, it said: {error}"
        ) from error
    _check(env, _same(first, staggered), "a staggered reset must begin as a plain one does")
    _check(
        env,
        _same(first, env.reset([seed + i for i in range(env.num_envs)])),
        "reset(seed) must be reset with the list seed, seed + 1, ...",
    )
    if env.num_envs > 1:
        shifted = env.reset(seed + 1)
        _check(
            env,
            _same(shifted[:-1], first[1:]),
            "environment i must be seeded with seed + i, so reset(seed + 1) is reset(seed) shifted",
        )
    before = env.reset(seed)
    middle, saved, snapshot = steps // 2, {}, {}
    trail: list[Step] = []
    for t, action in enumerate(actions):
        if t == middle:
            saved = env.state()
            snapshot = copy.deepcopy(saved)
            _check_leaves(env, saved, "state()")
        step = env.step(action)
        _check_step(env, step, t)
        trail.append(_kept(step))
    _check(env, _equal(saved, snapshot), "a state changed while the environment was stepped")

    before = env.restore(saved)
    expected = trail[middle - 1].observation if middle else first
    _check(env, _same(before, expected), "restore did not return the observation that was saved")
    _replay(env, actions[middle:], trail[middle:], "after restore")
    env.reset(seed)
    _replay(env, actions, trail, "after a second reset with the same seed")
    return int(sum((step.terminated | step.truncated).sum() for step in trail))


def _actions(env: VectorEnv, steps: int, seed: int) -> list[Array]:
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return [
        np.stack([np.asarray(space.sample()) for _ in range(env.num_envs)]) for _ in range(steps)
    ]


def _check_step(env: VectorEnv, step: Step, t: int) -> None:
    count, seen = env.num_envs, env.observation_space
    shape = (count, *(seen.shape or ()))
    _check_array(env, f"observation of step {t}", step.observation, shape, seen.dtype)
    _check_array(env, f"final_observation of step {t}", step.final_observation, shape, seen.dtype)
    _check_array(env, f"reward of step {t}", step.reward, (count,), np.float64)
    _check_array(env, f"terminated of step {t}", step.terminated, (count,), bool)
    _check_array(env, f"truncated of step {t}", step.truncated, (count,), bool)
    _check_array(env, f"shortened of step {t}", step.shortened, (count,), bool)
    if step.true_reward is not None:
        name = f"true_reward of step {t}"
        _check_array(env, name, step.true_reward, (count,), np.float64)
    running = ~(step.terminated | step.truncated)
    _check(
        env,
        _same(step.observation[running], step.final_observation[running]),
        f"at step {t} an episode goes on, but its final_observation is not its observation",
    )
    _check(
        env,
        (step.final_observation is step.observation) == bool(running.all()),
        f"at step {t} final_observation must be the same array as observation exactly when no "
        "episode ended",
    )


def _replay(env: VectorEnv, actions: list[Array], trail: list[Step], when: str) -> None:
    for t, (action, expected) in enumerate(zip(actions, trail, strict=True)):
        step = env.step(action)
        for name in Step._fields:
            _check(
                env,
                _equal(getattr(step, name), getattr(expected, name)),
                f"{when}, {name} differs {t + 1} steps later",
            )


def _check_leaves(env: VectorEnv, value: Any, path: str) -> None:
    """States must go into any checkpoint: nested dicts of arrays of numbers, ints and strings."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check(env, isinstance(key, str), f"{path} has the key {key!r}, not a string")
            _check_leaves(env, part, f"{path}[{key!r}]")
        return
    fits = isinstance(value, int | str) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    )
    _check(env, fits, f"{path} holds a {type(value).__name__}; arrays, ints and strings are fit")


def _check_array(env: VectorEnv, name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    got = (getattr(array, "shape", None), getattr(array, "dtype", None))
    _check(
        env,
        got == (shape, np.dtype(dtype)),
        f"{name} has shape {got[0]} and dtype {got[1]}, not {shape} and {np.dtype(dtype)}",
    )


def _check(env: VectorEnv, kept: bool, broken: str) -> None:
    if not kept:
        raise BadEnvironmentError(f"{env.id}: {broken}")


def _copied(array: Array) -> Array:
    return np.array(array)


def _kept(step: Step) -> Step:
    arrays: dict[str, Any] = {
        k: _copied(v) for k, v in step._asdict().items() if isinstance(v, np.ndarray)
    }
    return step._replace(**arrays)


def _same(one: Array, other: Array) -> bool:
    """Equality of bits: NaN equals itself, 0.0 is not -0.0."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return _same(one, other)
    return bool(one is other or one == other)
