"""Runs of a second, whose policies have learnt nothing but are whole."""

from pathlib import Path
from typing import Any

import tether
from tether.control.training import Trained

TINY: dict[str, Any] = {
    "num_envs": 4,
    "steps_per_iteration": 128,
    "minibatch_size": 32,
    "epochs": 2,
    "hidden": (8,),
    "learning_rate": 0.01,
    "initial_log_std": 0.0,
    "progress": False,
    "sinks": (),
}
SHORT = {"env_kwargs": {"max_episode_steps": 25}}


def cheetah_run(out: Path) -> Trained:
    """A HalfCheetah whose episodes have 25 steps."""
    return tether.train("ppo", "HalfCheetah-v5", total_steps=512, seed=3, out=out, **SHORT, **TINY)


def pairs_run(out: Path) -> Trained:
    """A policy of nested observations, for an environment that cannot be drawn."""
    env = "toy_environments:CopyDict-v0"
    return tether.train("ppo", env, total_steps=512, seed=3, out=out, **TINY)
