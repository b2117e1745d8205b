"""The newest steps of every environment, from which segments are cut."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from tether.control.rollout import Experience


class Window(NamedTuple):
    """Where a segment lies in the history: its first step, its environment, its steps."""

    start: int
    env: int
    length: int


_ARRAYS: Final = ("observation", "action", "reward", "terminated", "done", "coordinates", "step")


class History:
    """Steps of N environments in their order, the oldest first, W at most.

    Attributes:
        observation: (W, N, O) float32, before each step.
        action: (W, N, *action), as the environment took them.
        reward: (W, N) float64, the true ones.
        terminated: (W, N) bool.
        done: (W, N) bool, the episode ended with this step.
        coordinates: (W, N, nq + nv) float64, MuJoCo's before each step; nq + nv = 0 elsewhere.
        step: (W,) int64, environment steps that training had taken when the rollout began.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    coordinates: np.ndarray
    step: np.ndarray

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.length = 0

    def add(self, seen: Experience, step: int, keep: int) -> None:
        """Takes in a rollout, and forgets all but the newest `keep` steps of each environment."""
        new = {
            "observation": np.asarray(seen.observation, np.float32),
            "action": seen.action,
            "reward": seen.reward,
            "terminated": seen.terminated,
            "done": seen.terminated | seen.truncated,
            "coordinates": seen.coordinates,
            "step": np.full(len(seen.reward), step, np.int64),
        }
        for name, array in new.items():
            old = getattr(self, name)[-keep:] if self.length else array[:0]
            setattr(self, name, np.concatenate([old, array])[-keep:])
        self.length = len(self.reward)

    def windows(self, length: int) -> np.ndarray:
        """Every segment that can be cut, (S, 3) of :class:`Window`.

        None crosses an episode's end. A whole episode shorter than `length` is a segment too.
        """
        if not self.length:
            return np.zeros((0, 3), np.int64)
        steps = np.arange(self.length)[:, None]
        # The step with which the running episode ends, or the last one there is.
        end = np.where(self.done, steps, self.length - 1)
        end = np.minimum.accumulate(end[::-1], axis=0)[::-1]
        whole = end - steps + 1 >= length
        ends = np.take_along_axis(self.done, end, axis=0)
        begins = np.zeros_like(self.done)
        begins[1:] = self.done[:-1]
        start, env = np.nonzero(whole | (begins & ends))
        return np.stack([start, env, np.minimum(length, end[start, env] - start + 1)], axis=1)

    def state(self) -> dict[str, Any]:
        """All of it."""
        arrays = {name: getattr(self, name) for name in _ARRAYS} if self.length else {}
        return {"length": self.length, **arrays}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.length = int(state["length"])
        for name in _ARRAYS if self.length else ():
            setattr(self, name, np.asarray(state[name]))
