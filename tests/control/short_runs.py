"""Settings of runs that take a second: what they learn is of no account."""

from typing import Any

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
