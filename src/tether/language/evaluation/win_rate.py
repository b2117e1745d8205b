"""How often one policy's answers beat another's, with ties, an interval, and length held equal."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.errors import UserError

_STEPS: Final = 100
_RIDGE: Final = 1e-3


def win_rate(
    one: ArrayLike,
    other: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """The share of prompts on which `one` scores higher; equal scores count half.

    Args:
        one: scores of a policy's answers, (N,).
        other: scores of the other's answers to the same prompts, (N,).
        groups: which training each answer comes from, (N,), where several were trained alike; see
            :func:`bootstrap_means`. None: one.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        ``win_rate``, its 95 % bootstrap ``interval``, ``n`` and ``ties``.

    Raises:
        UserError: no prompts, or not as many scores on both sides.
    """
    won = outcomes(one, other)
    low, high = np.quantile(
        bootstrap_means(won, groups, seed=seed, draws=draws), [0.025, 0.975]
    ).tolist()
    return {
        "win_rate": float(won.mean()),
        "interval": [low, high],
        "n": len(won),
        "ties": int((won == 0.5).sum()),
    }


def bootstrap_means(
    values: ArrayLike, groups: ArrayLike | None = None, *, seed: int = 0, draws: int = 2000
) -> NDArray[np.float64]:
    """Means of values drawn again with replacement; with groups in two stages.

    Groups are drawn first, then the values of each group that was drawn: an interval of these means
    holds for other prompts and for other trainings. With few groups it is wide, as it should be.

    Args:
        values: (N,).
        groups: which group each value belongs to, (N,); None: all to one.
        seed: decides the draws.
        draws: how many.

    Returns:
        (draws,).

    Source:
        Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    numbers = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    if groups is None:
        means: NDArray[np.float64] = numbers[
            random.integers(len(numbers), size=(draws, len(numbers)))
        ].mean(axis=1)
        return means
    which = np.asarray(groups)
    members = [np.flatnonzero(which == group) for group in np.unique(which)]
    chosen = random.integers(len(members), size=(draws, len(members)))
    total, count = np.zeros(draws), np.zeros(draws)
    for place, rows in enumerate(members):
        # A group that was drawn twice has its values drawn anew each time.
        for turn in range(len(members)):
            hit = np.flatnonzero(chosen[:, turn] == place)
            drawn = numbers[rows[random.integers(len(rows), size=(len(hit), len(rows)))]]
            total[hit] += drawn.sum(axis=1)
            count[hit] += len(rows)
    return total / count


def length_controlled(
    one: ArrayLike, other: ArrayLike, lengths: ArrayLike, other_lengths: ArrayLike
) -> float:
    """The win rate that is left where both answers are equally long.

    logit p_i = theta + phi tanh((length_i - other length_i) / s), s their standard deviation; the
    rate is sigma(theta). Where length alone has won, it is one half. It can't tell length from
    what length stands for: an answer may be longer for a good reason.

    Args:
        one: scores of a policy's answers, (N,).
        other: scores of the other's, (N,).
        lengths: of the policy's answers, (N,).
        other_lengths: of the other's, (N,).

    Source:
        Dubois et al., "Length-controlled AlpacaEval" (2024), equation 2, without the term for the
        difficulty of the prompt.
    """
    won = outcomes(one, other)
    difference = np.asarray(lengths, np.float64) - np.asarray(other_lengths, np.float64)
    scale = difference.std()
    column = np.tanh(difference / scale) if scale else np.zeros(len(won))
    theta = _logistic(np.stack([np.ones(len(won)), column], axis=1), won)[0]
    return float(0.5 * (1.0 + np.tanh(0.5 * theta)))


def outcomes(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """1 where `one` is higher, 0 where it is lower, 0.5 where they are equal; (N,).

    Raises:
        UserError: no scores, or not as many on both sides.
    """
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise UserError(
            f"the scores have the shapes {first.shape} and {second.shape}; expected one score of "
            "each policy for every prompt"
        )
    won: NDArray[np.float64] = (first > second) + 0.5 * (first == second)
    return won


def _logistic(features: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton's method; a little ridge, where all have won, keeps the weights finite."""
    weights = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        p = 0.5 * (1.0 + np.tanh(0.5 * (features @ weights)))
        gradient = features.T @ (share - p) - _RIDGE * weights
        curvature = (features.T * (p * (1 - p))) @ features + _RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-10:
            break
    return weights
