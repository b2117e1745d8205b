"""How far two policies are apart, in nats: exactly, from samples, and how to hold them there.

The closed forms and the estimators give one number per state or sample and leave the averaging to
`masked_mean` or `masked_sum`: the sum over the tokens of a completion is what a controller needs,
the mean over states what a trust region needs.
"""

from __future__ import annotations

import math
from typing import Any

from ._arrays import Array, Scalar, detach, keep, log_sigmoid, namespace, same_rank


def categorical_kl(p_logits: Array, q_logits: Array, axis: int = -1) -> Array:
    """KL divergence of categorical distributions: sum_k p_k (log p_k - log q_k).

    Args:
        p_logits: Unnormalized log-probabilities of p; shape (..., K, ...) with K along `axis`.
        q_logits: Those of q; same shape.
        axis: The axis of the K categories.

    Returns:
        KL(p || q) in nats, without `axis`. A category that p excludes (logit -inf) costs nothing;
        one that only q excludes costs infinitely much.

    Raises:
        ValueError: When the arrays differ in their number of axes.
    """
    xp = namespace(p_logits, q_logits)
    same_rank(p_logits=p_logits, q_logits=q_logits)
    log_p, log_q = _log_softmax(xp, p_logits, axis), _log_softmax(xp, q_logits, axis)
    p = xp.exp(log_p)
    possible = p > 0
    return xp.sum(p * (keep(xp, possible, log_p) - keep(xp, possible, log_q)), axis=axis)


def categorical_entropy(logits: Array, axis: int = -1) -> Array:
    """Entropy of categorical distributions: -sum_k p_k log p_k.

    Args:
        logits: Unnormalized log-probabilities; shape (..., K, ...) with K along `axis`; -inf
            excludes a category.
        axis: The axis of the K categories.

    Returns:
        Entropy in nats, without `axis`; between 0 and log K.
    """
    xp = namespace(logits)
    log_p = _log_softmax(xp, logits, axis)
    p = xp.exp(log_p)
    return -xp.sum(p * keep(xp, p > 0, log_p), axis=axis)


def diagonal_gaussian_kl(
    mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array, axis: int = -1
) -> Array:
    """KL divergence of Gaussians with independent coordinates.

    KL(p || q) = sum_i log(sigma_q / sigma_p) + (sigma_p^2 + (mu_p - mu_q)^2) / (2 sigma_q^2) - 1/2

    Args:
        mean_p: Means of p; shape (..., A, ...) with the A coordinates along `axis`.
        log_std_p: Logarithms of the standard deviations of p; same shape, or one that spreads out
            to it, such as (A,) for a deviation that does not depend on the state.
        mean_q: Means of q.
        log_std_q: Logarithms of the standard deviations of q.
        axis: The axis of the coordinates.

    Returns:
        KL(p || q) in nats, without `axis`.
    """
    xp = namespace(mean_p, mean_q)
    narrower = log_std_p - log_std_q
    apart = (mean_p - mean_q) * xp.exp(-log_std_q)
    # expm1 keeps the digits that cancel when the two are nearly equal, which is the usual case.
    return xp.sum(0.5 * (xp.expm1(2.0 * narrower) + apart * apart) - narrower, axis=axis)


def diagonal_gaussian_entropy(log_std: Array, axis: int = -1) -> Array:
    """Differential entropy of Gaussians with independent coordinates.

    H = sum_i log sigma_i + log(2 pi e) / 2

    Args:
        log_std: Logarithms of the standard deviations; shape (..., A, ...).
        axis: The axis of the A coordinates.

    Returns:
        Entropy in nats, without `axis`; negative for narrow distributions.
    """
    xp = namespace(log_std)
    return xp.sum(log_std + 0.5 * math.log(2.0 * math.pi * math.e), axis=axis)


def bernoulli_kl(p_logits: Array, q_logits: Array, axis: int = -1) -> Array:
    """KL divergence of independent Bernoulli variables, summed over them.

    KL(p || q) = sum_i p_i log(p_i / q_i) + (1 - p_i) log((1 - p_i) / (1 - q_i))

    Args:
        p_logits: log(p / (1 - p)), finite; shape (..., A, ...) with the A variables along `axis`.
        q_logits: Those of q; same shape.
        axis: The axis of the variables.

    Returns:
        KL(p || q) in nats, without `axis`.

    Raises:
        ValueError: When the arrays differ in their number of axes.
    """
    xp = namespace(p_logits, q_logits)
    same_rank(p_logits=p_logits, q_logits=q_logits)
    yes, no = log_sigmoid(xp, p_logits), log_sigmoid(xp, -p_logits)
    gap_yes, gap_no = yes - log_sigmoid(xp, q_logits), no - log_sigmoid(xp, -q_logits)
    return xp.sum(xp.exp(yes) * gap_yes + xp.exp(no) * gap_no, axis=axis)


def bernoulli_entropy(logits: Array, axis: int = -1) -> Array:
    """Entropy of independent Bernoulli variables, summed over them.

    H = -sum_i p_i log p_i + (1 - p_i) log(1 - p_i)

    Args:
        logits: log(p / (1 - p)), finite; shape (..., A, ...) with the A variables along `axis`.
        axis: The axis of the variables.

    Returns:
        Entropy in nats, without `axis`; between 0 and A log 2.
    """
    xp = namespace(logits)
    yes, no = log_sigmoid(xp, logits), log_sigmoid(xp, -logits)
    return -xp.sum(xp.exp(yes) * yes + xp.exp(no) * no, axis=axis)


def kl_k1(log_ratio: Array, mask: Array | None = None) -> Array:
    """Unbiased estimate of KL(pi || ref) from samples y ~ pi: k1 = log pi(y) - log ref(y).

    Value: unbiased, but often negative and of high variance. As a loss it is useless: its expected
    gradient is zero. It belongs into the reward, where the policy gradient differentiates the
    distribution of y; with the return to go, that is the full gradient of a sequence's KL.

    Args:
        log_ratio: log pi(y) - log ref(y) in nats; any shape.
        mask: Boolean, same shape; true where a sample counts.

    Returns:
        One estimate per sample, in nats; zero where masked.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Schulman, "Approximating KL divergence" (2020).
    """
    return _samples(log_ratio, mask)


def kl_k2(log_ratio: Array, mask: Array | None = None) -> Array:
    """Biased estimate with the right gradient, from samples y ~ pi: k2 = (log pi - log ref)^2 / 2.

    Value: never negative, biased, of low variance near pi = ref. As a loss, its expected gradient
    is that of KL(pi || ref). For samples of an older policy multiply by the detached ratio
    pi / pi_old.

    Args:
        log_ratio: log pi(y) - log ref(y) in nats; any shape.
        mask: Boolean, same shape; true where a sample counts.

    Returns:
        One estimate per sample, in nats; zero where masked.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Schulman, "Approximating KL divergence" (2020).
    """
    log_ratio = _samples(log_ratio, mask)
    return 0.5 * log_ratio * log_ratio


def kl_k3(log_ratio: Array, mask: Array | None = None) -> Array:
    """Unbiased estimate that is never negative, from samples y ~ pi: k3 = ref/pi - 1 + log(pi/ref).

    Value: unbiased and of low variance. As a loss, its expected gradient is that of the OTHER
    divergence, KL(ref || pi). For samples of an older policy multiply by the detached ratio
    pi / pi_old.

    Args:
        log_ratio: log pi(y) - log ref(y) in nats; any shape.
        mask: Boolean, same shape; true where a sample counts.

    Returns:
        One estimate per sample, in nats; zero where masked.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Schulman, "Approximating KL divergence" (2020).
    """
    log_ratio = _samples(log_ratio, mask)
    return namespace(log_ratio).expm1(-log_ratio) + log_ratio


def kl_penalized_reward(
    reward: Array, log_ratio: Array, beta: Scalar, mask: Array | None = None
) -> Array:
    """Rewards of a policy that pays for leaving a reference.

    r'_t = r_t - beta (log pi(a_t|s_t) - log ref(a_t|s_t))

    Their expected sum is E[sum r] - beta KL(pi || ref) of whole trajectories. The log-ratio of the
    action that was taken is needed: the policy gradient sees only what depends on the action, and
    the divergence of the state in closed form does not.

    Args:
        reward: r, detached; any shape.
        log_ratio: log pi(a|s) - log ref(a|s) in nats of sampled actions, detached; same shape.
        beta: Price of a nat, in units of `reward`.
        mask: Boolean, same shape; true where an element counts.

    Returns:
        r', with the shape of `reward`; zero where masked.

    Raises:
        ValueError: When the arrays differ in their number of axes.

    Source:
        Jaques et al., "Sequence tutor" (2017), section 3.1; Ziegler et al., "Fine-tuning language
        models from human preferences" (2019), equation 2.
    """
    xp = namespace(reward)
    same_rank(reward=reward, log_ratio=log_ratio, mask=mask)
    return keep(xp, mask, reward) - beta * kl_k1(log_ratio, mask)


def ppo_adaptive_beta(beta: Scalar, kl: Scalar, target: Scalar) -> Scalar:
    """The next KL coefficient: halved when the policy moved too little, doubled when too much.

    beta / 2 where kl < target / 1.5;   2 beta where kl > 1.5 target;   else beta

    Args:
        beta: Coefficient of the KL penalty during the last update.
        kl: Mean KL divergence that the update reached, in nats: once per batch, not per minibatch.
        target: KL divergence wanted per update, in nats; usually 0.003 to 0.03.

    Returns:
        The next beta; unchanged when `kl` is NaN.

    Source:
        PPO (2017), section 4.
    """
    xp = namespace(beta, kl)
    lower = xp.where(xp.asarray(kl < target / 1.5), beta / 2.0, beta)
    # The index makes a number of NumPy's array without axes and changes nothing else.
    return xp.where(xp.asarray(kl > target * 1.5), beta * 2.0, lower)[()]


def kl_adaptive_step_size(rate: Scalar, kl: Scalar, target: Scalar) -> Scalar:
    """The next step size of an optimizer: smaller when the policy moved too far, else larger.

    rate / 1.5 where kl > 2 target;   1.5 rate where kl < target / 2;   else rate

    Args:
        rate: Step size of the last update.
        kl: Mean KL divergence that the update reached, in nats.
        target: KL divergence wanted per update, in nats; usually 0.002 to 0.01.

    Returns:
        The next step size; unchanged when `kl` is NaN.

    Source:
        PPO (2017), footnote 3, "vanilla policy gradient with adaptive step size"; the factors are
        those of OpenAI Baselines' ACKTR for continuous control.
    """
    xp = namespace(rate, kl)
    larger = xp.where(xp.asarray(kl < target / 2.0), rate * 1.5, rate)
    return xp.where(xp.asarray(kl > target * 2.0), rate / 1.5, larger)[()]


def ziegler_adaptive_beta(
    beta: Scalar, kl: Scalar, target: Scalar, n: int, horizon: Scalar
) -> Scalar:
    """The next KL coefficient of a language model, by a proportional controller.

    e = clip(kl / target - 1, -0.2, 0.2),   beta <- beta (1 + e n / horizon)

    Args:
        beta: Coefficient of the KL penalty during the last update.
        kl: Mean over episodes of the KL SUMMED over an episode's tokens, in nats. (A mean per token
            stays below any sensible target and drives beta to zero.)
        target: KL divergence wanted per episode, in nats; 6 in the paper's code.
        n: Episodes in the update.
        horizon: Episodes in which beta may change by a fifth; 10,000 in the paper's code.

    Returns:
        The next beta, above 0 if `beta` is.

    Raises:
        ValueError: a horizon of n / 5 or less, with which beta could come to 0 or below.

    Source:
        Ziegler et al., "Fine-tuning language models from human preferences" (2019), section 2.2.
    """
    if isinstance(horizon, int | float) and not 0.2 * n < horizon:
        raise ValueError(
            f"horizon is {horizon} with n = {n}: give more than n / 5, such as {10 * n}"
        )
    xp = namespace(beta, kl)
    error = xp.clip(xp.asarray(kl / target - 1.0), -0.2, 0.2)
    return beta * (1.0 + error * (n / horizon))


def _samples(log_ratio: Array, mask: Array | None) -> Array:
    same_rank(log_ratio=log_ratio, mask=mask)
    return keep(namespace(log_ratio), mask, log_ratio)


def _log_softmax(xp: Any, logits: Array, axis: int) -> Array:
    # Any shift gives the same answer, so no gradient needs to pass through this one.
    shifted = logits - xp.max(detach(logits), axis=axis, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))
