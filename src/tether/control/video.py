"""Clips of a policy at work, as MP4."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tether.control.drawing import (
    choose_renderer,
    drawn_environment,
    prepare_scene,
    render,
    write_video,
)
from tether.control.envs.spaces import flatten_observation
from tether.control.policy import Policy
from tether.control.run_environment import recorded_env
from tether.control.training import load
from tether.errors import UserError
from tether.learning.run import Run


def record_video(
    policy: Policy,
    env: str,
    path: Path,
    *,
    seed: int,
    frames: int = 500,
    env_kwargs: dict[str, Any] | None = None,
) -> Path:
    """Film the deterministic policy in one environment and write an MP4 (H.264) to `path`.

    Raises:
        UserError: the path cannot be written or does not end in .mp4, the environment cannot draw,
            or no renderer works on this machine.
    """
    if path.suffix != ".mp4":
        raise UserError(f"the film would go to {path}; expected a name that ends in .mp4")
    world = drawn_environment(env, env_kwargs or {})
    fps = int(world.metadata.get("render_fps") or 30)
    prepare_scene(world)
    # Films faster than a screen shows only cost time: keep every k-th frame at the same speed.
    keep_every = max(1, round(fps / 50))
    temporary = path.with_name(path.name + ".tmp")
    try:
        # Other environments draw in their own ways, and need neither EGL nor OSMesa.
        if "mujoco" in sys.modules:
            choose_renderer()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(temporary, _frames(policy, world, seed, frames, keep_every), fps / keep_every)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        world.close()
    return path


def film(
    run: str | Path,
    path: Path,
    *,
    seed: int,
    frames: int = 500,
    env: str | None = None,
    network: Any = None,
) -> Path:
    """Film a run's policy in its own environment, or in `env`; see :func:`record_video`."""
    opened = Run.open(run)
    if env is None and opened.spec["env"] is None:
        raise UserError(f"run {run} was made from a function, which a film cannot make again")
    return record_video(
        load(run, network=network),
        env if env is not None else recorded_env(opened),
        path,
        seed=seed,
        frames=frames,
        env_kwargs=opened.spec["env_kwargs"],
    )


def _frames(
    policy: Policy, world: gym.Env[Any, Any], seed: int, frames: int, keep_every: int
) -> Iterator[np.ndarray]:
    observation, _ = world.reset(seed=seed)
    for step in range(frames * keep_every):
        if step % keep_every == 0:
            yield render(world)
        flat = flatten_observation(policy.spec.source_space, observation)[None]
        action = policy.distribution(policy.normalize(flat)).mode()
        observation, _, terminated, truncated, _ = world.step(
            policy.spec.head.to_environment(action)[0]
        )
        if terminated or truncated:
            yield render(world)
            return
