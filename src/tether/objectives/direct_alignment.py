"""Relatives of DPO that need no reference, or no pairs; all to be MINIMIZED.

`dpo` and `ipo` (see `preference`) compare a policy with its reference on pairs of answers. SimPO
and ORPO do without the reference, KTO does without the pairs, and the likelihood losses are the
baselines that DPO was measured against. As everywhere, `label` is the probability that the first
of two answers is the better one, and every loss of a soft label is the mixture of the losses of
the hard ones.
"""

from __future__ import annotations

from typing import Any

from ._arrays import Array, Scalar, detach, keep, log_sigmoid, namespace, same_rank
from .preference import _probability, _smooth
from .reduction import Reduction, aggregate, masked_mean


def simpo(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    beta: Scalar,
    gamma: Scalar,
    label: Array | Scalar = 1.0,
    label_smoothing: float = 0.0,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Simple preference optimization: the reward is the mean log-probability itself; MINIMIZE.

    L = -E[log sigmoid(beta (l_w - l_l) - gamma)],   l = log pi(y|x) / |y|

    There is no reference, hence no tether: only the learning rate and `gamma` hold the policy.

    Args:
        chosen_log_prob: l_w: log pi(y_w|x) as a MEAN over the tokens of the completion, in nats;
            any shape, usually (B,).
        rejected_log_prob: l_l, the same for y_l; same shape.
        beta: Scale of the reward, usually 2 to 10: means are much smaller than sums.
        gamma: Margin by which the better answer should win, in units of the reward beta l; the
            paper tunes gamma / beta, usually 0.2 to 1.6.
        label: Probability that y_w is better; same shape, or one number. With the items swapped the
            margin is asked of the other one, so a tie asks for none.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
        mask: Boolean, same shape; true where a pair counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats.

    Raises:
        ValueError: When `label_smoothing` or a plain `label` is out of range, or the arrays differ
            in their number of axes.

    Source:
        Meng et al., "SimPO: simple preference optimization with a reference-free reward" (2024),
        equation 6.
    """
    xp, label, chosen, rejected = _pair(
        chosen_log_prob, rejected_log_prob, label, label_smoothing, mask
    )
    margin = beta * (chosen - rejected)
    first, second = log_sigmoid(xp, margin - gamma), log_sigmoid(xp, -margin - gamma)
    return aggregate(-(label * first + (1.0 - label) * second), mask, reduction)


def orpo(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    lam: Scalar,
    label: Array | Scalar = 1.0,
    label_smoothing: float = 0.0,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Odds-ratio preference optimization: instruction tuning and preference in one; MINIMIZE.

    L = E[-l_w - lam log sigmoid(log odds_w - log odds_l)],
    l = log pi(y|x) / |y|,   odds = exp(l) / (1 - exp(l))

    Args:
        chosen_log_prob: l_w: log pi(y_w|x) as a MEAN over the tokens of the completion, in nats, at
            most 0; any shape, usually (B,).
        rejected_log_prob: l_l, the same for y_l; same shape.
        lam: Weight of the odds ratio beside the likelihood, usually 0.1 to 1.
        label: Probability that y_w is better; same shape, or one number.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
        mask: Boolean, same shape; true where a pair counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats. Finite also where a completion is certain.

    Raises:
        ValueError: When `label_smoothing` or a plain `label` is out of range, or the arrays differ
            in their number of axes.

    Source:
        Hong et al., "ORPO: monolithic preference optimization without reference model" (2024),
        equations 4 to 7.
    """
    # A masked pair holds -1 instead of 0, where the odds are finite.
    xp, label, chosen, rejected = _pair(
        chosen_log_prob, rejected_log_prob, label, label_smoothing, mask, otherwise=-1.0
    )
    ratio = _log_odds(xp, chosen) - _log_odds(xp, rejected)
    first = chosen + lam * log_sigmoid(xp, ratio)
    second = rejected + lam * log_sigmoid(xp, -ratio)
    return aggregate(-(label * first + (1.0 - label) * second), mask, reduction)


def kto(
    log_ratio: Array,
    desirable: Array | Scalar,
    reference_point: Scalar,
    beta: Scalar,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    mask: Array | None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Kahneman-Tversky optimization, from single answers that were liked or not; MINIMIZE.

    L = E[p w_D (1 - sigmoid(beta (h - z))) + (1 - p) w_U (1 - sigmoid(beta (z - h)))],
    h = log pi(y|x) - log ref(y|x),   p = desirable,   z = reference point

    Args:
        log_ratio: h, SUMMED over the tokens of the completion, in nats; any shape, usually (B,).
        desirable: 1 where the answer was liked, 0 where not, a probability where in doubt; same
            shape, or one number.
        reference_point: z of `kto_reference_point`: how far the policy is from its reference
            anyway, in nats; a constant.
        beta: Strength of the tether to the reference, usually 0.01 to 0.5.
        desirable_weight: The paper's lambda_D. Choose it so that lambda_D n_D is 1 to 4/3 of
            lambda_U n_U, where the n count the answers of either kind.
        undesirable_weight: The paper's lambda_U.
        mask: Boolean, same shape; true where an answer counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, without unit, between 0 and the larger weight.

    Raises:
        ValueError: When a plain `desirable` is out of range, or the arrays differ in their number
            of axes.

    Source:
        Ethayarajh et al., "KTO: model alignment as prospect theoretic optimization" (2024),
        equation 8.
    """
    _probability(desirable)
    xp = namespace(log_ratio)
    same_rank(log_ratio=log_ratio, desirable=desirable, mask=mask)
    gain = beta * (keep(xp, mask, log_ratio) - reference_point)
    desirable = keep(xp, mask, desirable)
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    liked = desirable_weight * xp.exp(log_sigmoid(xp, -gain))
    disliked = undesirable_weight * xp.exp(log_sigmoid(xp, gain))
    return aggregate(desirable * liked + (1.0 - desirable) * disliked, mask, reduction)


def kto_reference_point(mismatched_log_ratio: Array, mask: Array | None = None) -> Array:
    """KTO's reference point: an estimate of KL(pi || ref) over the whole batch.

    z = max(0, E[log pi(y_j|x_i) - log ref(y_j|x_i)]) with answers that belong to OTHER prompts

    Args:
        mismatched_log_ratio: log pi(y_j|x_i) - log ref(y_j|x_i), summed over tokens, in nats, for
            prompts beside other prompts' answers; any shape.
        mask: Boolean, same shape; true where a pair counts.

    Returns:
        A scalar in nats, at least 0, through which no gradient flows; NaN when nothing counts.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Ethayarajh et al. (2024), section 4.1.
    """
    xp = namespace(mismatched_log_ratio)
    mean = masked_mean(detach(mismatched_log_ratio), mask)
    # Asked this way round, NaN stays NaN and is seen.
    return xp.where(mean < 0, xp.zeros_like(mean), mean)


def unlikelihood(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    alpha: Scalar,
    label: Array | Scalar = 1.0,
    label_smoothing: float = 0.0,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Raise the better answer's likelihood and lower the worse one's; MINIMIZE.

    L = E[-log pi(y_w|x) + alpha log pi(y_l|x)]

    Nothing weighs the second term as DPO's gradient does, so it may fall for ever: a baseline.
    With alpha = 0 it is instruction tuning on the better answers, "preferred-FT".

    Args:
        chosen_log_prob: log pi(y_w|x) in nats, SUMMED over the tokens of the completion (the means
            make every answer weigh alike); any shape, usually (B,).
        rejected_log_prob: The same for y_l; same shape.
        alpha: Weight of the worse answers, 0 to 1.
        label: Probability that y_w is better; same shape, or one number.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
        mask: Boolean, same shape; true where a pair counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats.

    Raises:
        ValueError: When `label_smoothing` or a plain `label` is out of range, or the arrays differ
            in their number of axes.

    Source:
        Rafailov et al., "Direct preference optimization" (2023), section 6 and appendix C.
    """
    _, label, chosen, rejected = _pair(
        chosen_log_prob, rejected_log_prob, label, label_smoothing, mask
    )
    terms = label * (alpha * rejected - chosen) + (1.0 - label) * (alpha * chosen - rejected)
    return aggregate(terms, mask, reduction)


def _pair(
    chosen: Array,
    rejected: Array,
    label: Array | Scalar,
    label_smoothing: float,
    mask: Array | None,
    otherwise: float = 0.0,
) -> tuple[Any, Array | Scalar, Array, Array]:
    label = _smooth(label, label_smoothing)
    xp = namespace(chosen, rejected)
    same_rank(chosen_log_prob=chosen, rejected_log_prob=rejected, label=label, mask=mask)
    chosen, rejected = (keep(xp, mask, answer, otherwise) for answer in (chosen, rejected))
    return xp, keep(xp, mask, label), chosen, rejected


def _log_odds(xp: Any, log_prob: Array) -> Array:
    """log(p / (1 - p)) from log p, held below certainty by one rounding."""
    ceiling = -float(xp.finfo(log_prob.dtype).eps)
    log_prob = xp.where(log_prob < ceiling, log_prob, xp.full_like(log_prob, ceiling))
    return log_prob - xp.log(-xp.expm1(log_prob))
