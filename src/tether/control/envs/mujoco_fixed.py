"""Machines on a base: Reacher, Pusher and the inverted pendulums of Gymnasium's v5 tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from tether.control.envs.arrays import Array
from tether.control.envs.mujoco_physics import Physics
from tether.control.envs.mujoco_task import ControlCost, Task


class Reacher(Task):
    """As ``ReacherEnv`` v5: r = −w_d · |fingertip − target| − w_c · Σ a²."""

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        n = self.num_envs
        self._distance_weight = env._reward_dist_weight
        self._control_cost = ControlCost(
            env._reward_control_weight, np.empty((n, env.model.nu), "f4")
        )
        self._finger, self._target = self.body(env, "fingertip"), self.body(env, "target")
        self._angles = np.empty((n, 2))
        self._gap = np.empty((n, 3))

    @override
    def draw(self, generator: np.random.Generator) -> tuple[Array, Array]:
        qpos = generator.uniform(low=-0.1, high=0.1, size=self.init_qpos.size) + self.init_qpos
        while True:
            goal = generator.uniform(low=-0.2, high=0.2, size=2)
            if np.linalg.norm(goal) < 0.2:
                break
        qpos[-2:] = goal
        qvel = self.init_qvel + generator.uniform(low=-0.005, high=0.005, size=self.init_qvel.size)
        qvel[-2:] = 0
        return qpos, qvel

    @override
    def observe(self, out: Array) -> None:
        # The copy makes the angles contiguous: NumPy's sine may round differently on strides.
        self._angles[...] = self.qpos[:, :2]
        goals = self.qpos.shape[1] - 2
        np.cos(self._angles, out=out[:, :2])
        np.sin(self._angles, out=out[:, 2:4])
        out[:, 4 : 4 + goals] = self.qpos[:, 2:]
        out[:, 4 + goals : 6 + goals] = self.qvel[:, :2]
        np.subtract(self._finger, self._target, out=self._gap)
        out[:, 6 + goals :] = self._gap[:, :2]

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        np.subtract(self._finger, self._target, out=self._gap)
        distance(self._gap, out=reward)
        reward *= -self._distance_weight
        reward -= self._control_cost(action)
        terminated[...] = False


class Pusher(Task):
    """As ``PusherEnv`` v5: r = −w_d · |object − goal| − w_c · Σ a² − w_n · |object − tip|."""

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        n = self.num_envs
        self._near_weight, self._distance_weight = env._reward_near_weight, env._reward_dist_weight
        self._control_cost = ControlCost(
            env._reward_control_weight, np.empty((n, env.model.nu), "f4")
        )
        self._tip = self.body(env, "tips_arm")
        self._object = self.body(env, "object")
        self._goal = self.body(env, "goal")
        self._gap = np.empty((n, 3))
        self._near = np.empty(n)

    @override
    def draw(self, generator: np.random.Generator) -> tuple[Array, Array]:
        qpos = self.init_qpos.copy()
        while True:
            x = generator.uniform(low=-0.3, high=0, size=1)
            y = generator.uniform(low=-0.2, high=0.2, size=1)
            cylinder = np.concatenate([x, y])
            if np.linalg.norm(cylinder) > 0.17:
                break
        qpos[-4:-2] = cylinder
        qpos[-2:] = 0
        qvel = self.init_qvel + generator.uniform(low=-0.005, high=0.005, size=self.init_qvel.size)
        qvel[-4:] = 0
        return qpos, qvel

    @override
    def observe(self, out: Array) -> None:
        out[:, :7] = self.qpos[:, :7]
        out[:, 7:14] = self.qvel[:, :7]
        out[:, 14:17] = self._tip
        out[:, 17:20] = self._object
        out[:, 20:] = self._goal

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        np.subtract(self._object, self._tip, out=self._gap)
        distance(self._gap, out=self._near)
        np.subtract(self._object, self._goal, out=self._gap)
        distance(self._gap, out=reward)
        reward *= -self._distance_weight
        reward -= self._control_cost(action)
        self._near *= self._near_weight
        reward -= self._near
        terminated[...] = False


class InvertedPendulum(Task):
    """As ``InvertedPendulumEnv`` v5: r = 1 while the pole stands within 0.2 rad."""

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        self._angle = self.qpos[:, 1]

    @override
    def observe(self, out: Array) -> None:
        out[...] = self.coordinates

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        standing = np.logical_and.reduce(np.isfinite(self.coordinates), axis=1)
        standing &= ~(np.abs(self._angle) > 0.2)
        reward[...] = standing
        np.logical_not(standing, out=terminated)


class InvertedDoublePendulum(Task):
    """As ``InvertedDoublePendulumEnv`` v5.

    r = alive − (0.01 x² + (y − 2)²) − (0.001 v₁² + 0.005 v₂²), where x and y place the tip of the
    second pole in metres; the episode ends when y ≤ 1.
    """

    normal_velocity = True

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        self._healthy_reward = env._healthy_reward
        self._tip = physics.bind("site_xpos")[:, 0]
        self._constraint = physics.bind("qfrc_constraint")[:, :1]
        self._poles = self.qpos.shape[1] - 1
        self._angles = np.empty((self.num_envs, self._poles))

    @override
    def observe(self, out: Array) -> None:
        poles, nv = self._poles, self.qvel.shape[1]
        self._angles[...] = self.qpos[:, 1:]
        out[:, :1] = self.qpos[:, :1]
        np.sin(self._angles, out=out[:, 1 : 1 + poles])
        np.cos(self._angles, out=out[:, 1 + poles : 1 + 2 * poles])
        forces = out[:, 1 + 2 * poles :]
        forces[:, :nv] = self.qvel
        forces[:, nv:] = self._constraint
        np.minimum(forces, 10, out=forces)
        np.maximum(forces, -10, out=forces)

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        np.less_equal(self._tip[:, 2], 1, out=terminated)
        rows = zip(self._tip.tolist(), self.qvel.tolist(), terminated.tolist(), strict=True)
        # Gymnasium squares scalars with pow(), which rounds differently from the product that
        # NumPy computes for arrays; Python floats take the same pow().
        reward[...] = [
            self._healthy_reward * (not fallen)
            - (0.01 * x**2 + (y - 2) ** 2)
            - (1e-3 * v[1] ** 2 + 5e-3 * v[2] ** 2)
            for (x, _, y), v, fallen in rows
        ]


def distance(gap: Array, out: Array) -> None:
    """|gap| of (N, 3) into (N,), by the BLAS dot product that np.linalg.norm uses on one vector."""
    np.vecdot(gap, gap, out=out)
    np.sqrt(out, out=out)
