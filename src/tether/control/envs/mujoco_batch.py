"""The MuJoCo backend: N of Gymnasium's MuJoCo v5 environments at once, equal bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.humanoidstandup_v5 import HumanoidStandupEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from gymnasium.utils import seeding
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from tether.control.envs import mujoco_fixed, mujoco_hacking, mujoco_planar, mujoco_spatial
from tether.control.envs.arrays import Array, Space, action_batch, policy_space
from tether.control.envs.mujoco_task import Task
from tether.control.envs.protocol import (
    NO_LIMIT,
    NO_STATISTICS,
    GoesOn,
    Step,
    check_state,
    environment_seeds,
    first_limits,
    restored_limits,
)
from tether.control.hacking.gate_cheetah import GateCheetah
from tether.control.hacking.sleeping_walker import SleepingWalker
from tether.control.tumbling.hopper import TumblingHopper
from tether.errors import UserError

# By class, not by id: a re-registered id may be anything, and a subclass may change the rules.
_TASKS: dict[type[Any], type[Task]] = {
    HalfCheetahEnv: mujoco_planar.HalfCheetah,
    HopperEnv: mujoco_planar.Hopper,
    Walker2dEnv: mujoco_planar.Walker2d,
    SwimmerEnv: mujoco_planar.Swimmer,
    ReacherEnv: mujoco_fixed.Reacher,
    PusherEnv: mujoco_fixed.Pusher,
    InvertedPendulumEnv: mujoco_fixed.InvertedPendulum,
    InvertedDoublePendulumEnv: mujoco_fixed.InvertedDoublePendulum,
    AntEnv: mujoco_spatial.Ant,
    HumanoidEnv: mujoco_spatial.Humanoid,
    HumanoidStandupEnv: mujoco_spatial.HumanoidStandup,
    GateCheetah: mujoco_hacking.GateCheetah,
    SleepingWalker: mujoco_hacking.SleepingWalker,
    TumblingHopper: mujoco_planar.TumblingHopper,
}
_MASK64 = (1 << 64) - 1


def task_of(env: gymnasium.Env[Any, Any]) -> type[Task] | None:
    """The rules that reproduce a Gymnasium environment exactly, or None.

    Only the environments' own classes under the wrappers of a plain ``gymnasium.make`` qualify:
    a subclass or any other wrapper may change what is observed or rewarded.
    """
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
            return None
        env = env.env
    return _TASKS.get(type(env))


class MujocoVectorEnv:
    """N environments of one MuJoCo v5 task; a :class:`~tether.control.envs.vector.VectorEnv`.

    Observations, rewards and flags equal those of N Gymnasium environments bit for bit, resets
    included, at any number of threads; only `stagger` and `goes_on`, which Gymnasium does
    not have, end episodes elsewhere.

    Attributes:
        dt: seconds of one step.
        episode_limit: steps of a whole episode; `NO_LIMIT` where no time limit cuts it.
        coordinates: (N, nq + nv), MuJoCo's positions and velocities as they stand, live.
        positions: nq.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        num_envs: int,
        threads: int = 1,
        goes_on: GoesOn | None = None,
    ) -> None:
        """Reproduce a Gymnasium environment N times.

        Args:
            env: made by ``gymnasium.make``; its weights, model and time limit are read, and the
                environment itself is left alone.
            num_envs: N.
            threads: how many threads step the physics, the caller's included.
            goes_on: how episodes go on that the task would have ended; None: it ends them.

        Raises:
            UserError: no task of this backend reproduces the environment.
        """
        task = task_of(env)
        if task is None:
            raise UserError(
                f"{env} is none of the MuJoCo v5 tasks of backend 'mujoco'; use backend='gymnasium'"
            )
        inner: Any = env.unwrapped
        assert env.spec is not None
        self.id = env.spec.id
        self.num_envs = num_envs
        self.source_observation_space: Space = env.observation_space
        seen = policy_space(env.observation_space)
        self.observation_space: Space = seen
        self.action_space: Space = env.action_space
        self._limit = _time_limit(env)
        self._limits = np.full(num_envs, self._limit)  # of the running episodes
        self._one = np.ones(num_envs, np.int64)
        self._substeps: int = inner.frame_skip
        self._physics = task.stepper(inner.model, num_envs, threads)
        self._task = task(inner, self._physics)
        self._goes_on = goes_on
        self._bad = np.zeros(num_envs, np.int64)  # steps in need of an end, of the running episodes
        self.dt = float(inner.dt)
        self.episode_limit = self._limit
        self.coordinates: Array = self._physics.coordinates
        self.positions: int = self._physics.qpos.shape[1]
        self._generators: list[np.random.Generator] = []
        self._elapsed = np.zeros(num_envs, np.int64)
        self._observation = np.zeros((num_envs, *seen.shape))
        self._final = np.zeros_like(self._observation)
        self._reward = np.zeros(num_envs)
        self._terminated = np.zeros(num_envs, bool)
        self._truncated = np.zeros(num_envs, bool)
        self._ended = np.zeros(num_envs, bool)
        self._never = np.zeros(num_envs, bool)

    def reset(self, seed: int | Sequence[int], *, stagger: bool = False) -> Array:
        """Begin anew, environment i with seed + i or seed[i]; returns the observation (N, D)."""
        seeds = environment_seeds(seed, self.num_envs)
        self._generators = [seeding.np_random(one)[0] for one in seeds]
        self._begin(np.arange(self.num_envs, dtype=np.int32))
        if stagger and self._limit < NO_LIMIT:
            self._limits[...] = first_limits(self._limit, self.num_envs)
        return self._observation

    def step(self, action: Array) -> Step:
        """Act with (N, nu); see :class:`~tether.control.envs.vector.Step`."""
        if not self._generators:
            raise UserError(f"{self.id}: call reset(seed) before step")
        action = action_batch(action, self.action_space, self.num_envs)
        self._physics.ctrl[...] = action
        self._physics.step(self._substeps)
        observation = final = self._observation
        shortened, statistics = self._never, NO_STATISTICS
        self._task.observe(observation)
        self._task.score(action, self._reward, self._terminated)
        self._elapsed += self._one
        np.greater_equal(self._elapsed, self._limits, out=self._truncated)
        if self._goes_on is not None:
            self._reward[self._terminated] = self._goes_on.reward
            self._bad += self._terminated
            self._truncated |= self._bad >= self._goes_on.steps
            self._terminated[...] = False
        np.logical_or(self._terminated, self._truncated, out=self._ended)
        if np.count_nonzero(self._ended):
            final = self._final
            final[...] = observation
            shortened = self._ended & (self._limits < self._limit)
            ids = np.flatnonzero(self._ended).astype(np.int32)
            said = {i: self._task.statistics(i) for i in ids.tolist()}
            statistics = {i: numbers for i, numbers in said.items() if numbers} or statistics
            self._begin(ids)
        return Step(
            observation,
            self._reward,
            self._terminated,
            self._truncated,
            final,
            shortened,
            self._task.true_reward,
            statistics,
        )

    def state(self) -> dict[str, Any]:
        """Physics, episode clocks, generators and the current observation, copied."""
        if not self._generators:
            raise UserError(f"{self.id}: there is no state to save before reset(seed)")
        return {
            "backend": "mujoco",
            "id": self.id,
            "physics": self._physics.state(),
            "position": self._task.position.copy(),
            "elapsed": self._elapsed.copy(),
            "limits": self._limits.copy(),
            "bad": self._bad.copy(),
            "generators": np.stack([_generator_words(g) for g in self._generators]),
            "observation": self._observation.copy(),
        }

    def restore(self, state: dict[str, Any]) -> Array:
        """Continue bit for bit; returns the current observation (N, D).

        Raises:
            UserError: the state belongs to another environment, N or model.
        """
        expected = {
            "physics": self._physics.state(),
            "position": self._task.position,
            "elapsed": self._elapsed,
            "generators": np.empty((self.num_envs, 6), np.uint64),
            "observation": self._observation,
        }
        check_state(state, "mujoco", self.id, expected)
        limits = restored_limits(state, np.full(self.num_envs, self._limit))
        self._physics.restore(state["physics"])
        self._task.position[...] = state["position"]
        self._elapsed[...] = state["elapsed"]
        self._limits[...] = limits
        self._bad[...] = state.get("bad", 0)
        self._generators = [_generator(words) for words in state["generators"]]
        self._observation[...] = state["observation"]
        return self._observation

    def close(self) -> None:
        """Stop the threads."""
        self._physics.close()

    def _begin(self, ids: Array) -> None:
        """Start the next episode of environments ``ids``, and observe."""
        starts = [self._task.draw(self._generators[i]) for i in ids.tolist()]
        qpos, qvel = (np.stack(column) for column in zip(*starts, strict=True))
        self._physics.place(ids, qpos, qvel)
        self._elapsed[ids] = 0
        self._bad[ids] = 0
        self._limits[ids] = self._limit
        # Both are functions of the simulations as they stand, so running environments keep theirs.
        self._task.locate()
        self._task.begin(ids)
        self._task.observe(self._observation)


def _time_limit(env: gymnasium.Env[Any, Any]) -> int:
    """Steps after which Gymnasium's TimeLimit truncates; beyond reach when there is none."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            assert env.spec is not None
            return int(env.spec.max_episode_steps or 0)
        env = env.env
    return NO_LIMIT


def _generator_words(generator: np.random.Generator) -> Array:
    """(6,) uint64: the whole state of a PCG64 generator, its 128-bit numbers in halves."""
    state = generator.bit_generator.state
    value, increment = state["state"]["state"], state["state"]["inc"]
    words = [value >> 64, value & _MASK64, increment >> 64, increment & _MASK64]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def _generator(words: Array) -> np.random.Generator:
    value_high, value_low, inc_high, inc_low, has_uint32, uinteger = words.tolist()
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": value_high << 64 | value_low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
