"""Returns and advantages: what a step was worth, seen from its end.

Time runs along one axis; every other axis is free. There is no loop over time: each quantity is a
linear recurrence that runs backwards, x_t = a_t + c_t x_{t+1}, solved in ceil(log2 T) doublings.
"""

from __future__ import annotations

from typing import Any

from ._arrays import Array, Scalar, as_bool, keep, namespace, same_rank


def reverse_linear_recurrence(a: Array, c: Array | Scalar, axis: int = 0) -> Array:
    """Solve x_t = a_t + c_t x_{t+1} backwards in time, with nothing after the last step.

    After k steps of doubling, x_t holds the part of the answer that lies in the window
    [t, t + 2^k), and c_t the product of coefficients that leads out of it; two neighbouring windows
    join by x_t <- x_t + c_t x_{t + 2^k} and c_t <- c_t c_{t + 2^k}.

    Args:
        a: What each step adds; shape (..., T, ...) with T along `axis`.
        c: What each step passes on from its successor: a number, or an array of as many axes as
            `a`. Meant for |c| <= 1; products of larger coefficients can overflow.
        axis: The axis of time.

    Returns:
        x, with the shape and dtype of `a`.

    Raises:
        ValueError: When `axis` does not exist, or `c` has another number of axes than `a`.

    Source:
        Hillis and Steele, "Data parallel algorithms" (1986); Blelloch, "Prefix sums and their
        applications" (1990), section 1.4, for linear recurrences.
    """
    xp = namespace(a)
    same_rank(a=a, c=c)
    axis = _axis(a, axis)
    length = a.shape[axis]
    constant = getattr(c, "ndim", 0) == 0
    if not constant:
        c = xp.broadcast_to(c, a.shape)
    x, reach = a, 1
    while reach < length:
        x = x + c * _later(xp, x, reach, axis)
        reach *= 2
        if reach < length:
            # Past the end x is zero, so any coefficient does there and a constant needs no shift.
            c = c * (c if constant else _later(xp, c, reach // 2, axis))
    return x


def discounted_return(
    reward: Array,
    discount: Array | Scalar,
    *,
    bootstrap: Array | Scalar | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """Discounted return G_t = r_t + discount_t G_{t+1}.

    Args:
        reward: Rewards r_t; shape (..., T, ...).
        discount: A number, or an array like `reward` that holds gamma, and zero on the last step of
            each episode so that nothing flows back across the boundary.
        bootstrap: What follows the last step, G_T, in units of return: usually the value of the
            observation after it, or nothing (zero). A number, or the shape of `reward` without
            `axis`.
        mask: Boolean, like `reward`. Masked steps are as if deleted: they add nothing, discount
            nothing, and what follows them (`bootstrap` too) reaches the steps before them.
        axis: The axis of time.

    Returns:
        Returns with the shape and dtype of `reward`, in units of reward; zero where masked.

    Raises:
        ValueError: When the arrays differ in their number of axes, or `axis` does not exist.

    Source:
        Sutton and Barto, Reinforcement Learning (2018), equations 3.8 and 3.9; the G_t of the
        lecture's REINFORCE.
    """
    xp = namespace(reward)
    same_rank(reward=reward, discount=discount, mask=mask)
    axis = _axis(reward, axis)
    a = keep(xp, mask, reward)
    c = discount if mask is None else xp.where(as_bool(xp, mask), discount, xp.ones_like(a))
    if bootstrap is not None:
        # One more step after the data: it is worth the bootstrap and passes nothing on.
        nothing = xp.zeros_like(_slice(a, 0, 1, axis))
        after = xp.expand_dims(bootstrap, axis=axis) if getattr(bootstrap, "ndim", 0) else bootstrap
        a = xp.concat([a, nothing + after], axis=axis)
        if getattr(c, "ndim", 0):
            c = xp.concat([xp.broadcast_to(c, reward.shape), nothing], axis=axis)
    x = reverse_linear_recurrence(a, c, axis)
    return keep(xp, mask, _slice(x, 0, reward.shape[axis], axis) if bootstrap is not None else x)


def td_error(reward: Array, value: Array, next_value: Array, discount: Array | Scalar) -> Array:
    """Temporal-difference error delta_t = r_t + discount_t V(s_{t+1}) - V(s_t).

    With action values in place of state values it is the delta of the lecture's actor-critic.

    Args:
        reward: Rewards r_t; any shape.
        value: V(s_t) or Q(s_t, a_t); same shape.
        next_value: V of the observation that truly followed, or Q(s_{t+1}, a_{t+1}); same shape.
            Takes no part, whatever it holds, where an array `discount` is zero.
        discount: A number, or an array that holds gamma, and zero where the episode terminated.

    Returns:
        Errors in units of reward; same shape and dtype.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Sutton and Barto (2018), equation 6.5.
    """
    xp = namespace(reward, value, next_value)
    same_rank(reward=reward, value=value, next_value=next_value, discount=discount)
    if getattr(discount, "ndim", 0):
        next_value = keep(xp, discount != 0, next_value)
    return reward + discount * next_value - value


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    *,
    terminated: Array,
    done: Array,
    gamma: Scalar,
    lam: Scalar,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """Generalized advantage estimation.

    delta_t = r_t + gamma (1 - terminated_t) next_value_t - value_t
    A_t     = delta_t + gamma lam (1 - done_t) A_{t+1}

    A termination is worth nothing afterwards; a time limit is worth what the critic says of the
    observation at which the clock ran out. The target of the critic is A_t + value_t. At lam = 1
    the advantage is the return minus the value; at lam = 0 it is the TD error.

    Args:
        reward: Rewards r_t; shape (..., T, ...), such as (T, N) steps of N environments or (B, T)
            tokens of B completions.
        value: V(s_t); same shape.
        next_value: V of the TRUE next observation: at a time limit the one before the reset. Takes
            no part, whatever it holds, where `terminated`.
        terminated: Boolean: the episode ended in a terminal state.
        done: Boolean: the step is the last of its episode or of the data (terminated, truncated, or
            cut off). A terminated step is done whether or not it is marked here.
        gamma: Discount per step, in [0, 1].
        lam: The lambda that trades bias (0) for variance (1), in [0, 1].
        mask: Boolean, like `reward`. Masked steps (padding) are as if deleted: nothing they hold,
            flags included, counts, and the recurrence passes over them.
        axis: The axis of time.

    Returns:
        Advantages in units of reward, with the shape and dtype of `reward`; zero where masked.

    Raises:
        ValueError: When the arrays differ in their number of axes, or `axis` does not exist.

    Source:
        Schulman et al., "High-dimensional continuous control using generalized advantage
        estimation" (2016), equation 16; PPO (2017), equations 11 and 12.
    """
    xp = namespace(reward, value, next_value)
    same_rank(
        reward=reward,
        value=value,
        next_value=next_value,
        terminated=terminated,
        done=done,
        mask=mask,
    )
    terminated = as_bool(xp, terminated)
    done = as_bool(xp, done) | terminated
    ends = terminated if mask is None else terminated | ~as_bool(xp, mask)
    delta = td_error(reward, value, xp.where(ends, 0.0, next_value), gamma)
    delta = keep(xp, mask, delta)
    c = xp.where(done, xp.zeros_like(delta), gamma * lam)
    return keep(xp, mask, reverse_linear_recurrence(delta, keep(xp, mask, c, 1.0), axis))


def _axis(array: Array, axis: int) -> int:
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(
            f"axis is {axis} but the array has shape {tuple(array.shape)}: name one of its axes"
        )
    return axis % int(array.ndim)


def _slice(array: Array, start: int, stop: int | None, axis: int) -> Array:
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _later(xp: Any, array: Array, steps: int, axis: int) -> Array:
    """The array seen `steps` later, with zeros past the end."""
    gone = xp.zeros_like(_slice(array, 0, steps, axis))
    return xp.concat([_slice(array, steps, None, axis), gone], axis=axis)
