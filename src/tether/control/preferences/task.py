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
    going_on = config.termination == "continue" or (config.termination == "auto" and can_go_on(env))
    if config.torque_cost and not going_on:
        return Task(dict(env_kwargs))
    if not isinstance(env, str):
        if not config.torque_cost:
            raise UserError(
                "torque_cost can be left out of environments that are given by their id; make "
                "yours without it"
            )
        steps = config.termination_steps or max(config.segment_steps or 1, LONGEST)
        return Task(dict(env_kwargs), GoesOn(config.termination_reward, steps))
    made: gymnasium.Env[Any, Any] = make_one(env, **env_kwargs)
    try:
        costless = {} if config.torque_cost else dict.fromkeys(_torque_weights(made), 0.0)
        steps = config.termination_steps or _segment_steps(config, made)
    finally:
        made.close()
    kwargs = {**costless, **env_kwargs}
    return Task(kwargs, GoesOn(config.termination_reward, steps)) if going_on else Task(kwargs)


def _segment_steps(config: PreferConfig, env: gymnasium.Env[Any, Any]) -> int:
    """The length of a segment, or the usual one if that is more."""
    limit = NO_LIMIT if env.spec is None else env.spec.max_episode_steps or NO_LIMIT
    usual = usual_length(getattr(env.unwrapped, "dt", None), limit)
    return max(config.segment_steps or 1, usual)


def _torque_weights(env: gymnasium.Env[Any, Any]) -> list[str]:
    # The inverted pendulums have no such cost.
    known = inspect.signature(type(env.unwrapped).__init__).parameters
    return [name for name in TORQUE_WEIGHTS if name in known]
