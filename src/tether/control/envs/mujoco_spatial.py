"""Bodies in space: Ant, Humanoid and HumanoidStandup of Gymnasium's MuJoCo v5 tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from tether.control.envs.arrays import Array
from tether.control.envs.mujoco_physics import Physics, PooledPhysics
from tether.control.envs.mujoco_task import ControlCost, Task, within


class Ant(Task):
    """As ``AntEnv`` v5: r = w_f · v_x + healthy − w_c · Σ a² − w_k · Σ clip(contact forces)²."""

    stepper = PooledPhysics
    normal_velocity = True

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        n = self.num_envs
        self._control_cost = ControlCost(env._ctrl_cost_weight, np.empty((n, env.model.nu), "f4"))
        self._forward_weight = env._forward_reward_weight
        self._healthy_reward = env._healthy_reward
        self._ends = bool(env._terminate_when_unhealthy)
        self._z_range = env._healthy_z_range
        self._force_range = env._contact_force_range
        hidden = 2 * bool(env._exclude_current_positions_from_observation)
        self._seen = self.coordinates[:, hidden:]
        self._shows_forces = bool(env._include_cfrc_ext_in_observation)
        self._x = physics.bind("xpos")[:, env.data.body(env._main_body).id, 0]
        self._raw_forces = physics.bind("cfrc_ext").reshape(n, -1)
        self._forces = np.zeros_like(self._raw_forces)
        self._contact_cost = ControlCost(env._contact_cost_weight, self._forces)
        self.position = np.empty((n, 1))

    @override
    def locate(self) -> None:
        self.position[:, 0] = self._x

    @override
    def observe(self, out: Array) -> None:
        np.clip(self._raw_forces, *self._force_range, out=self._forces)
        out[:, : self._seen.shape[1]] = self._seen
        if self._shows_forces:
            out[:, self._seen.shape[1] :] = self._forces[:, 6:]

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        np.clip(self._raw_forces, *self._force_range, out=self._forces)
        low, high = self._z_range
        healthy = np.logical_and.reduce(np.isfinite(self.coordinates), axis=1)
        healthy &= (low <= self.qpos[:, 2]) & (self.qpos[:, 2] <= high)
        np.subtract(self._x, self.position[:, 0], out=reward)
        self.locate()
        reward /= self.dt
        reward *= self._forward_weight
        reward += healthy * self._healthy_reward
        reward -= self._control_cost(action) + self._contact_cost(self._forces)
        np.logical_not(healthy, out=terminated)
        terminated &= self._ends


class Bodied(Task):
    """What both humanoids share: the observation, and the cost of contact forces."""

    stepper = PooledPhysics

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        n = self.num_envs
        # The humanoids charge for MuJoCo's controls, which are float64, not for the action.
        self._control_cost = ControlCost(env._ctrl_cost_weight, physics.ctrl)
        self._forces = physics.bind("cfrc_ext").reshape(n, -1)
        hidden = 2 * bool(env._exclude_current_positions_from_observation)
        self._parts = [self.coordinates[:, hidden:]]
        # Gymnasium asks "is True" here, so a truthy 1 leaves the part out.
        if env._include_cinert_in_observation is True:
            self._parts.append(physics.bind("cinert").reshape(n, -1)[:, 10:])
        if env._include_cvel_in_observation is True:
            self._parts.append(physics.bind("cvel").reshape(n, -1)[:, 6:])
        if env._include_qfrc_actuator_in_observation is True:
            self._parts.append(physics.bind("qfrc_actuator")[:, 6:])
        if env._include_cfrc_ext_in_observation is True:
            self._parts.append(self._forces[:, 6:])

    @override
    def observe(self, out: Array) -> None:
        np.concatenate(self._parts, axis=1, out=out)


class Humanoid(Bodied):
    """As ``HumanoidEnv`` v5: r = w_f · v_x + healthy − control cost − clipped contact cost."""

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        self._forward_weight = env._forward_reward_weight
        self._healthy_reward = env._healthy_reward
        self._ends = bool(env._terminate_when_unhealthy)
        self._z_range = env._healthy_z_range
        self._cost_range = env._contact_cost_range
        self._contact_cost = ControlCost(env._contact_cost_weight, self._forces)
        self._centers = physics.bind("xipos")
        self._masses = env.model.body_mass.copy()
        self._mass = self._masses.sum()
        self.position = np.empty((self.num_envs, 1))

    @override
    def locate(self) -> None:
        # One body at a time: the order of summation must be Gymnasium's for every N.
        for row, centers in zip(self.position, self._centers, strict=True):
            row[0] = (np.einsum("b,bj->j", self._masses, centers) / self._mass)[0]

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        np.negative(self.position[:, 0], out=reward)
        self.locate()
        reward += self.position[:, 0]
        reward /= self.dt
        reward *= self._forward_weight
        healthy = within(self._z_range[0], self.qpos[:, 2], self._z_range[1])
        reward += healthy * self._healthy_reward
        contact = np.clip(self._contact_cost(self._forces), *self._cost_range)
        reward -= self._control_cost(self.physics.ctrl) + contact
        np.logical_not(healthy, out=terminated)
        terminated &= self._ends


class HumanoidStandup(Bodied):
    """As ``HumanoidStandupEnv`` v5: r = z / timestep − control cost − clipped impact cost + 1."""

    def __init__(self, env: Any, physics: Physics) -> None:
        super().__init__(env, physics)
        self._timestep = env.model.opt.timestep
        self._cost_range = env._impact_cost_range
        self._impact_cost = ControlCost(env._impact_cost_weight, self._forces)

    @override
    def score(self, action: Array, reward: Array, terminated: Array) -> None:
        np.divide(self.qpos[:, 2], self._timestep, out=reward)
        reward -= self._control_cost(self.physics.ctrl)
        reward -= np.clip(self._impact_cost(self._forces), *self._cost_range)
        reward += 1
        terminated[...] = False
