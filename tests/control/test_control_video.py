from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tether.control import video


def robot_pixels(world: gym.Env[Any, Any], x: float) -> int:
    """How many pixels are of the robot's warm colours, with the robot at `x` metres."""
    inner: Any = world.unwrapped
    qpos = inner.data.qpos.copy()
    qpos[0] = x
    inner.set_state(qpos, inner.data.qvel.copy())
    red, green, _ = np.moveaxis(np.asarray(world.render(), int), -1, 0)
    return int((red > green + 25).sum())


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "Swimmer-v5"])
def test_the_robot_never_runs_out_of_the_picture(env: str) -> None:
    video.choose_renderer()
    world = gym.make(env, render_mode="rgb_array", width=160, height=160)
    world.reset(seed=0)
    video._prepare_scene(world)
    here = robot_pixels(world, 0.0)
    far_away = robot_pixels(world, 30.0)
    world.close()
    assert here > 50
    assert far_away > here / 2
