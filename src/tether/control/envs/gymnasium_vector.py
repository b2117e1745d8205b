"""The Gymnasium backend: any environments behind the vector protocol, resumable bit for bit.

A Gymnasium environment cannot be asked for its state. But what a deterministic environment does is
decided by the seed of its episode and the actions since. So every episode is reset with a seed of
its own, the actions of the running episode are kept, and :meth:`GymnasiumVectorEnv.restore` plays
them again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from tether.control.envs.arrays import (
    Array,
    Space,
    action_batch,
    check_action_space,
    observation_writer,
    policy_space,
)
from tether.control.envs.faults import environment_fault
from tether.control.envs.protocol import (
    NO_LIMIT,
    NO_STATISTICS,
    Step,
    check_state,
    environment_seeds,
    first_limits,
    restored_limits,
)
from tether.errors import BadEnvironmentError, UserError


def episode_seed(seed: int, episode: int) -> int:
    """The seed with which episode ``episode`` of an environment seeded with ``seed`` is reset.

    The first episode gets ``seed`` itself if it has at most 32 bits, and so is Gymnasium's own.
    Every other gets 31 bits of NumPy's SeedSequence of both numbers: few enough for environments
    that pass their seed on to a C library or to ``numpy.random.seed``, and unrelated between
    episodes and seeds.

    Args:
        seed: the environment's seed, >= 0.
        episode: how many episodes came before, >= 0.

    Returns:
        A seed in [0, 2^31), or ``seed`` when ``episode`` is 0 and ``seed`` below 2^32.
    """
    if episode == 0 and seed < 2**32:
        return seed
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0] >> 1)


class GymnasiumVectorEnv:
    """N Gymnasium environments stepped one after another.

    A :class:`~tether.control.envs.protocol.VectorEnv`. Every episode is reset with
    :func:`episode_seed` of its environment's seed, so that episode 0 of environment i is what
    Gymnasium gives for ``reset(seed=seed + i)``.

    Attributes:
        dt: seconds of one step, where the environments say so.
        episode_limit: steps of a whole episode; `NO_LIMIT` where no time limit is known.
    """

    def __init__(
        self, envs: Sequence[gymnasium.Env[Any, Any]], name: str, owned: bool = True
    ) -> None:
        """Take N environments of one kind.

        Args:
            envs: N separate environments with equal spaces.
            name: what messages and states call them.
            owned: whether :meth:`close` closes them.

        Raises:
            BadEnvironmentError: a space is not supported, or the environments differ.
        """
        self.id = name
        self.num_envs = len(envs)
        self._envs = list(envs)
        self._owned = owned
        self.source_observation_space: Space = envs[0].observation_space
        self.action_space: Space = envs[0].action_space
        self.dt: float | None = getattr(envs[0].unwrapped, "dt", None)
        spec = envs[0].spec
        self.episode_limit = NO_LIMIT if spec is None else spec.max_episode_steps or NO_LIMIT
        for env in envs:
            same = (
                env.observation_space == self.source_observation_space
                and env.action_space == self.action_space
            )
            if not same:
                raise BadEnvironmentError(
                    f"{name}: the {len(envs)} environments made do not have the same spaces"
                )
        try:
            seen = policy_space(self.source_observation_space)
            check_action_space(self.action_space)
        except BadEnvironmentError as error:
            raise BadEnvironmentError(f"{name}: {error}") from None
        self.observation_space: Space = seen
        self._write = observation_writer(self.source_observation_space)
        shape = (self.num_envs, *seen.shape)
        self._observation = np.zeros(shape, seen.dtype)
        self._final = np.zeros_like(self._observation)
        self._rows = list(self._observation)
        self._reward = np.zeros(self.num_envs)
        self._terminated = np.zeros(self.num_envs, bool)
        self._truncated = np.zeros(self.num_envs, bool)
        self._never = np.zeros(self.num_envs, bool)
        # What was meant, once the environments have reported it, and what they say at an end.
        self._true_reward: Array | None = None
        self._infos: dict[int, Any] = {}
        self._returns = np.zeros(self.num_envs)
        self._seeds: list[int] = []
        self._episodes = np.zeros(self.num_envs, np.int64)
        # Where the running episodes are cut, beside what the environments do themselves.
        self._limits = np.full(self.num_envs, NO_LIMIT)
        # Per environment, the actions since its last reset.
        self._actions: list[list[Array]] = [[] for _ in envs]

    def reset(self, seed: int | Sequence[int], *, stagger: bool = False) -> Array:
        """Begin anew, environment i with seed + i or seed[i]; returns the observation (N, *obs)."""
        self._seeds = environment_seeds(seed, self.num_envs)
        self._episodes[...] = 0
        for i in range(self.num_envs):
            self._begin(i)
        spec = self._envs[0].spec
        if stagger and spec is not None and spec.max_episode_steps:
            limits = first_limits(spec.max_episode_steps, self.num_envs)
            self._limits[...] = np.where(limits < spec.max_episode_steps, limits, NO_LIMIT)
        return self._observation

    def step(self, action: Array) -> Step:
        """Act with (N, *action); see :class:`~tether.control.envs.protocol.Step`."""
        if not self._seeds:
            raise UserError(f"{self.id}: call reset(seed) before step")
        # Two copies, for an environment may write into the action it is given.
        kept = np.array(action_batch(action, self.action_space, self.num_envs))
        given = kept.copy()
        ended = []
        for i in range(self.num_envs):
            self._actions[i].append(kept[i])
            if self._step_one(i, given[i]):
                ended.append(i)
        observation = final = self._observation
        shortened, statistics = self._never, NO_STATISTICS
        if ended:
            final = self._final
            final[...] = observation
            shortened = self._never.copy()
            shortened[ended] = self._limits[ended] < NO_LIMIT
            said = {i: episode_statistics(self.id, self._infos[i]) for i in ended}
            statistics = {i: numbers for i, numbers in said.items() if numbers} or statistics
            for i in ended:
                self._episodes[i] += 1
                self._begin(i)
        return Step(
            observation,
            self._reward,
            self._terminated,
            self._truncated,
            final,
            shortened,
            self._true_reward,
            statistics,
        )

    def state(self) -> dict[str, Any]:
        """Seeds, episode numbers and the actions of the running episodes, copied."""
        if not self._seeds:
            raise UserError(f"{self.id}: there is no state to save before reset(seed)")
        shape = self.action_space.shape or ()
        actions = [action for episode in self._actions for action in episode]
        return {
            "backend": "gymnasium",
            "id": self.id,
            "seeds": np.array(self._seeds, np.uint64),
            "episodes": self._episodes.copy(),
            "lengths": np.array([len(episode) for episode in self._actions], np.int64),
            "limits": self._limits.copy(),
            "actions": np.array(actions, self.action_space.dtype).reshape(len(actions), *shape),
            "returns": self._returns.copy(),
            "observation": self._observation.copy(),
        }

    def restore(self, state: dict[str, Any]) -> Array:
        """Play the running episodes again from their seeds; returns the observation (N, *obs).

        It costs as many steps as the running episodes are long. A warning is given when an
        environment does not come back to the saved observation and return bit for bit: it is not
        deterministic, so the continuation differs from what would have followed.

        Raises:
            UserError: the state belongs to another environment or N.
        """
        lengths = np.asarray(state.get("lengths"))
        total = int(lengths.sum()) if lengths.dtype == np.int64 and (lengths >= 0).all() else 0
        expected = {
            "seeds": np.empty(self.num_envs, np.uint64),
            "episodes": self._episodes,
            "lengths": self._episodes,
            "actions": np.empty((total, *(self.action_space.shape or ())), self.action_space.dtype),
            "returns": self._returns,
            "observation": self._observation,
        }
        check_state(state, "gymnasium", self.id, expected)
        limits = restored_limits(state, np.full(self.num_envs, NO_LIMIT))
        self._seeds = [int(seed) for seed in state["seeds"]]
        self._episodes[...] = state["episodes"]
        actions = np.split(np.array(state["actions"]), np.cumsum(lengths)[:-1])
        lost = [i for i in range(self.num_envs) if not self._replay(i, actions[i], state)]
        self._limits[...] = limits
        if lost:
            warnings.warn(
                f"{self.id} is not deterministic: environments {lost} did not come back to their "
                "saved observations, so this resume is not bit-exact",
                stacklevel=2,
            )
        return self._observation

    def close(self) -> None:
        """Close the environments, but for an instance that is the user's own."""
        if self._owned:
            for env in self._envs:
                env.close()

    def _replay(self, i: int, actions: Array, state: dict[str, Any]) -> bool:
        """Whether environment i came back to its saved observation and return."""
        self._begin(i)
        for action in actions:
            self._actions[i].append(action)
            if self._step_one(i, np.array(action)[()]):
                self._episodes[i] += 1
                self._begin(i)
                return False
        same_return: bool = self._returns[i].tobytes() == state["returns"][i].tobytes()
        return same_return and self._rows[i].tobytes() == state["observation"][i].tobytes()

    def _begin(self, i: int) -> None:
        """Start the next episode of environment i."""
        seed = episode_seed(self._seeds[i], int(self._episodes[i]))
        try:
            outcome = self._envs[i].reset(seed=seed)
        except Exception as error:
            fault = environment_fault(self.id, "reset", error)
            if fault is error:
                raise
            raise fault from error
        if not isinstance(outcome, tuple) or len(outcome) != 2:
            raise BadEnvironmentError(
                f"{self.id}: reset must return (observation, info), got {_describe(outcome)}"
            )
        problem = self._write(self._rows[i], outcome[0])
        if problem is not None:
            raise BadEnvironmentError(f"{self.id}: at reset {problem}")
        self._actions[i] = []
        self._returns[i] = 0.0
        self._limits[i] = NO_LIMIT

    def _step_one(self, i: int, action: Any) -> bool:
        """Step environment i, write what it gave into row i; whether its episode ended."""
        try:
            outcome = self._envs[i].step(action)
        except Exception as error:
            fault = environment_fault(self.id, "step", error)
            if fault is error:
                raise
            raise fault from error
        if not isinstance(outcome, tuple) or len(outcome) != 5:
            raise BadEnvironmentError(
                f"{self.id}: step must return (observation, reward, terminated, truncated, info), "
                f"got {_describe(outcome)}"
            )
        observation, reward, terminated, truncated, info = outcome
        problem = self._write(self._rows[i], observation)
        if problem is not None:
            raise BadEnvironmentError(f"{self.id}: at step {len(self._actions[i])} {problem}")
        self._reward[i] = reward if type(reward) is float else self._number(reward)
        self._returns[i] += self._reward[i]
        if self._true_reward is not None or (type(info) is dict and "true_reward" in info):
            self._take_truth(i, info)
        ended = terminated if type(terminated) is bool else self._flag("terminated", terminated)
        cut = truncated if type(truncated) is bool else self._flag("truncated", truncated)
        cut = cut or len(self._actions[i]) >= self._limits[i]
        self._terminated[i], self._truncated[i] = ended, cut
        if ended or cut:
            self._infos[i] = info
            return True
        return False

    def _take_truth(self, i: int, info: Any) -> None:
        if self._true_reward is None:
            self._true_reward = np.zeros(self.num_envs)
        if not isinstance(info, dict) or "true_reward" not in info:
            raise BadEnvironmentError(
                f"{self.id}: info['true_reward'] was reported before and not at step "
                f"{len(self._actions[i])}; report it at every step"
            )
        self._true_reward[i] = self._number(info["true_reward"], "info['true_reward']")

    def _number(self, reward: Any, name: str = "the reward") -> float:
        if isinstance(reward, int | float | np.number) or np.shape(reward) == ():
            try:
                return float(reward)
            except (TypeError, ValueError):
                pass
        raise BadEnvironmentError(f"{self.id}: {name} must be one number, got {_describe(reward)}")

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, bool | np.bool_) or (np.shape(value) == () and value in (0, 1)):
            return bool(value)
        raise BadEnvironmentError(f"{self.id}: {name} must be a bool, got {_describe(value)}")


def episode_statistics(name: str, info: Any) -> dict[str, float]:
    """The numbers in ``info["statistics"]`` of an episode's last step; none where it has none.

    Raises:
        BadEnvironmentError: they are no dictionary of numbers.
    """
    given = info.get("statistics", {}) if isinstance(info, dict) else {}
    try:
        return {str(key): float(value) for key, value in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadEnvironmentError(
            f"{name}: info['statistics'] must be a dictionary of numbers, got {_describe(given)}"
        ) from None


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
