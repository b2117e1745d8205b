"""Segments as teachers see them, cut from the history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from tether.control.envs import VectorEnv
from tether.control.envs.protocol import NO_LIMIT
from tether.control.preferences.history import History, Window
from tether.errors import UserError
from tether.preferences.items import Segment

SECONDS: Final = 1.5
SHORTEST, LONGEST = 15, 60
"""The paper's segments are 1.5 seconds long, which was 15 to 60 steps (appendix A.1)."""


def segment_length(env: VectorEnv, given: int | None) -> int:
    """Steps of a segment: what is given, or 1.5 seconds within bounds.

    Raises:
        UserError: an episode is shorter than what is given.
    """
    limit = int(getattr(env, "episode_limit", NO_LIMIT))
    if given is not None:
        if given > limit:
            raise UserError(
                f"segment_steps is {given}, and an episode of {env.id} has at most {limit} steps; "
                "expected no more"
            )
        return given
    return usual_length(getattr(env, "dt", None), limit)


def usual_length(dt: float | None, limit: int) -> int:
    """Steps of a segment if none are given.

    Args:
        dt: seconds of a step, if the environment has a clock.
        limit: the most steps of an episode.
    """
    usual = LONGEST if dt is None else round(SECONDS / dt)
    return max(1, min(max(SHORTEST, min(LONGEST, usual)), limit // 2))


class Cutter:
    """Cuts segments out of a history.

    Attributes:
        env_kwargs: what the environment was made with.
        origin: the name of the run, once it has one.
    """

    def __init__(self, env: VectorEnv, env_kwargs: Mapping[str, Any]) -> None:
        """Segments will say that they come from `env`."""
        self.env_kwargs = dict(env_kwargs)
        self.origin = ""
        self._id = env.id
        self._dt = getattr(env, "dt", None)
        self._positions = getattr(env, "positions", 0)

    def cut(self, history: History, window: Window) -> Segment:
        """One segment, with its true reward."""
        rows, n = slice(window.start, window.start + window.length), window.env
        coordinates = history.coordinates[rows, n]
        seen = coordinates.shape[1] > 0
        return Segment(
            env=self._id,
            env_kwargs=self.env_kwargs,
            observation=history.observation[rows, n],
            action=np.asarray(history.action[rows, n]),
            qpos=coordinates[:, : self._positions] if seen else None,
            qvel=coordinates[:, self._positions :] if seen else None,
            reward=history.reward[rows, n],
            dt=self._dt,
            origin=self.origin,
            step=int(history.step[window.start]),
            terminated=bool(history.terminated[window.start + window.length - 1, n]),
        )
