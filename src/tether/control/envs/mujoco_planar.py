"""Runners: HalfCheetah, Hopper, Walker2d and Swimmer of Gymnasium's MuJoCo v5 tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from tether.control.envs.arrays import Array
from tether.control.envs.mujoco_physics import Physics
from tether.control.envs.mujoco_task import ControlCost, Task
from tether.control.tumbling.hopper import within_a_turn


class Runner(Task):
    """Reward for forward velocity, minus the control cost; never ends by itself.

    r = w_f · (x' − x) / dt − w_c · Σ a².
    """

    hidden_positions = 1
    velocity_limit = np.inf

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        n = self.num_envs
        self._control_cost = ControlCost(env._ctrl_cost_weight, np.empty((n, env.model.nu), "f4"))
        self._forward_weight = np.full(n, env._forward_reward_weight, float)
        hidden = self.hidden_positions * bool(env._exclude_current_positions_from_observation)
        self._seen = self.coordinates[:, hidden:]
        self._positions = env.model.nq - hidden
        self._limit = np.full(self.qvel.shape, self.velocity_limit)
        self._negative = -self._limit
        self._x = self.qpos[:, 0]
        self.position = np.empty((n, 1))
        self._before = self.position[:, 0]

    @override
    def locate(self) -> None:
        self._before[...] = self._x

    @override
    def observe(self, out: Array) -> None:
        out[...] = self._seen
        if self.velocity_limit < np.inf:
            velocity = out[:, self._positions :]
            np.minimum(velocity, self._limit, out=velocity)
            np.maximum(velocity, self._negative, out=velocity)

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        self.forward(reward)
        reward -= self._control_cost(action)
        terminated[...] = False

    def forward(self, reward: Array) -> None:
        """Write w_f · (x' − x) / dt and move on to x'."""
        np.subtract(self._x, self._before, out=reward)
        self._before[...] = self._x
        reward /= self.dt
        reward *= self._forward_weight


class HalfCheetah(Runner):
    """As ``HalfCheetahEnv`` v5."""

    normal_velocity = True


class Swimmer(Runner):
    """As ``SwimmerEnv`` v5."""

    hidden_positions = 2


class Walker2d(Runner):
    """As ``Walker2dEnv`` v5: also rewarded for standing, and ended by a fall.

    Healthy means that height and angle lie in open ranges.
    """

    velocity_limit = 10.0

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        self._healthy_reward = np.full(self.num_envs, env._healthy_reward, float)
        self._survival = np.empty(self.num_envs)
        self._ends = bool(env._terminate_when_unhealthy)
        self._low, self._high = self.healthy_ranges(env)
        self._judged = self.coordinates[:, 1 : 1 + self._low.size]
        self._inside, self._below = np.empty((2, *self._judged.shape), bool)
        self._healthy = np.empty(self.num_envs, bool)

    def healthy_ranges(self, env: Any) -> Array:
        """(2, k): open ranges of the first k coordinates after x."""
        return np.array([env._healthy_z_range, env._healthy_angle_range]).T

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        self.forward(reward)
        np.greater(self._judged, self._low, out=self._inside)
        np.less(self._judged, self._high, out=self._below)
        np.logical_and(self._inside, self._below, out=self._inside)
        np.logical_and.reduce(self._inside, axis=1, out=self._healthy)
        reward += np.multiply(self._healthy, self._healthy_reward, out=self._survival)
        reward -= self._control_cost(action)
        if self._ends:
            np.logical_not(self._healthy, out=terminated)
        else:
            terminated[...] = False


class Hopper(Walker2d):
    """As ``HopperEnv`` v5: every coordinate beyond x and z has a healthy range too."""

    @override
    def healthy_ranges(self, env: Any) -> Array:
        (low, high), (angle_low, angle_high) = env._healthy_state_range, env._healthy_angle_range
        # The angle must lie in both its own range and everyone's.
        angle = (max(angle_low, low), min(angle_high, high))
        others = self.coordinates.shape[1] - 3
        return np.array([env._healthy_z_range, angle, *[(low, high)] * others]).T


class TumblingHopper(Hopper):
    """As ``tether.control.tumbling.hopper.TumblingHopper``."""

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        self._angle: int = env.angle_index

    @override
    def observe(self, out: Array) -> None:
        super().observe(out)
        out[:, self._angle] = within_a_turn(out[:, self._angle])
