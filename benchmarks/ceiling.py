"""How fast the physics alone is, and how fast a policy can drive it: what no training can pass.

    physics   mujoco.batch.Batch under random actions that were drawn beforehand
    policy    the same loop, each action chosen by a 64x64 tanh policy that JAX has jitted
    numpy     the same loop, the same policy in NumPy

All step a Gymnasium v5 task with its own frame skip and start a simulation anew when its task
terminates or after 1000 steps, so nobody times a robot that lies on its back. Rewards, storage and
learning are left out, and the policy's Gaussian noise is drawn beforehand: whatever a training loop
must do besides counts against it. Prints one JSON object.
"""

from __future__ import annotations

import os

# As tether runs XLA: the cores belong to the physics. Must be set before JAX is imported.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
    + os.environ.get("XLA_FLAGS", "")
).strip()

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import mujoco
import numpy as np
from jax import numpy as jnp
from mujoco.batch import Batch

Array = Any

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
TIME_LIMIT = 1000
DRAWN = 4096
"""Actions, or noises, drawn beforehand; a loop goes around them."""


class Physics:
    """N simulations of a runner: step, end, start anew. Nothing is scored.

    Args:
        env_id: one of TASKS.
        sims: N.
        threads: how many step, the caller included.
        rng: draws the starts.
    """

    def __init__(self, env_id: str, sims: int, threads: int, rng: np.random.Generator) -> None:
        env: Any = gymnasium.make(env_id)
        self.space = env.action_space
        self.task = env.unwrapped
        self.rng = rng
        self.batch = Batch(self.task.model, nsim=sims, nthread=threads)
        self.qpos, self.qvel = self.batch.bind("qpos"), self.batch.bind("qvel")
        self.ctrl = self.batch.bind("ctrl")
        self.elapsed = np.zeros(sims, np.int64)
        self.starts = 0
        self.ends = hasattr(self.task, "_healthy_z_range")
        # Hopper's joints and velocities must stay in a range as well; HalfCheetah never falls.
        self.state_range = getattr(self.task, "_healthy_state_range", None)
        self.normal = env_id.startswith("HalfCheetah")
        self.begin(np.arange(sims))

    def step(self, action: Array) -> None:
        """Act with (N, nu) for one frame skip; simulations that end start anew."""
        self.ctrl[...] = action
        self.batch.step(nstep=self.task.frame_skip)
        self.elapsed += 1
        ended = self.elapsed >= TIME_LIMIT
        if self.ends:
            ended |= self.fallen()
        if ended.any():
            self.begin(np.flatnonzero(ended))

    def fallen(self) -> Array:
        """(N,) bool: the task's own termination, in its open intervals."""
        (low, high), (left, right) = self.task._healthy_z_range, self.task._healthy_angle_range
        height, angle = self.qpos[:, 1], self.qpos[:, 2]
        healthy = (low < height) & (height < high) & (left < angle) & (angle < right)
        if self.state_range is not None:
            most = self.state_range[1]
            healthy &= (np.abs(self.qpos[:, 2:]) < most).all(1) & (np.abs(self.qvel) < most).all(1)
        return ~healthy

    def begin(self, ids: Array) -> None:
        """Start simulations ``ids`` as the task's ``reset_model`` does."""
        task, count, scale = self.task, len(ids), self.task._reset_noise_scale
        speed = (count, task.model.nv)
        drift = (
            scale * self.rng.standard_normal(speed)
            if self.normal
            else self.rng.uniform(-scale, scale, speed)
        )
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[ids] = task.init_qpos + self.rng.uniform(-scale, scale, (count, task.model.nq))
        self.qvel[ids] = task.init_qvel + drift
        self.batch.forward(ids)
        self.elapsed[ids] = 0
        self.starts += count

    def observe(self, out: Array) -> Array:
        """Write the (N, D) float32 observation: positions without x, then velocities."""
        positions = self.qpos.shape[1] - 1
        out[:, :positions] = self.qpos[:, 1:]
        out[:, positions:] = self.qvel if self.normal else np.clip(self.qvel, -10, 10)
        return out


def random_driver(physics: Physics, rng: np.random.Generator) -> Callable[[int], Array]:
    """Uniform actions of the task's box, drawn beforehand: t -> (N, nu)."""
    low, high = physics.space.low, physics.space.high
    actions = rng.uniform(low, high, (DRAWN, *physics.ctrl.shape))
    return lambda t: actions[t % DRAWN]


def draw_policy(physics: Physics, rng: np.random.Generator) -> tuple[list[Array], Array, Array]:
    """Weights and biases of two tanh layers of 64, noise (DRAWN, N, nu), room to observe (N, D)."""
    sims, actions = physics.ctrl.shape
    observation = np.empty((sims, physics.qpos.shape[1] - 1 + physics.qvel.shape[1]), np.float32)
    widths = [observation.shape[1], 64, 64, actions]
    # A small last layer, as PPO's policies start with: the noise moves the robot at first.
    gains = [1.0, 1.0, 0.01]
    layers = [
        ((gain * rng.standard_normal((m, n)) / m**0.5).astype("f4"), np.zeros(n, "f4"))
        for gain, m, n in zip(gains, widths[:-1], widths[1:], strict=True)
    ]
    return layers, rng.standard_normal((DRAWN, sims, actions)).astype("f4"), observation


def gaussian_action(xp: Any, layers: Array, observation: Array, noise: Array, box: Array) -> Array:
    """Mean plus noise of standard deviation 1, clipped to the box; xp is the array module."""
    hidden = observation
    for weights, bias in layers[:-1]:
        hidden = xp.tanh(hidden @ weights + bias)
    weights, bias = layers[-1]
    return xp.clip(hidden @ weights + bias + noise, *box)


def jax_driver(physics: Physics, rng: np.random.Generator) -> Callable[[int], Array]:
    """The policy jitted by JAX: t -> (N, nu)."""
    layers, noise, room = draw_policy(physics, rng)
    layers = jax.tree.map(jnp.asarray, layers)
    box = (jnp.asarray(physics.space.low), jnp.asarray(physics.space.high))
    act = jax.jit(lambda *arrays: gaussian_action(jnp, *arrays))
    return lambda t: np.asarray(act(layers, physics.observe(room), noise[t % DRAWN], box))


def numpy_driver(physics: Physics, rng: np.random.Generator) -> Callable[[int], Array]:
    """The same policy in NumPy, which is spared the dispatch: t -> (N, nu)."""
    layers, noise, room = draw_policy(physics, rng)
    box = (physics.space.low, physics.space.high)
    return lambda t: gaussian_action(np, layers, physics.observe(room), noise[t % DRAWN], box)


def measure(physics: Physics, driver: Callable[[int], Array], seconds: float) -> dict[str, Any]:
    """Drive for at least ``seconds`` after a warm-up that compiles and leaves the start behind."""
    for t in range(200):
        physics.step(driver(t))
    physics.starts, t = 0, 0
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        for _ in range(100):
            physics.step(driver(t))
            t += 1
    steps = t * len(physics.ctrl)
    return {
        "steps": steps,
        "seconds": spent,
        "steps_per_second": steps / spent,
        "mean_episode_steps": steps / max(physics.starts, 1),
    }


DRIVERS = {"physics": random_driver, "policy": jax_driver, "numpy": numpy_driver}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=TASKS, required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--sims", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=list(DRIVERS))
    args = parser.parse_args()

    result: dict[str, Any] = {"env": args.env, "sims": args.sims, "threads": args.threads}
    for name in args.drivers:
        rng = np.random.default_rng(args.seed)
        physics = Physics(args.env, args.sims, args.threads, rng)
        result[name] = measure(physics, DRIVERS[name](physics, rng), args.seconds)
    # Kilobytes on Linux.
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
