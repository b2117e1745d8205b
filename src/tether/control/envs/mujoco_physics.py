"""N simulations of one MuJoCo model behind one face: fields as (N, ...) arrays.

Two steppers with the same results. MuJoCo's own :class:`mujoco.batch.Batch` steps most tasks. It
offers no way to run ``mj_rnePostConstraint`` after the last substep, which is where Gymnasium takes
the contact forces of Ant and the humanoids from; those run on one MjData each.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError
from typing_extensions import override

from tether.control.envs.arrays import Array
from tether.errors import BadEnvironmentError


class Physics(Protocol):
    """N simulations of one model.

    Attributes:
        num_envs: N.
        coordinates: (N, nq + nv) generalized positions, then velocities, live.
        qpos: (N, nq), its first part.
        qvel: (N, nv), its second part.
        ctrl: (N, nu) controls of the next step, to be written.
    """

    num_envs: int
    coordinates: Array
    qpos: Array
    qvel: Array
    ctrl: Array

    def bind(self, name: str) -> Array:
        """The live (N, ...) array of an MjData field, refreshed by every call below."""
        ...

    def step(self, substeps: int) -> None:
        """Advance every simulation as Gymnasium's MujocoEnv does, under its control."""
        ...

    def place(self, ids: Array, qpos: Array, qvel: Array) -> None:
        """Reset simulations ``ids`` (n,) and put them at (n, nq) and (n, nv), then mj_forward."""
        ...

    def state(self) -> Array:
        """(N, nstate) float64: a copy of every simulation's mjSTATE_INTEGRATION."""
        ...

    def restore(self, state: Array) -> None:
        """Continue from a :meth:`state`."""
        ...

    def close(self) -> None:
        """Stop the threads."""
        ...


class BatchPhysics(Physics):
    """MuJoCo's batch stepper: one call advances every simulation on ``threads`` threads."""

    def __init__(self, model: Any, num_envs: int, threads: int) -> None:
        self.num_envs = num_envs
        self._batch = Batch(model, nsim=num_envs, nthread=threads)
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._start = np.array(self._batch.state[0])
        qpos: Array = self._batch.bind("qpos")
        # In a state row qpos is followed by qvel, so one view holds both.
        first = (qpos.ctypes.data - self._batch.state.ctypes.data) // qpos.itemsize
        self.coordinates: Array = self._batch.state[:, first : first + model.nq + model.nv]
        self.qpos, self.qvel = np.split(self.coordinates, [model.nq], axis=1)
        assert self.qvel.ctypes.data == self._batch.bind("qvel").ctypes.data
        self.ctrl: Array = self._batch.bind("ctrl")

    @override
    def bind(self, name: str) -> Array:
        array: Array = self._batch.bind(name)
        return array

    @override
    def step(self, substeps: int) -> None:
        try:
            self._batch.step(nstep=substeps)
        except SimulationError as error:
            raise BadEnvironmentError(str(error)) from error

    @override
    def place(self, ids: Array, qpos: Array, qvel: Array) -> None:
        # A row is a whole simulation, so this is mj_resetData: clock, controls and warm start too.
        self._batch.state[ids] = self._start
        self.qpos[ids] = qpos
        self.qvel[ids] = qvel
        self._batch.forward(ids)

    @override
    def state(self) -> Array:
        return np.array(self._batch.state)

    @override
    def restore(self, state: Array) -> None:
        self._batch.state[...] = state

    @override
    def close(self) -> None:
        """The batch's threads end with the object."""


class PooledPhysics(Physics):
    """One MjData per simulation, for tasks that read what ``mj_rnePostConstraint`` computes."""

    def __init__(self, model: Any, num_envs: int, threads: int) -> None:
        self.num_envs = num_envs
        self._model = model
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        self._size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._fields: dict[str, Array] = {}
        # Per simulation: (row of our array, MjData's own array) of every bound field.
        self._links: list[list[tuple[Array, Array]]] = [[] for _ in range(num_envs)]
        workers = min(threads, num_envs)
        self._pool = ThreadPoolExecutor(workers - 1) if workers > 1 else None
        self._shares = [range(first, num_envs, workers) for first in range(workers)]
        self.coordinates: Array = np.zeros((num_envs, model.nq + model.nv))
        self.qpos, self.qvel = np.split(self.coordinates, [model.nq], axis=1)
        self._link("qpos", self.qpos)
        self._link("qvel", self.qvel)
        self.ctrl: Array = np.zeros((num_envs, model.nu))

    @override
    def bind(self, name: str) -> Array:
        if name not in self._fields:
            field: Array = np.stack([getattr(data, name) for data in self._data])
            self._fields[name] = field
            self._link(name, field)
        return self._fields[name]

    def _link(self, name: str, field: Array) -> None:
        for links, row, data in zip(self._links, field, self._data, strict=True):
            links.append((row, getattr(data, name)))

    @override
    def step(self, substeps: int) -> None:
        others: list[Future[None]] = []
        if self._pool is not None:
            others = [self._pool.submit(self._advance, s, substeps) for s in self._shares[1:]]
        try:
            self._advance(self._shares[0], substeps)
        finally:
            for other in others:
                other.result()

    def _advance(self, share: range, substeps: int) -> None:
        for index in share:
            data = self._data[index]
            data.ctrl[:] = self.ctrl[index]
            try:
                mujoco.mj_step(self._model, data, nstep=substeps)
                mujoco.mj_rnePostConstraint(self._model, data)
            except mujoco.FatalError as error:
                raise BadEnvironmentError(
                    f"MuJoCo failed in simulation {index}: {error}"
                ) from error
            self._refresh(index)

    @override
    def place(self, ids: Array, qpos: Array, qvel: Array) -> None:
        for index, position, velocity in zip(ids.tolist(), qpos, qvel, strict=True):
            data = self._data[index]
            mujoco.mj_resetData(self._model, data)
            data.qpos[:] = position
            data.qvel[:] = velocity
            mujoco.mj_forward(self._model, data)
            self._refresh(index)

    @override
    def state(self) -> Array:
        state = np.empty((self.num_envs, self._size))
        for row, data in zip(state, self._data, strict=True):
            mujoco.mj_getState(self._model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    @override
    def restore(self, state: Array) -> None:
        for index, data in enumerate(self._data):
            row = np.ascontiguousarray(state[index])
            mujoco.mj_setState(self._model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
            self._refresh(index)

    @override
    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _refresh(self, index: int) -> None:
        for row, source in self._links[index]:
            row[...] = source
