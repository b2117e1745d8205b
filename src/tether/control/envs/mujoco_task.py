"""What a MuJoCo task adds to physics: starts, observations, rewards, terminations.

Every rule computes for N simulations at once what the matching class of
``gymnasium.envs.mujoco`` computes for one, in the same floating-point operations in the same order
and precision: float32 actions enter control costs in float32. So results are equal bit for bit.
Weights are read from a real Gymnasium environment, so its keyword arguments are honoured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from tether.control.envs.arrays import Array
from tether.control.envs.mujoco_physics import BatchPhysics, Physics, PooledPhysics


class Task(ABC):
    """Rules of one task over N simulations.

    Attributes:
        stepper: the physics this task needs.
        normal_velocity: whether starts draw velocities from a normal distribution.
        position: (N, k), where the body was before the coming step, for tasks that reward
            velocity; k = 0 for the others. Part of the state: it may lag qpos by a substep.
        true_reward: (N,) float64, written by :meth:`score`, of tasks that pay something else than
            what is meant; None for the others.
    """

    stepper: type[BatchPhysics] | type[PooledPhysics] = BatchPhysics
    normal_velocity = False
    true_reward: Array | None = None

    def __init__(self, env: Any, physics: Physics) -> None:
        """Read the weights of a Gymnasium environment.

        Args:
            env: the unwrapped environment.
            physics: the N simulations.
        """
        self.physics = physics
        self.coordinates, self.qpos, self.qvel = physics.coordinates, physics.qpos, physics.qvel
        self.num_envs = physics.num_envs
        self.init_qpos, self.init_qvel = env.init_qpos.copy(), env.init_qvel.copy()
        self.noise_scale = getattr(env, "_reset_noise_scale", 0.0)
        # NumPy divides by an array faster than by a Python number.
        self.dt = np.full(self.num_envs, env.dt)
        self.position: Array = np.empty((self.num_envs, 0))

    def draw(self, generator: np.random.Generator) -> tuple[Array, Array]:
        """A start: qpos (nq,) and qvel (nv,), drawn as ``reset_model`` draws them.

        By default the model's initial state plus uniform noise on every position, and uniform or
        normal noise on every velocity.
        """
        scale, nv = self.noise_scale, self.init_qvel.size
        qpos = self.init_qpos + generator.uniform(low=-scale, high=scale, size=self.init_qpos.size)
        if self.normal_velocity:
            return qpos, self.init_qvel + scale * generator.standard_normal(nv)
        return qpos, self.init_qvel + generator.uniform(low=-scale, high=scale, size=nv)

    def locate(self) -> None:  # noqa: B027
        """Set :attr:`position` from the simulations, after starts and after steps."""

    def begin(self, ids: Array) -> None:  # noqa: B027
        """Forget what was kept of the episodes of simulations `ids`, whose next ones begin."""

    def statistics(self, i: int) -> Mapping[str, float]:
        """Numbers about the episode of simulation i, which has just ended."""
        return {}

    @abstractmethod
    def observe(self, out: Array) -> None:
        """Write the (N, D) observation of the simulations as they stand."""

    @abstractmethod
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        """Write reward (N,) float64 and terminated (N,) bool of the step just made.

        Args:
            action: (N, nu) of the action space's dtype.
            reward: written.
            terminated: written.
        """

    def body(self, env: Any, name: str) -> Array:
        """(N, 3) live position of a named body, as ``get_body_com``."""
        return self.physics.bind("xpos")[:, env.model.body(name).id]


class ControlCost:
    """weight · Σ_j a_j² per environment, in the precision of the action."""

    def __init__(self, weight: float, actions: Array) -> None:
        """Allocate for actions like ``actions`` (N, nu)."""
        self._squares = np.empty_like(actions, order="C")
        self._sums = np.empty(len(actions), actions.dtype)
        # A NumPy float64 weight promotes the product where a Python float does not.
        self._cost = np.empty(len(actions), np.multiply(weight, self._sums).dtype)
        # NumPy multiplies by an array faster than by a Python number.
        self._weights = np.full_like(self._cost, weight)

    def __call__(self, action: Array) -> Array:
        """(N,) cost, valid until the next call."""
        np.square(action, out=self._squares)
        np.add.reduce(self._squares, axis=1, out=self._sums)
        return np.multiply(self._weights, self._sums, out=self._cost)


def within(low: float, values: Array, high: float) -> Array:
    """Whether low < values < high, elementwise; false for NaN."""
    inside: Array = np.less(low, values)
    inside &= values < high
    return inside
