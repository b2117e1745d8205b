"""Steps within a trust region: TRPO's in parameters, ACER's in a distribution's own statistics.

TRPO's natural step: solve by conjugate gradients, scale to the region, search the line.

Vectors are flat arrays of one library; the curvature is a callable v -> H v. Nothing here asks an
array for its value, so all of it can be compiled: each search makes a fixed number of rounds, and
`where` freezes what is settled. The rounds run in Python and unroll under a compiler; `loop` hands
them to a compiled loop instead, in JAX for example

    loop = lambda round_, state, times: jax.lax.fori_loop(0, times, lambda _, s: round_(s), state)

ACER's projection has a closed form and needs no curvature.

Source:
    Schulman et al., "Trust region policy optimization" (2015), appendix C; Wang et al., "Sample
    efficient actor-critic with experience replay" (2017), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ._arrays import Array, Scalar, namespace

MatVec: TypeAlias = Callable[[Array], Array]
Loop: TypeAlias = Callable[[Callable[[Any], Any], Any, int], Any]


class LineSearch(NamedTuple):
    """What a line search found.

    Attributes:
        accepted: Boolean scalar; false when no candidate was good enough and the step is zero.
        backtracks: Integer scalar: candidates refused before the accepted one, or all of them.
        objective: Objective at the returned step.
        improvement: Its gain over the objective at the zero step; zero when nothing was accepted.
        kl: KL divergence at the returned step, in nats; zero when nothing was accepted.
    """

    accepted: Array
    backtracks: Array
    objective: Array
    improvement: Array
    kl: Array


def unrolled(round_: Callable[[Any], Any], state: Any, times: int) -> Any:
    """Apply `round_` to `state` the given number of times, in Python."""
    for _ in range(times):
        state = round_(state)
    return state


def conjugate_gradient(
    matvec: MatVec,
    b: Array,
    iterations: int = 10,
    tolerance: float = 1e-10,
    damping: Scalar = 0.0,
    *,
    loop: Loop = unrolled,
) -> Array:
    """Solve (H + damping I) x = b for a symmetric positive definite H.

    Args:
        matvec: v -> H v for vectors shaped like `b`.
        b: Right-hand side; shape (P,).
        iterations: Rounds at most; each calls `matvec` once.
        tolerance: Stops when |b - (H + damping I) x|^2 <= tolerance |b|^2: relative, so that the
            answer does not depend on the scale of the rewards.
        damping: Added to the diagonal of H.
        loop: Runs the rounds; see the module's text.

    Returns:
        x, with the shape and dtype of `b`. Where the curvature along a direction is not positive
        or not a number, the search keeps what it had.

    Raises:
        ValueError: When `iterations` is negative.

    Source:
        Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
    """
    _count("iterations", iterations, 0)
    xp = namespace(b)
    enough = tolerance * xp.sum(b * b)

    def round_(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, residual, direction, square = state
        bent = matvec(direction) + damping * direction
        curvature = xp.sum(direction * bent)
        going = (square > enough) & (curvature > 0)
        length = xp.where(going, square, 0.0) / xp.where(going, curvature, 1.0)
        next_residual = residual - length * bent
        next_square = xp.sum(next_residual * next_residual)
        turn = next_square / xp.where(going, square, 1.0)
        return (
            xp.where(going, x + length * direction, x),
            xp.where(going, next_residual, residual),
            xp.where(going, next_residual + turn * direction, direction),
            xp.where(going, next_square, square),
        )

    solution, *_ = loop(round_, (xp.zeros_like(b), b, b, xp.sum(b * b)), iterations)
    return solution


def natural_step(
    matvec: MatVec,
    gradient: Array,
    max_kl: Scalar,
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
    damping: Scalar = 0.0,
    loop: Loop = unrolled,
) -> Array:
    """The step that raises the objective most within a KL divergence of max_kl, to second order.

    x = H^-1 g,   step = sqrt(2 max_kl / x^T H x) x,   where H includes the damping

    Args:
        matvec: v -> H v, with H the Hessian of the mean KL(pi_old || pi_theta) at the old
            parameters (the Fisher matrix).
        gradient: g, the gradient of the objective to be MAXIMIZED; shape (P,).
        max_kl: Size of the region, in nats; usually 0.01.
        iterations: Rounds of conjugate gradients.
        tolerance: Relative tolerance of conjugate gradients.
        damping: Added to the diagonal of H, usually 0.1; makes the step shorter.
        loop: Runs the rounds; see the module's text.

    Returns:
        The step to ADD to the parameters, shaped like `gradient`; zero where the gradient is zero.

    Raises:
        ValueError: When `max_kl` is not positive or `iterations` is negative.

    Source:
        TRPO (2015), appendix C.
    """
    _region(max_kl)
    xp = namespace(gradient)
    x = conjugate_gradient(matvec, gradient, iterations, tolerance, damping, loop=loop)
    curvature = xp.sum(x * (matvec(x) + damping * x))
    usable = curvature > 0
    scale = xp.sqrt(2.0 * max_kl / xp.where(usable, curvature, 1.0))
    return xp.where(usable, scale * x, xp.zeros_like(x))


def line_search(
    evaluate: Callable[[Array], tuple[Array, Array]],
    step: Array,
    *,
    max_kl: Scalar,
    start: Scalar | None = None,
    min_improvement: Scalar = 0.0,
    candidates: int = 10,
    shrink: float = 0.5,
    loop: Loop = unrolled,
) -> tuple[Array, LineSearch]:
    """The longest of step, shrink step, shrink^2 step, ... that keeps its promise.

    A candidate is accepted when its KL divergence is at most max_kl and its objective is more than
    min_improvement above that of the zero step. NaN is never accepted.

    Args:
        evaluate: displacement of the parameters -> (objective, KL divergence in nats), both
            scalars. Called for every candidate, also after one has been accepted.
        step: The longest displacement to try; shape (P,).
        max_kl: Size of the region, in nats.
        start: Objective at the zero step; evaluated when None.
        min_improvement: What the objective has to rise by, in its own units.
        candidates: How many lengths to try.
        shrink: Factor from one length to the next, between 0 and 1.
        loop: Runs the rounds; see the module's text.

    Returns:
        The accepted displacement (zeros when there is none) and a `LineSearch`.

    Raises:
        ValueError: When `max_kl` is not positive, `candidates` is below 1, or `shrink` is not
            between 0 and 1.

    Source:
        TRPO (2015), appendix C.
    """
    _region(max_kl)
    _count("candidates", candidates, 1)
    if not 0 < shrink < 1:
        raise ValueError(f"shrink is {shrink}: give a number between 0 and 1, such as 0.5")
    xp = namespace(step)
    still = xp.zeros_like(step)
    origin = xp.sum(still)
    base = origin + (evaluate(still)[0] if start is None else start)

    def round_(state: tuple[Array, Array, LineSearch]) -> tuple[Array, Array, LineSearch]:
        candidate, best, found = state
        objective, kl = evaluate(candidate)
        good = (kl <= max_kl) & (objective > base + min_improvement)
        take = good & ~found.accepted
        done = good | found.accepted
        return (
            candidate * shrink,
            xp.where(take, candidate, best),
            LineSearch(
                accepted=done,
                backtracks=xp.where(done, found.backtracks, found.backtracks + 1),
                objective=xp.where(take, objective, found.objective),
                improvement=xp.where(take, objective - base, found.improvement),
                kl=xp.where(take, kl, found.kl),
            ),
        )

    nothing = LineSearch(
        accepted=origin > 0,
        backtracks=xp.astype(origin, xp.int32),
        objective=base,
        improvement=origin,
        kl=origin,
    )
    _, best, found = loop(round_, (step, still, nothing), candidates)
    return best, found


def trust_region_projection(
    gradient: Array, kl_gradient: Array, max_slope: Scalar, axis: int = -1
) -> Array:
    """The direction nearest to a gradient along which a KL divergence grows slowly enough.

    min_z |g - z|^2 / 2  subject to  k . z <= delta;   z = g - max(0, (k . g - delta) / |k|^2) k

    Args:
        gradient: g, the gradient of the objective to be MAXIMIZED with respect to the statistics of
            each state's action distribution (means, logits); shape (..., A, ...) with the A
            statistics along `axis`.
        kl_gradient: k, the gradient of KL(pi_average || pi_theta) with respect to the same
            statistics; same shape.
        max_slope: delta, how fast the divergence may grow along z; 1 in the paper.
        axis: The axis of the statistics.

    Returns:
        z, shaped like `gradient`: the gradient itself wherever it respects the bound, and wherever
        k is zero.

    Raises:
        ValueError: When `max_slope` is negative.

    Source:
        ACER (2017), equation 12 and the closed form below it.
    """
    if isinstance(max_slope, int | float) and max_slope < 0:
        raise ValueError(f"max_slope is {max_slope}: give a number of at least 0, such as 1")
    xp = namespace(gradient, kl_gradient)
    excess = xp.sum(kl_gradient * gradient, axis=axis, keepdims=True) - max_slope
    square = xp.sum(kl_gradient * kl_gradient, axis=axis, keepdims=True)
    over = (excess > 0) & (square > 0)
    return gradient - xp.where(over, excess, 0.0) / xp.where(over, square, 1.0) * kl_gradient


def _count(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: give a whole number of at least {least}")


def _region(max_kl: Scalar) -> None:
    if isinstance(max_kl, int | float) and not max_kl > 0:
        raise ValueError(f"max_kl is {max_kl}: give a positive number of nats, such as 0.01")
