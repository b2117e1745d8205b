"""One score from several: what an ensemble of reward models says together."""

from __future__ import annotations

from typing import Any

from ._arrays import Array, Scalar, as_bool, keep, namespace, same_rank


def worst_case(scores: Array, mask: Array | None = None, *, axis: int = 0) -> Array:
    """The score of the most sceptical member: min_i r_i.

    What one member over-estimates earns nothing as long as another does not.

    Args:
        scores: Scores of K members along `axis`; any other axes. They have to be on one scale, see
            `uncertainty_weighted`.
        mask: Boolean, same shape; true where a member has a score.
        axis: Of the members.

    Returns:
        Shape of `scores` without `axis`; infinity where no member has a score.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Coste et al., "Reward model ensembles help mitigate overoptimization" (2023), section 3,
        equation 3, worst-case optimization (WCO).
    """
    xp = namespace(scores)
    same_rank(scores=scores, mask=mask)
    return xp.min(keep(xp, mask, scores, float("inf")), axis=axis)


def uncertainty_weighted(
    scores: Array, weight: Scalar, mask: Array | None = None, *, axis: int = 0
) -> Array:
    """The members' mean, less a price for their disagreement; with weight 0 the mean itself.

    mean_i r_i - weight * mean_i (r_i - mean_j r_j)^2

    Comparisons teach differences of rewards alone, so a member's level and scale are arbitrary.
    Unless every member has been brought to one level and scale on the same kind of samples, the
    variance measures these, and the worst case is that of the member with the lowest level.

    Args:
        scores: Scores of K members along `axis`; any other axes.
        weight: The paper's lambda, in units of one over the scores': 0.1 in its PPO, 0.5 in its
            best-of-n, where scores have deviation 1.
        mask: Boolean, same shape; true where a member has a score.
        axis: Of the members.

    Returns:
        Shape of `scores` without `axis`; NaN where no member has a score.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Coste et al. (2023), section 3, equation 4, uncertainty-weighted optimization (UWO); mean
        optimization is its equation 2.
    """
    xp, mean = _mean(scores, mask, axis)
    return xp.squeeze(mean, axis=axis) - weight * ensemble_variance(scores, mask, axis=axis)


def ensemble_variance(scores: Array, mask: Array | None = None, *, axis: int = 0) -> Array:
    """How much the members disagree: mean_i (r_i - mean_j r_j)^2, over the members themselves.

    Args:
        scores: Scores of K members along `axis`; any other axes.
        mask: Boolean, same shape; true where a member has a score.
        axis: Of the members.

    Returns:
        Shape of `scores` without `axis`, in units of the scores squared; 0 of a single member, NaN
        where no member has a score.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Coste et al. (2023), equation 4.
    """
    xp, mean = _mean(scores, mask, axis)
    squares = keep(xp, mask, (keep(xp, mask, scores) - mean) ** 2)
    return xp.sum(squares, axis=axis) / _count(xp, scores, mask, axis, keepdims=False)


def _mean(scores: Array, mask: Array | None, axis: int) -> tuple[Any, Array]:
    """The mean of the members that have a score, with `axis` of length 1."""
    xp = namespace(scores)
    same_rank(scores=scores, mask=mask)
    total = xp.sum(keep(xp, mask, scores), axis=axis, keepdims=True)
    return xp, total / _count(xp, scores, mask, axis, keepdims=True)


def _count(xp: Any, scores: Array, mask: Array | None, axis: int, *, keepdims: bool) -> Array:
    if mask is None:
        return scores.shape[axis]
    there = xp.broadcast_to(as_bool(xp, mask), scores.shape)
    return xp.sum(xp.astype(there, scores.dtype), axis=axis, keepdims=keepdims)
