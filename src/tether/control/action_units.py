"""Units in which a policy acts: those of the action space's bounds, or the environment's own.

A network starts with outputs near 0 and a standard deviation near 1. In a Box whose bounds are 0.2
and 0.3, or -500 and 500, such actions are nearly always cut to a bound, or hardly ever move. So a
dimension with two finite bounds is measured in a unit in which they are -1 and 1.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

UNBOUNDED = 1e30
"""A bound of this size and beyond, such as the largest float32, says that there is none."""


class BoundsMap:
    """x -> low + (x + 1) / 2 (high - low) in the dimensions that have two finite bounds.

    Dimensions without a lower or an upper bound, or with equal ones, and those whose bounds are -1
    and 1 already, stay exactly as they are.

    Attributes:
        center: (A,) float64, what 0 becomes.
        half_range: (A,) float64, what a step of 1 becomes.
    """

    def __init__(self, center: np.ndarray, half_range: np.ndarray) -> None:
        self.center = center
        self.half_range = half_range

    @classmethod
    def of(cls, space: gym.spaces.Box) -> BoundsMap | None:
        """The map for the bounds of `space`; None where it would change nothing."""
        low, high = (np.ravel(bound).astype(float) for bound in (space.low, space.high))
        bounded = (low > -UNBOUNDED) & (high < UNBOUNDED) & (low < high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        center, half_range = low / 2 + high / 2, high / 2 - low / 2
        if (center == 0).all() and (half_range == 1).all():
            return None
        return cls(center, half_range)

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Actions (..., A) in the bounds' units as the environment measures them, float64."""
        scaled: np.ndarray = action * self.half_range + self.center
        return scaled

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_environment`."""
        units: np.ndarray = (action - self.center) / self.half_range
        return units

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, BoundsMap)
            and np.array_equal(self.center, other.center)
            and np.array_equal(self.half_range, other.half_range)
        )

    def __hash__(self) -> int:
        return hash((self.center.tobytes(), self.half_range.tobytes()))
