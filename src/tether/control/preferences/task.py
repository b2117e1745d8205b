"""The task that is learned from comparisons, and how it may differ from the registered one.

Where an episode's end depends on how well things go, its length alone gives the reward away: a
policy learns not to fall from the mere fact that falling ends all rewards. So the paper lets its
tasks go on and charges for what would have ended them, and leaves out the cost of torques. Here an
episode goes on for some steps, and its end is then a time limit: there the policy bootstraps, and
learns nothing from the end itself.

Source:
    Christiano et al. (2017), appendix A.1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import gymnasium

from tether.control.envs import GoesOn
from tether.control.envs.protocol import NO_LIMIT
from tether.control.envs.vector import EnvLike, can_go_on, make_one
from tether.control.preferences.config import PreferConfig
from tether.control.preferences.segments import LONGEST, usual_length
from tether.control.run_environment import Task
from tether.errors import UserError

TORQUE_WEIGHTS: Final = ("ctrl_cost_weight", "reward_control_weight")
"""What Gymnasium's MuJoCo tasks call the weight of their cost of torques."""


def learned_task(config: PreferConfig, env: EnvLike, env_kwargs: Mapping[str, Any]) -> Task:
    """The task as the settings `termination`, `termination_reward` and `torque_cost` want it.

    Raises:
        UserError: the environment has no cost of torques to leave out.
    """
    kwargs = dict(env_kwargs)
    if not config.torque_cost:
        kwargs |= {name: 0.0 for name in _torque_weights(env) if name not in kwargs}
    wanted = config.termination == "continue" or (config.termination == "auto" and can_go_on(env))
    if not wanted:
        return Task(kwargs)
    steps = config.termination_steps or _segment_steps(config, env, kwargs)
    return Task(kwargs, GoesOn(config.termination_reward, steps))


def _segment_steps(config: PreferConfig, env: EnvLike, env_kwargs: Mapping[str, Any]) -> int:
    """The length of a segment, or the usual one if that is more."""
    given = config.segment_steps or 1
    if not isinstance(env, str):
        return max(given, LONGEST)
    made: gymnasium.Env[Any, Any] = make_one(env, **env_kwargs)
    try:
        limit = NO_LIMIT if made.spec is None else made.spec.max_episode_steps or NO_LIMIT
        return max(given, usual_length(getattr(made.unwrapped, "dt", None), limit))
    finally:
        made.close()


def _torque_weights(env: EnvLike) -> list[str]:
    if not isinstance(env, str):
        raise UserError(
            "torque_cost can be left out of environments that are given by their id; make yours "
            "without it"
        )
    made: gymnasium.Env[Any, Any] = make_one(env)
    try:
        known = inspect.signature(type(made.unwrapped).__init__).parameters
    finally:
        made.close()
    # The inverted pendulums have no such cost.
    return [name for name in TORQUE_WEIGHTS if name in known]
