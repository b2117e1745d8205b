"""The one protocol behind which every environment stands: N copies stepped in lockstep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np

from tether.control.envs.arrays import Array
from tether.errors import UserError

NO_LIMIT: Final = int(np.iinfo(np.int64).max)
"""Steps of an episode that no time limit cuts."""


NO_STATISTICS: Final[Mapping[int, Mapping[str, float]]] = MappingProxyType({})
"""What the environments say of the episodes that ended, where none did or they say nothing."""


class Step(NamedTuple):
    """What one step of N environments gave. Arrays are valid until the next call.

    An episode that ends is followed at once by the reset of its environment, within the same
    step, so a reset never counts as a step. ``observation`` is then the first observation of the
    next episode, and ``final_observation`` still holds the true s_{t+1}, from which a time limit
    bootstraps.

    Attributes:
        observation: (N, *obs), what the policy sees next.
        reward: (N,) float64.
        terminated: (N,) bool, the task itself ended: the value of s_{t+1} is zero.
        truncated: (N,) bool, a time limit cut the episode: s_{t+1} has a value.
        final_observation: (N, *obs), the true s_{t+1} of every environment; the same array object
            as ``observation`` when no episode ended.
        shortened: (N,) bool, an episode ended whose time limit ``reset(stagger=True)`` had brought
            forward: however it ended, its return and length are not those of the task.
        true_reward: (N,) float64, what was meant where ``reward`` pays something else: Gymnasium's
            ``info["true_reward"]``. It is measured and never learned from. None where the
            environments do not report it.
        statistics: by the index of each environment whose episode ended, numbers about that
            episode: Gymnasium's ``info["statistics"]`` of its last step.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    shortened: Array
    true_reward: Array | None = None
    statistics: Mapping[int, Mapping[str, float]] = NO_STATISTICS


class GoesOn(NamedTuple):
    """How a task goes on after it would have ended an episode, instead of ending it.

    The end is then a time limit, from which the policy bootstraps, so that it tells nothing.

    Attributes:
        reward: what each step earns after which the task would have ended the episode, in place of
            its own reward. A robot that is falling would else be paid for the speed of its fall,
            and the policy, which bootstraps where the episode is cut, would learn to dive.
        steps: of which so many in an episode truncate it.
    """

    reward: float
    steps: int


@runtime_checkable
class VectorEnv(Protocol):
    """N environments of one kind, stepped in lockstep, with a state that can be saved.

    Attributes:
        id: the environment's name.
        num_envs: N.
        observation_space: of one environment as the policy sees it: a Box vector (D,) or a uint8
            image Box (H, W, C).
        action_space: of one environment: Box, Discrete, MultiDiscrete or MultiBinary.
        source_observation_space: of one environment before flattening.
    """

    id: str
    num_envs: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    source_observation_space: gymnasium.Space[Any]

    def reset(self, seed: int | Sequence[int], *, stagger: bool = False) -> Array:
        """Begin anew. Returns the (N, *obs) observation.

        As in Gymnasium's vector environments, an integer seeds environment i with seed + i, and a
        sequence of N integers gives each environment its own. Training gives N seeds that no other
        training shares.

        With `stagger`, a time limit of L steps truncates the first episode of environment i after
        :func:`first_limits` steps, so that N environments do not pass through their episodes in
        step. Environments whose time limit is not known (Gymnasium's ``spec.max_episode_steps``)
        are left alone.
        """
        ...

    def step(self, action: Array) -> Step:
        """Act with (N, *action), elements of ``action_space`` (a Discrete's start included)."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that decides the future: nested dicts of arrays, ints and strings, copied."""
        ...

    def restore(self, state: dict[str, Any]) -> Array:
        """Continue bit for bit from a :meth:`state`; returns the current observation."""
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...


def first_limits(limit: int, num_envs: int) -> Array:
    """Time limits of staggered first episodes: ceil(limit (i + 1) / N), (N,) int64.

    Only the last environment's, or where N exceeds `limit` those of the last few, are whole.
    """
    return -(-limit * np.arange(1, num_envs + 1, dtype=np.int64) // num_envs)


def restored_limits(state: Mapping[str, Any], usual: Array) -> Array:
    """The running episodes' time limits in a saved state; `usual` (N,) where it does not say.

    Raises:
        UserError: there are not N of them.
    """
    limits = np.asarray(state.get("limits", usual))
    if limits.shape != usual.shape or limits.dtype != usual.dtype:
        raise UserError(
            f"the saved state has time limits of shape {limits.shape} and dtype {limits.dtype}; "
            f"these environments need {usual.shape} and {usual.dtype}"
        )
    return limits


def check_state(
    state: Mapping[str, Any], backend: str, env_id: str, expected: Mapping[str, Array]
) -> None:
    """Raise unless a saved state belongs to this kind of environment and has its shapes.

    Args:
        state: the state to check.
        backend: "mujoco" or "gymnasium".
        env_id: the id of the environment that is to continue.
        expected: arrays that the state must match, name by name, in shape and dtype.

    Raises:
        UserError: the state is of another backend, environment or shape; the message says which.
    """
    # Checkpoints of the first version call the backend a door.
    known = {"backend": state.get("backend", state.get("door")), "id": state.get("id")}
    for name, value in (("backend", backend), ("id", env_id)):
        if known[name] != value:
            raise UserError(
                f"the saved environment state has {name} {known[name]!r}, not {value!r}"
            )
    for name, like in expected.items():
        array = state.get(name)
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        if shape != like.shape or dtype != like.dtype:
            raise UserError(
                f"the saved state of {env_id} has {name} of shape {shape} and dtype {dtype}; "
                f"these environments need {like.shape} and {like.dtype}"
            )


def environment_seeds(seed: int | Sequence[int], num_envs: int) -> list[int]:
    """The seeds of N environments: seed + i, or the integers of a sequence.

    Raises:
        UserError: a seed is no integer from 0 to 2^64 - 1, or there are not N of them.
    """
    if isinstance(seed, list | tuple | np.ndarray):
        seeds = [_check_seed(one) for one in seed]
        if len(seeds) != num_envs:
            raise UserError(
                f"reset got {len(seeds)} seeds for {num_envs} environments; expected one for each, "
                "or a single integer"
            )
        return seeds
    first = _check_seed(seed)
    return [_check_seed(first + i) for i in range(num_envs)]


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise UserError(f"a seed is an integer from 0 to 2^64 - 1, got {seed!r}")
    return int(seed)
