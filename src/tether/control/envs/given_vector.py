"""A vector environment of the user's own behind the vector protocol.

Gymnasium's vector environments begin the next episode in one of three ways (its `AutoresetMode`):
in the step that follows an end, in the same step, or when they are asked to. Here every end is
followed by a reset within the same step, and the true last observation is kept.

Those that can reset some of their environments with seeds (``options={"reset_mask": ...}``, as
`SyncVectorEnv` and `AsyncVectorEnv` do) get a seed for every episode, and are resumable bit for bit
as :mod:`tether.control.envs.gymnasium_vector` is. The others must begin the next episode in the
same step, and a resume begins new episodes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from tether.control.envs.arrays import (
    Array,
    Space,
    action_batch,
    check_action_space,
    observation_writer,
    policy_space,
)
from tether.control.envs.faults import environment_fault
from tether.control.envs.gymnasium_vector import episode_seed
from tether.control.envs.protocol import (
    NO_LIMIT,
    Step,
    VectorEnv,
    check_state,
    environment_seeds,
    first_limits,
    restored_limits,
)
from tether.errors import BadEnvironmentError, UserError


class BorrowedVectorEnv:
    """A vector environment of tether's protocol that stays its maker's to close."""

    def __init__(self, env: VectorEnv) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def close(self) -> None:
        """Leave the environment as it is."""


class GivenVectorEnv:
    """A :class:`gymnasium.vector.VectorEnv` as a :class:`~tether.control.envs.protocol.VectorEnv`.

    It is the user's to close.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        """Take a vector environment that nobody else steps.

        Raises:
            BadEnvironmentError: a space is not supported.
        """
        self._env = env
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        spec = _spec(env)
        self.id = _class_name(env) if spec is None else spec.id
        self._limit = NO_LIMIT if spec is None else spec.max_episode_steps or NO_LIMIT
        self.num_envs = env.num_envs
        self.source_observation_space: Space = env.single_observation_space
        self.action_space: Space = env.single_action_space
        try:
            seen = policy_space(self.source_observation_space)
            check_action_space(self.action_space)
        except BadEnvironmentError as error:
            raise BadEnvironmentError(f"{self.id}: {error}") from None
        self.observation_space: Space = seen
        self._write = observation_writer(self.source_observation_space)
        self._observation = np.zeros((self.num_envs, *seen.shape), seen.dtype)
        self._final = np.zeros_like(self._observation)
        self._never = np.zeros(self.num_envs, bool)
        # Whether episodes can be begun one by one, with seeds; known after the first reset.
        self._seeded: bool | None = None
        self._seeds: list[int] = []
        self._episodes = np.zeros(self.num_envs, np.int64)
        self._returns = np.zeros(self.num_envs)
        self._limits = np.full(self.num_envs, NO_LIMIT)
        self._actions: list[list[Array]] = [[] for _ in range(self.num_envs)]
        self._steps = 0
        self._true_reward: Array | None = None
        # Episodes that stand in for those which a resume could not continue.
        self._replacing = np.zeros(self.num_envs, bool)

    def reset(self, seed: int | Sequence[int], *, stagger: bool = False) -> Array:
        """Begin anew, environment i with seed + i or seed[i]; returns the observation (N, *obs).

        Environments that cannot be reset one by one get the first seed, and seed themselves by it.
        """
        self._seeds = environment_seeds(seed, self.num_envs)
        if self._seeded is None:
            self._seeded = self._can_reset_some()
        self._begin_all(self._first_seeds())
        if stagger and self._seeded and self._limit < NO_LIMIT:
            limits = first_limits(self._limit, self.num_envs)
            self._limits[...] = np.where(limits < self._limit, limits, NO_LIMIT)
        return self._observation

    def step(self, action: Array) -> Step:
        """Act with (N, *action); see :class:`~tether.control.envs.protocol.Step`."""
        if not self._seeds:
            raise UserError(f"{self.id}: call reset(seed) before step")
        kept = np.array(action_batch(action, self.action_space, self.num_envs))
        for i in range(self.num_envs):
            self._actions[i].append(kept[i])
        reward, terminated, truncated, finals = self._advance(kept)
        self._steps += self.num_envs
        self._returns += reward
        lengths = np.array([len(actions) for actions in self._actions])
        truncated |= (lengths >= self._limits) & ~terminated
        ended = terminated | truncated
        observation = final = self._observation
        shortened = self._never
        if ended.any():
            final = self._final
            final[...] = observation
            for i, last in finals.items():
                self._put(final, i, last)
            shortened = ended & ((self._limits < NO_LIMIT) | self._replacing)
            self._begin(ended)
        truth = self._true_reward
        return Step(observation, reward, terminated, truncated, final, shortened, truth)

    def state(self) -> dict[str, Any]:
        """Seeds, episode numbers and the actions of the running episodes, copied."""
        if not self._seeds:
            raise UserError(f"{self.id}: there is no state to save before reset(seed)")
        shape = self.action_space.shape or ()
        actions = [action for episode in self._actions for action in episode] * bool(self._seeded)
        lengths = [len(episode) * bool(self._seeded) for episode in self._actions]
        return {
            "backend": "vector",
            "id": self.id,
            "seeds": np.array(self._seeds, np.uint64),
            "episodes": self._episodes.copy(),
            "lengths": np.array(lengths, np.int64),
            "limits": self._limits.copy(),
            "actions": np.array(actions, self.action_space.dtype).reshape(len(actions), *shape),
            "returns": self._returns.copy(),
            "observation": self._observation.copy(),
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> Array:
        """Play the running episodes again from their seeds; returns the observation (N, *obs).

        A warning is given when that cannot be done, and new episodes begin, whose ends are marked
        as `shortened`; or when an environment does not come back to where it was.

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
        check_state(state, "vector", self.id, expected)
        limits = restored_limits(state, np.full(self.num_envs, NO_LIMIT))
        self._seeds = [int(seed) for seed in state["seeds"]]
        self._steps = int(state["steps"])
        if self._seeded is None:
            self._seeded = self._can_reset_some()
        if not self._seeded:
            warnings.warn(
                f"{self.id} cannot save its state, so this resume begins new episodes: it is not "
                "bit-exact",
                stacklevel=2,
            )
            self._begin_all(episode_seed(self._seeds[0], self._steps + 1))
            self._replacing[...] = True
            return self._observation
        self._replay(np.split(np.array(state["actions"]), np.cumsum(lengths)[:-1]), state)
        self._limits[...] = limits
        return self._observation

    def close(self) -> None:
        """Leave the environments as they are."""

    def _advance(self, action: Array) -> tuple[Array, Array, Array, dict[int, Any]]:
        """One step of all; also the true last observations that are no longer in the batch."""
        try:
            outcome = self._env.step(action)
        except Exception as error:
            fault = environment_fault(self.id, "step", error)
            if fault is error:
                raise
            raise fault from error
        observation, reward, terminated, truncated, info = outcome
        self._write_all(observation)
        flags = [
            self._vector(name, a, bool)
            for name, a in (("terminated", terminated), ("truncated", truncated))
        ]
        finals: dict[int, Any] = {}
        if isinstance(info, dict) and ("true_reward" in info or self._true_reward is not None):
            self._true_reward = self._truth(info, flags[0] | flags[1])
        if self._mode == AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(flags[0] | flags[1]):
                last = info.get("final_obs", info.get("final_observation"))
                if last is None or last[i] is None:
                    raise BadEnvironmentError(
                        f"{self.id}: an episode ended and info['final_obs'] does not hold its last "
                        "observation, which autoreset in the same step must give"
                    )
                finals[int(i)] = last[i]
        return self._vector("reward", reward, float), flags[0], flags[1], finals

    def _truth(self, info: dict[str, Any], ended: Array) -> Array:
        """What was meant, from the infos of the steps; those of ended episodes may lie apart."""
        missing = np.full(self.num_envs, np.nan)
        truth = self._vector("info['true_reward']", info.get("true_reward", missing), float)
        final = info.get("final_info")
        if self._mode == AutoresetMode.SAME_STEP and isinstance(final, dict):
            last = self._vector("info['true_reward']", final.get("true_reward", missing), float)
            truth[ended] = last[ended]
        return truth

    def _first_seeds(self) -> int | list[int]:
        first = [episode_seed(seed, 0) for seed in self._seeds]
        return first if self._seeded and self.num_envs > 1 else first[0]

    def _begin_all(self, seed: int | list[int]) -> None:
        self._write_all(self._reset(seed=seed))
        self._episodes[...] = 0
        self._forget(np.ones(self.num_envs, bool))

    def _begin(self, ended: Array) -> None:
        """Start the next episode of the environments in `ended` (N,)."""
        self._episodes[ended] += 1
        self._forget(ended)
        if self._seeded:
            seeds = [
                episode_seed(self._seeds[i], int(self._episodes[i])) for i in range(self.num_envs)
            ]
            self._reset_some(ended, seeds)

    def _reset_some(self, some: Array, seeds: list[int]) -> None:
        before = self._observation.copy()
        given = [seeds[i] if some[i] else None for i in range(self.num_envs)]
        if self.num_envs == 1:
            observation = self._reset(seed=given[0])
        else:
            observation = self._reset(seed=given, options={"reset_mask": some.copy()})
        self._write_all(observation)
        if before[~some].tobytes() != self._observation[~some].tobytes():
            raise BadEnvironmentError(
                f"{self.id}: reset with options['reset_mask'] changed environments outside of the "
                "mask; make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP"
            )

    def _can_reset_some(self) -> bool:
        """Whether single environments can be reset with seeds, tried out in one step.

        Raises:
            BadEnvironmentError: they cannot, and the next episode would begin a step too late.
        """
        if self.num_envs == 1:
            return True
        seed = episode_seed(self._seeds[0], 0)
        some = np.arange(self.num_envs) == 0
        space = copy.deepcopy(self.action_space)
        space.seed(0)
        try:
            first = self._rows(self._reset(seed=seed))
            action = np.stack([np.asarray(space.sample()) for _ in range(self.num_envs)])
            stepped, _, terminated, truncated, _ = self._env.step(action)
            middle = self._rows(stepped)
            seeds: Any = [seed, *(None for _ in range(self.num_envs - 1))]
            observation = self._env.reset(seed=seeds, options={"reset_mask": some})[0]
            after = self._rows(observation)
            kept = ~(some | terminated | truncated)
            works = after[0].tobytes() == first[0].tobytes()
            works = works and after[kept].tobytes() == middle[kept].tobytes()
        except UserError:
            raise
        except Exception:
            # Whatever it says about a mask or a list of seeds that it does not know.
            works = False
        if not works and self._mode != AutoresetMode.SAME_STEP:
            raise BadEnvironmentError(
                f"{self.id} begins the next episode in the mode {self._mode.name} and cannot reset "
                "single environments by options['reset_mask']; make it with autoreset_mode="
                "gymnasium.vector.AutoresetMode.SAME_STEP, or give an id or a function as env"
            )
        return bool(works)

    def _replay(self, actions: list[Array], state: dict[str, Any]) -> None:
        """Play running episodes of different lengths so that all of them end up together."""
        count = self.num_envs
        episodes = np.array(state["episodes"])
        seeds = [episode_seed(self._seeds[i], int(episodes[i])) for i in range(count)]
        lengths = np.array([len(one) for one in actions])
        longest = int(lengths.max())
        idle = np.asarray(self.action_space.sample())
        self._begin_all(self._first_seeds())
        self._episodes[...] = episodes
        lost = np.zeros(count, bool)
        for t in range(longest + 1):
            starting = lengths == longest - t
            if starting.any():
                self._reset_some(starting, seeds)
                self._returns[starting] = 0.0
            if t == longest:
                break
            begun = lengths >= longest - t
            steps = [
                actions[i][t - (longest - lengths[i])] if begun[i] else idle for i in range(count)
            ]
            reward, terminated, truncated, _ = self._advance(np.stack(steps))
            self._returns += reward
            ended = terminated | truncated
            lost |= ended & begun
            if ended.any():
                self._reset_some(ended, seeds)
        self._actions = [list(one) for one in actions]
        lost |= self._returns != state["returns"]
        for i in range(count):
            lost[i] |= self._observation[i].tobytes() != state["observation"][i].tobytes()
        if lost.any():
            warnings.warn(
                f"{self.id} is not deterministic: environments {np.flatnonzero(lost).tolist()} did "
                "not come back to their saved observations, so this resume is not bit-exact",
                stacklevel=3,
            )

    def _forget(self, which: Array) -> None:
        for i in np.flatnonzero(which):
            self._actions[i] = []
        self._returns[which] = 0.0
        self._limits[which] = NO_LIMIT
        self._replacing[which] = False

    def _reset(self, **arguments: Any) -> Any:
        try:
            return self._env.reset(**arguments)[0]
        except Exception as error:
            fault = environment_fault(self.id, "reset", error)
            if fault is error:
                raise
            raise fault from error

    def _rows(self, observation: Any) -> Array:
        rows = np.zeros_like(self._observation)
        for i, one in enumerate(iterate(self._env.observation_space, observation)):
            self._put(rows, i, one)
        return rows

    def _write_all(self, observation: Any) -> None:
        for i, one in enumerate(iterate(self._env.observation_space, observation)):
            self._put(self._observation, i, one)

    def _put(self, rows: Array, i: int, observation: Any) -> None:
        problem = self._write(rows[i], observation)
        if problem is not None:
            raise BadEnvironmentError(f"{self.id}: environment {i}: {problem}")

    def _vector(self, name: str, array: Any, dtype: type) -> Array:
        found = np.asarray(array)
        if found.shape != (self.num_envs,):
            raise BadEnvironmentError(
                f"{self.id}: {name} has shape {found.shape}; expected ({self.num_envs},)"
            )
        # A copy: the environments may write the next step's into the same array.
        return np.array(found, dtype)


def _class_name(env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> str:
    """The class of one of the environments, or where they are not apart that of all."""
    inner = getattr(env.unwrapped, "envs", None)
    return type(inner[0].unwrapped if inner else env.unwrapped).__name__


def _spec(env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> Any:
    """What Gymnasium knows of one of the environments, or None."""
    if env.spec is not None:
        return env.spec
    inner = getattr(env.unwrapped, "envs", None)
    return inner[0].spec if inner else None
