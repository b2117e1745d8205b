"""Which segments to ask about: each rule takes candidate queries and returns the best of them.

A candidate query is K segments. What the members of the ensemble predict of them is given as their
sums of rewards over each segment, (M, Q, K) for M members and Q candidates.

Source:
    Christiano et al. (2017), section 2.2.4, for disagreement; Lee et al., "B-Pref" (2021), section
    3.2, for entropy and coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np

Selection: TypeAlias = Literal["uniform", "disagreement", "entropy", "coverage"]


def probabilities(sums: np.ndarray) -> np.ndarray:
    """P(the i-th is better than the j-th) of every pair i < j, by each member.

    Args:
        sums: (M, Q, K).

    Returns:
        (M, Q, K (K - 1) / 2).
    """
    first, second = np.triu_indices(sums.shape[-1], 1)
    margin = sums[..., first] - sums[..., second]
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * margin)))


def uniform(count: int, sums: np.ndarray, features: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The first candidates, which are in random order."""
    return np.arange(min(count, sums.shape[1]))


def disagreement(
    count: int, sums: np.ndarray, features: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Those on which the members' probabilities have the greatest variance."""
    return _greatest(probabilities(sums).var(axis=0).mean(axis=-1), count)


def entropy(count: int, sums: np.ndarray, features: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Those of which the ensemble's mean probability is the least certain."""
    p = np.clip(probabilities(sums).mean(axis=0), 1e-12, 1 - 1e-12)
    return _greatest(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean(axis=-1), count)


def coverage(count: int, sums: np.ndarray, features: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Those that lie furthest from all that was asked and chosen before them (greedy k-centre).

    Args:
        count: how many to choose.
        sums: (M, Q, K); not used.
        features: (Q, F), where each candidate lies.
        asked: (A, F), where the queries asked so far lie.
    """
    far = np.full(len(features), np.inf)
    for centre in asked:
        far = np.minimum(far, _squared(features, centre))
    chosen: list[int] = []
    for _ in range(min(count, len(features))):
        best = int(np.argmax(far))
        chosen.append(best)
        far = np.minimum(far, _squared(features, features[best]))
        far[best] = -np.inf
    return np.array(chosen, np.int64)


SELECTIONS: Final[dict[Selection, Callable[..., np.ndarray]]] = {
    "uniform": uniform,
    "disagreement": disagreement,
    "entropy": entropy,
    "coverage": coverage,
}


def distinct(rng: np.random.Generator, total: int, count: int, items: int) -> np.ndarray:
    """`count` rows of `items` different numbers below `total` each, (count, items)."""
    drawn = rng.integers(0, total, (count, items))
    while True:
        ordered = np.sort(drawn, axis=1)
        twice = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if not len(twice):
            return drawn
        drawn[twice] = rng.integers(0, total, (len(twice), items))


def _greatest(values: np.ndarray, count: int) -> np.ndarray:
    # Stable, so that equal values keep the candidates' random order.
    return np.argsort(-values, kind="stable")[:count]


def _squared(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return np.asarray(((features - centre) ** 2).sum(axis=-1))
