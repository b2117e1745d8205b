"""Losses that learn from comparisons; all to be MINIMIZED.

Everywhere `label` is the probability that the first of two items is the better one: 1 for a plain
preference, 0.5 for a tie, 0.8 for a teacher who is only fairly sure. Log-probabilities of sigmoids
go through logaddexp, so margins of any size are safe.
"""

from __future__ import annotations

import math
from typing import Any

from ._arrays import Array, Scalar, as_bool, keep, log_sigmoid, namespace, same_rank
from .reduction import Reduction, aggregate


def bradley_terry(
    score_chosen: Array,
    score_rejected: Array,
    label: Array | Scalar = 1.0,
    mask: Array | None = None,
    *,
    noise: float = 0.0,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of the Bradley-Terry model; MINIMIZE.

    P(first better) = (1 - noise) sigmoid(s_chosen - s_rejected) + noise / 2
    L = -E[label log P + (1 - label) log(1 - P)]

    Args:
        score_chosen: Scores of the first items: rewards of answers, or sums of predicted rewards
            over segments; any shape.
        score_rejected: Scores of the second items; same shape.
        label: Probability that the first is better; same shape, or one number.
        mask: Boolean, same shape; true where a comparison counts.
        noise: Share of the teacher's answers that are a coin's toss, in [0, 1): 0 for reward models
            of language, 0.1 in Christiano et al.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats; log 2 when the scores are equal.

    Raises:
        ValueError: When `noise` or a plain `label` is out of range, or the arrays differ in their
            number of axes.

    Source:
        Christiano et al., "Deep reinforcement learning from human preferences" (2017), equation 1
        and section 2.2.3; InstructGPT (2022), equation 1 with K = 2.
    """
    if not 0 <= noise < 1:
        raise ValueError(f"noise is {noise}: give a share of at least 0 and below 1, such as 0.1")
    xp = namespace(score_chosen, score_rejected)
    same_rank(score_chosen=score_chosen, score_rejected=score_rejected, label=label, mask=mask)
    margin = keep(xp, mask, score_chosen) - keep(xp, mask, score_rejected)
    return aggregate(_cross_entropy(xp, margin, label, mask, noise), mask, reduction)


def k_wise(scores: Array, mask: Array | None = None, *, reduction: Reduction = "mean") -> Array:
    """Loss of a ranking of K items, as all its pairs at once; MINIMIZE.

    L = -E[sum_{i < j} log sigmoid(s_i - s_j) / C(K, 2)], with items ranked best first

    The pairs of one prompt are as good as one example: shuffled among other prompts' they would
    over-fit, because every item occurs in K - 1 of them.

    Args:
        scores: Scores, best item first; shape (..., K).
        mask: Boolean, same shape; false where a prompt has fewer than K items. A prompt with k
            items weighs its pairs by 1 / C(k, 2); one with fewer than two takes no part.
        reduction: "mean", "sum" or "none", over prompts, see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array of shape (...), in nats per pair.

    Raises:
        ValueError: When K is below 2, or the arrays differ in their number of axes.

    Source:
        Ouyang et al., InstructGPT (2022), equation 1.
    """
    xp = namespace(scores)
    same_rank(scores=scores, mask=mask)
    if getattr(scores, "ndim", 0) == 0 or scores.shape[-1] < 2:
        raise ValueError(
            f"scores have shape {tuple(getattr(scores, 'shape', ()))}: the last axis must hold at "
            "least 2 ranked items"
        )
    scores = keep(xp, mask, scores)
    loss = -log_sigmoid(xp, scores[..., :, None] - scores[..., None, :])
    pair = xp.triu(xp.ones_like(loss), k=1) > 0
    rows = None
    if mask is not None:
        there = as_bool(xp, mask)
        pair = pair & there[..., :, None] & there[..., None, :]
        rows = xp.any(pair, axis=(-2, -1))
    pairs = xp.sum(xp.astype(pair, loss.dtype), axis=(-2, -1))
    total = xp.sum(xp.where(pair, loss, 0.0), axis=(-2, -1))
    return aggregate(total / xp.where(pairs > 0, pairs, 1.0), rows, reduction)


def dpo(
    chosen_log_ratio: Array,
    rejected_log_ratio: Array,
    beta: Scalar,
    label: Array | Scalar = 1.0,
    label_smoothing: float = 0.0,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Direct preference optimization; MINIMIZE.

    L = -E[log sigmoid(beta log pi(y_w|x)/ref(y_w|x) - beta log pi(y_l|x)/ref(y_l|x))]

    It is `bradley_terry` with the policy's implicit rewards as scores, so the gradient pushes each
    pair apart with weight beta sigmoid(-margin): strongly where the policy ranks it wrongly.

    Args:
        chosen_log_ratio: log pi(y_w|x) - log ref(y_w|x), SUMMED over the tokens of the completion,
            in nats; any shape, usually (B,).
        rejected_log_ratio: The same for y_l; same shape.
        beta: Strength of the tether to the reference, usually 0.01 to 0.5.
        label: Probability that y_w is better; same shape, or one number.
        label_smoothing: Probability that a label is flipped, in [0, 0.5); mixes every label with
            its opposite.
        mask: Boolean, same shape; true where a pair counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats; log 2 when pi = ref.

    Raises:
        ValueError: When `label_smoothing` or a plain `label` is out of range, or the arrays differ
            in their number of axes.

    Source:
        Rafailov et al., "Direct preference optimization" (2023), equation 7; the lecture's L_DPO.
        Label smoothing: Mitchell, "A note on DPO with noisy preferences" (2023).
    """
    label = _smooth(label, label_smoothing)
    xp, margin = _margin(chosen_log_ratio, rejected_log_ratio, label, mask)
    return aggregate(_cross_entropy(xp, beta * margin, label, mask, 0.0), mask, reduction)


def ipo(
    chosen_log_ratio: Array,
    rejected_log_ratio: Array,
    beta: Scalar,
    label: Array | Scalar = 1.0,
    label_smoothing: float = 0.0,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Identity preference optimization; MINIMIZE.

    L = E[p (h - 1 / (2 beta))^2 + (1 - p) (h + 1 / (2 beta))^2],
    h = log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x),   p = label

    A margin that is regressed to a finite goal cannot run away as it may in `dpo`; under soft
    labels the best h is (2 p - 1) / (2 beta).

    Args:
        chosen_log_ratio: log pi(y_w|x) - log ref(y_w|x) in nats; any shape, usually (B,). The paper
            sums over tokens; give the mean over tokens instead to make the goal independent of
            length.
        rejected_log_ratio: The same for y_l; same shape.
        beta: The paper's tau: strength of the tether to the reference.
        label: Probability that y_w is better; same shape, or one number.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).
        mask: Boolean, same shape; true where a pair counts.
        reduction: "mean", "sum" or "none", see `tether.objectives.reduction`.

    Returns:
        A scalar, or with "none" an array, in nats squared; 1 / (2 beta)^2 when pi = ref.

    Raises:
        ValueError: When `label_smoothing` or a plain `label` is out of range, or the arrays differ
            in their number of axes.

    Source:
        Azar et al., "A general theoretical paradigm to understand learning from human preferences"
        (2023), equation 17.
    """
    label = _smooth(label, label_smoothing)
    xp, margin = _margin(chosen_log_ratio, rejected_log_ratio, label, mask)
    label = keep(xp, mask, label)
    goal = 0.5 / beta
    terms = label * (margin - goal) ** 2 + (1.0 - label) * (margin + goal) ** 2
    return aggregate(terms, mask, reduction)


def dpo_implicit_reward(log_ratio: Array, beta: Scalar) -> Array:
    """The reward of which a policy is the optimum: beta log pi(y|x)/ref(y|x).

    Exact up to beta log Z(x), which all answers to one prompt share.

    Args:
        log_ratio: log pi(y|x) - log ref(y|x), summed over the tokens of the completion, in nats.
        beta: Strength of the tether to the reference.

    Returns:
        Rewards; same shape.

    Source:
        Rafailov et al. (2023), equation 5.
    """
    return beta * log_ratio


def _margin(
    chosen: Array, rejected: Array, label: Array | Scalar, mask: Array | None
) -> tuple[Any, Array]:
    xp = namespace(chosen, rejected)
    same_rank(chosen_log_ratio=chosen, rejected_log_ratio=rejected, label=label, mask=mask)
    return xp, keep(xp, mask, chosen) - keep(xp, mask, rejected)


def _cross_entropy(
    xp: Any, margin: Array, label: Array | Scalar, mask: Array | None, noise: float
) -> Array:
    _probability(label)
    label = keep(xp, mask, label)
    first, second = log_sigmoid(xp, margin), log_sigmoid(xp, -margin)
    if noise:
        sure, toss = math.log1p(-noise), xp.full_like(margin, math.log(noise) - math.log(2.0))
        first, second = xp.logaddexp(first + sure, toss), xp.logaddexp(second + sure, toss)
    return -(label * first + (1.0 - label) * second)


def _smooth(label: Array | Scalar, label_smoothing: float) -> Array | Scalar:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}: give a probability of at least 0 and below 0.5"
        )
    _probability(label)
    return label * (1.0 - 2.0 * label_smoothing) + label_smoothing if label_smoothing else label


def _probability(label: Array | Scalar) -> None:
    if isinstance(label, int | float) and not 0 <= label <= 1:
        raise ValueError(f"label is {label}: give the probability that the first is better, 0 to 1")
