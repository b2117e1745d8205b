"""Objectives of the policy (to be maximized), losses of the critic (to be minimized), diagnostics.

Advantages, returns, old values and targets are data: give them detached (`jax.lax.stop_gradient`,
`tensor.detach()`), because these functions differentiate whatever they are given. `log_ratio` is
log pi_theta(a|s) - log pi_old(a|s), in nats; only log pi_theta carries a gradient.
"""

from __future__ import annotations

import math

from ._arrays import Array, Scalar, as_bool, keep, namespace, same_rank
from .reduction import Reduction, aggregate, masked_mean


def policy_gradient(
    log_prob: Array, weight: Array, mask: Array | None = None, *, reduction: Reduction = "mean"
) -> Array:
    """Objective whose gradient is the policy gradient; MAXIMIZE.

    J = E[log pi_theta(a|s) w],   grad J = E[grad log pi_theta(a|s) w]

    The value of J means nothing by itself. All weights of the lecture have the same expected
    gradient: the return G_t, the action value Q(s, a), the advantage A(s, a) = Q(s, a) - V(s).

    Args:
        log_prob: log pi_theta(a_t|s_t) in nats; any shape.
        weight: Return, action value or advantage; same shape. A constant by contract: detach it.
        mask: Boolean, same shape; true where an element counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in units of `weight`.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Sutton and Barto (2018), equation 13.8; PPO (2017), equation 2; the lecture's REINFORCE,
        actor-critic and "equivalent policy gradient objectives".
    """
    xp = namespace(log_prob)
    same_rank(log_prob=log_prob, weight=weight, mask=mask)
    return aggregate(keep(xp, mask, log_prob) * keep(xp, mask, weight), mask, reduction)


def surrogate(
    log_ratio: Array, advantage: Array, mask: Array | None = None, *, reduction: Reduction = "mean"
) -> Array:
    """Importance-sampled objective of TRPO; MAXIMIZE.

    J = E_old[r A],   r = pi_theta(a|s) / pi_old(a|s)

    Args:
        log_ratio: log r in nats; any shape.
        advantage: A of the old policy, detached; same shape.
        mask: Boolean, same shape; true where an element counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in units of `advantage`.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Schulman et al., "Trust region policy optimization" (2015), equation 14; PPO (2017),
        equation 6; the lecture's "importance sampling with off-policy model".
    """
    xp = namespace(log_ratio)
    same_rank(log_ratio=log_ratio, advantage=advantage, mask=mask)
    ratio = xp.exp(keep(xp, mask, log_ratio))
    return aggregate(ratio * keep(xp, mask, advantage), mask, reduction)


def clipped_surrogate(
    log_ratio: Array,
    advantage: Array,
    epsilon: Scalar,
    mask: Array | None = None,
    *,
    reduction: Reduction = "mean",
) -> Array:
    """Clipped objective of PPO; MAXIMIZE.

    J = E_old[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)]

    The minimum bounds the ratio only on the side to which the advantage pushes it, from above where
    A >= 0 and from below where A < 0: a bound, never a reward, for leaving the region.

    Args:
        log_ratio: log r in nats; any shape.
        advantage: A of the old policy, detached; same shape.
        epsilon: Half-width of the region for r, usually 0.1 to 0.3.
        mask: Boolean, same shape; true where an element counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in units of `advantage`.

    Raises:
        ValueError: When `epsilon` is not positive, or the arrays differ in their number of axes.

    Source:
        Schulman et al., "Proximal policy optimization algorithms" (2017), equation 7; the lecture's
        J^CLIP.
    """
    xp = namespace(log_ratio)
    same_rank(log_ratio=log_ratio, advantage=advantage, mask=mask)
    log_ratio, advantage = keep(xp, mask, log_ratio), keep(xp, mask, advantage)
    low, high = _log_bounds(log_ratio, epsilon)
    # Bounding before the exponential keeps the gradient finite where the ratio itself overflows.
    bounded = xp.where(advantage >= 0, xp.clip(log_ratio, max=high), xp.clip(log_ratio, min=low))
    return aggregate(xp.exp(bounded) * advantage, mask, reduction)


def kl_penalized_surrogate(
    log_ratio: Array,
    advantage: Array,
    kl: Array,
    beta: Scalar,
    mask: Array | None = None,
    *,
    reduction: Reduction = "mean",
) -> Array:
    """PPO's objective with a KL penalty; MAXIMIZE.

    J = E_old[r A - beta KL(pi_old(.|s) || pi_theta(.|s))]

    Args:
        log_ratio: log r in nats; any shape.
        advantage: A of the old policy, detached; same shape.
        kl: KL divergence of each state, in nats; same shape, such as from `diagonal_gaussian_kl`
            or `categorical_kl`.
        beta: Price of a nat, in units of `advantage`; `ppo_adaptive_beta` moves it.
        mask: Boolean, same shape; true where an element counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in units of `advantage`.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        PPO (2017), equation 8; the lecture's "PPO with adaptive KL penalty".
    """
    xp = namespace(log_ratio)
    same_rank(log_ratio=log_ratio, advantage=advantage, kl=kl, mask=mask)
    gain = xp.exp(keep(xp, mask, log_ratio)) * keep(xp, mask, advantage)
    return aggregate(gain - beta * keep(xp, mask, kl), mask, reduction)


def value_loss(
    value: Array, target: Array, mask: Array | None = None, *, reduction: Reduction = "mean"
) -> Array:
    """Squared error of the critic; MINIMIZE.

    L = E[(V_phi(s) - target)^2] / 2,   grad L = E[(V_phi(s) - target) grad V_phi(s)]

    Args:
        value: V_phi(s); any shape.
        target: What the value should have been, detached (a return, or advantage + old value);
            same shape.
        mask: Boolean, same shape; true where an element counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in units of `value` squared.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        PPO (2017), equation 9 (L^VF), with the half that makes the gradient the error itself.
    """
    xp = namespace(value)
    same_rank(value=value, target=target, mask=mask)
    error = keep(xp, mask, value) - keep(xp, mask, target)
    return aggregate(0.5 * error * error, mask, reduction)


def clipped_value_loss(
    value: Array,
    old_value: Array,
    target: Array,
    epsilon: Scalar,
    mask: Array | None = None,
    *,
    reduction: Reduction = "mean",
) -> Array:
    """Squared error of a critic that may move by epsilon only; MINIMIZE.

    L = E[max((V - target)^2, (V_old + clip(V - V_old, -epsilon, epsilon) - target)^2)] / 2

    Args:
        value: V_phi(s); any shape.
        old_value: The critic's value when the data were collected, detached; same shape.
        target: What the value should have been, detached; same shape.
        epsilon: How far V may move, in units of `value`: it depends on the scale of the rewards.
        mask: Boolean, same shape; true where an element counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in units of `value` squared.

    Raises:
        ValueError: When `epsilon` is not positive, or the arrays differ in their number of axes.

    Source:
        Engstrom et al., "Implementation matters in deep policy gradients" (2020), section 3;
        also in the PPO of Ziegler et al. (2019).
    """
    _positive(epsilon)
    xp = namespace(value)
    same_rank(value=value, old_value=old_value, target=target, mask=mask)
    value, target = keep(xp, mask, value), keep(xp, mask, target)
    old_value = keep(xp, mask, old_value)
    error = value - target
    held = old_value + xp.clip(value - old_value, -epsilon, epsilon) - target
    return aggregate(0.5 * xp.maximum(error * error, held * held), mask, reduction)


def clip_active(
    log_ratio: Array, advantage: Array, epsilon: Scalar, mask: Array | None = None
) -> Array:
    """Where the clip is the active branch of `clipped_surrogate`, so that the gradient is zero.

    True in two of the six rows of the lecture's table: r > 1 + epsilon with A > 0, and
    r < 1 - epsilon with A < 0.

    Args:
        log_ratio: log r in nats; any shape.
        advantage: A of the old policy; same shape.
        epsilon: Half-width of the region for r.
        mask: Boolean, same shape; the answer is false where it is.

    Returns:
        Boolean, same shape.

    Raises:
        ValueError: When `epsilon` is not positive, or the arrays differ in their number of axes.

    Source:
        PPO (2017), figure 1; the lecture's "visualize the clipped surrogate objective function".
    """
    xp = namespace(log_ratio)
    same_rank(log_ratio=log_ratio, advantage=advantage, mask=mask)
    low, high = _log_bounds(log_ratio, epsilon)
    active = ((advantage > 0) & (log_ratio > high)) | ((advantage < 0) & (log_ratio < low))
    return active if mask is None else active & as_bool(xp, mask)


def clip_fraction(
    log_ratio: Array, advantage: Array | None, epsilon: Scalar, mask: Array | None = None
) -> Array:
    """Fraction of the elements outside the region, or held by the clip.

    Args:
        log_ratio: log r in nats; any shape.
        advantage: None counts |r - 1| > epsilon, the number usually reported; an array counts only
            where the clip cuts the gradient, see `clip_active`.
        epsilon: Half-width of the region for r.
        mask: Boolean, same shape; true where an element counts.

    Returns:
        A scalar in [0, 1] with the dtype of `log_ratio`.

    Raises:
        ValueError: When `epsilon` is not positive, or the arrays differ in their number of axes.
    """
    xp = namespace(log_ratio)
    if advantage is None:
        low, high = _log_bounds(log_ratio, epsilon)
        outside = (log_ratio < low) | (log_ratio > high)
    else:
        outside = clip_active(log_ratio, advantage, epsilon)
    return masked_mean(xp.astype(outside, log_ratio.dtype), mask)


def explained_variance(value: Array, target: Array, mask: Array | None = None) -> Array:
    """How much of the targets the critic explains: 1 - Var(target - value) / Var(target).

    Args:
        value: V_phi(s); any shape.
        target: What the value should have been; same shape.
        mask: Boolean, same shape; true where an element counts.

    Returns:
        A scalar: 1 for a perfect critic, 0 for a constant one, negative for a harmful one; NaN
        when the target does not vary.

    Raises:
        ValueError: When the arrays differ in their number of axes.
    """
    xp = namespace(value, target)
    same_rank(value=value, target=target, mask=mask)
    value, target = keep(xp, mask, value), keep(xp, mask, target)
    spread = _moments(target, mask)[1]
    varies = spread > 0
    left = _moments(target - value, mask)[1] / xp.where(varies, spread, 1.0)
    return xp.where(varies, 1.0 - left, math.nan)


def effective_sample_size(log_ratio: Array, mask: Array | None = None) -> Array:
    """How many samples of pi_theta the reweighted samples of pi_old are worth.

    ESS = (sum_i r_i)^2 / sum_i r_i^2

    Args:
        log_ratio: log r in nats; any shape.
        mask: Boolean, same shape; true where an element counts.

    Returns:
        A scalar in [1, n]: n, the number of elements that count, when the policies agree.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Kong, "A note on importance sampling using standardized weights" (1992).
    """
    xp = namespace(log_ratio)
    same_rank(log_ratio=log_ratio, mask=mask)
    log_ratio = keep(xp, mask, log_ratio, -math.inf)
    ratio = xp.exp(log_ratio - xp.max(log_ratio))
    return xp.sum(ratio) ** 2 / xp.sum(ratio * ratio)


def normalize_advantage(advantage: Array, mask: Array | None = None) -> Array:
    """Advantages shifted and scaled to mean 0 and standard deviation 1.

    (A - mean(A)) / (std(A) + 1e-8), with the standard deviation of the population (division by n).

    Args:
        advantage: Any shape; mean and deviation are taken over all elements that count.
        mask: Boolean, same shape; true where an element counts.

    Returns:
        Same shape and dtype, without units; zero where masked. Advantages that are equal up to
        rounding become zeros.

    Raises:
        ValueError: When the arrays differ in their number of axes.
    """
    xp = namespace(advantage)
    same_rank(advantage=advantage, mask=mask)
    advantage = keep(xp, mask, advantage)
    mean, variance = _moments(advantage, mask)
    # Equal numbers differ from their own mean by rounding, which is not to be scaled up.
    rounding = 8.0 * float(xp.finfo(advantage.dtype).eps) * xp.max(xp.abs(advantage))
    deviation = xp.sqrt(variance) + 1e-8
    scale = xp.where(variance > rounding * rounding, deviation, xp.full_like(deviation, math.inf))
    return keep(xp, mask, (advantage - mean) / scale)


def _moments(values: Array, mask: Array | None) -> tuple[Array, Array]:
    mean = masked_mean(values, mask)
    centred = values - mean
    return mean, masked_mean(centred * centred, mask)


def _positive(epsilon: Scalar) -> None:
    if isinstance(epsilon, int | float) and not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}: give a positive number, such as 0.2")


def _log_bounds(log_ratio: Array, epsilon: Scalar) -> tuple[Array | float, Array | float]:
    """log(1 - epsilon) and log(1 + epsilon); no lower bound where epsilon reaches 1."""
    _positive(epsilon)
    if isinstance(epsilon, int | float):
        return math.log1p(-epsilon) if epsilon < 1 else -math.inf, math.log1p(epsilon)
    xp = namespace(log_ratio)
    # The smallest float32 stands for zero, whose logarithm would spoil the gradient.
    return xp.log(xp.clip(1.0 - epsilon, min=1e-37)), xp.log1p(epsilon)
