"""Learning by imitation: make what the demonstrator did probable."""

from __future__ import annotations

from ._arrays import Array, keep, namespace, same_rank
from .reduction import Reduction, aggregate


def masked_negative_log_likelihood(
    log_prob: Array, mask: Array | None = None, *, reduction: Reduction = "mean"
) -> Array:
    """Negative log-likelihood of what was observed; MINIMIZE.

    L = -E[log pi_theta(a|s)]

    Args:
        log_prob: log pi_theta of the demonstrated actions or tokens, in nats; any shape, such as
            (N,) actions or (B, T) tokens.
        mask: Boolean, same shape; true where an element counts: for instruction tuning the
            completion with its end-of-sequence token, not the prompt and not the padding.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats per action or token.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Pomerleau, "ALVINN" (1989), for control; InstructGPT (2022), section 3.5, for language; the
        lecture's "behavior cloning" and "supervised instruction tuning".
    """
    same_rank(log_prob=log_prob, mask=mask)
    return aggregate(-keep(namespace(log_prob), mask, log_prob), mask, reduction)


behaviour_cloning = masked_negative_log_likelihood
"""The same equation under the lecture's name for it: demonstrations as independent pairs (s, a)."""
