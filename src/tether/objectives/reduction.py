"""From one term per element to one number: the only place where objectives are averaged.

Every objective, loss and diagnostic takes the same two arguments. `mask` (boolean, true where an
element counts) goes through `where`, never through multiplication, so that NaN or Inf in a masked
position changes neither the value nor the gradient. `reduction` says what comes back:

- `"mean"`: the mean over the unmasked elements;
- `"sum"`: their sum, to be divided once by a count that spans micro-batches or processes;
- `"none"`: one term per element, zero where masked.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from ._arrays import Array, as_bool, keep, namespace, same_rank

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def aggregate(terms: Array, mask: Array | None, reduction: Reduction) -> Array:
    """Bring terms of any shape to the mean, the sum, or the masked terms themselves.

    Raises:
        ValueError: When `reduction` is none of "mean", "sum", "none".
    """
    if reduction == "mean":
        return masked_mean(terms, mask)
    if reduction == "sum":
        return masked_sum(terms, mask)
    if reduction == "none":
        return keep(namespace(terms), mask, terms)
    raise ValueError(f'reduction is {reduction!r}: give "mean", "sum" or "none"')


def masked_sum(values: Array, mask: Array | None = None) -> Array:
    """Sum over the elements that count.

    Args:
        values: Any shape.
        mask: Boolean, same number of axes as `values` (length 1 spreads out); None counts all.

    Returns:
        A scalar in the units of `values`; 0 when nothing counts.
    """
    xp = namespace(values)
    same_rank(values=values, mask=mask)
    return xp.sum(keep(xp, mask, values))


def masked_mean(values: Array, mask: Array | None = None) -> Array:
    """Mean over the elements that count: sum_i m_i x_i / sum_i m_i.

    Args:
        values: Any shape.
        mask: Boolean, same number of axes as `values` (length 1 spreads out); None counts all.

    Returns:
        A scalar in the units of `values`. The mean of nothing is NaN, so that an empty batch is
        seen; its gradient is zero, so that it does no harm.
    """
    xp = namespace(values)
    if mask is None:
        return xp.mean(values)
    same_rank(values=values, mask=mask)
    mask = xp.broadcast_to(as_bool(xp, mask), values.shape)
    return xp.sum(keep(xp, mask, values)) / xp.sum(xp.astype(mask, values.dtype))
