"""Scores of several reward models, or of the members of one, as one score."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tether import objectives

Combine: TypeAlias = Literal["mean", "lowest", "mean-variance"]
"""The mean, the lowest, or the mean less a multiple of the variance."""
COMBINES: Final = ("mean", "lowest", "mean-variance")
VARIANCE_WEIGHT: Final = 0.1
"""What a unit of variance costs unless it is given; for PPO, by Coste et al. (2023)."""


def combined(
    scores: NDArray[np.float64], combine: Combine, variance_weight: float
) -> NDArray[np.float64]:
    """What members say together.

    Args:
        scores: (K, N) of K members; NaN where a member has none, though never of all of them.
        combine: how.
        variance_weight: of "mean-variance".

    Returns:
        (N,).
    """
    there = ~np.isnan(scores)
    total: NDArray[np.float64]
    if combine == "lowest":
        total = objectives.worst_case(scores, there)
    else:
        weight = variance_weight if combine == "mean-variance" else 0.0
        total = objectives.uncertainty_weighted(scores, weight, there)
    return total


def spread(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard deviation of the members' scores of each completion.

    Args:
        scores: (K, N) of K members; NaN where a member has none.

    Returns:
        (N,); NaN where fewer than two members have a score.
    """
    there: Any = ~np.isnan(scores)
    several = there.sum(axis=0) > 1
    variance = objectives.ensemble_variance(scores, there | ~several)
    return np.where(several, np.sqrt(variance), np.nan)
