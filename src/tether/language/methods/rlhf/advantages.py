"""From scores to advantages: the tether to the reference in the reward, and four estimators.

Every array is (N, T): N completions of at most T tokens, with a boolean `mask` that is true on a
completion's own tokens. A completion is an episode, a token is an action, the discount is usually
1. What masked positions hold (NaN included) changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tether import objectives

GROUP_EPSILON = 1e-4
"""Added to a group's deviation: rewards that agree to within it teach next to nothing."""


class Estimate(NamedTuple):
    """What the update needs of a rollout, each (N, T) and detached."""

    advantage: Tensor
    target: Tensor
    """The critic's target, advantage + value; zeros without a critic."""


def last_token(mask: Tensor) -> Tensor:
    """True on each row's last unmasked position.

    Args:
        mask: Boolean, (N, T), true on the first positions of each row.

    Returns:
        Boolean, (N, T), with one true position in each row that has any.
    """
    return mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def token_rewards(
    log_prob: Tensor, reference_log_prob: Tensor, score: Tensor, beta: float, mask: Tensor
) -> Tensor:
    """Rewards of the tokens: a price for leaving the reference, and the score on the last token.

    r_t = -beta (log pi(y_t|x, y_<t) - log ref(y_t|x, y_<t)) + [t is the last token] score

    Their sum over a completion is score - beta log(pi(y|x) / ref(y|x)), whose expectation is the
    objective of the lecture. Only with the log-ratio IN the reward does the policy gradient see
    what a token does to the divergence of the tokens after it.

    Args:
        log_prob: log pi(y_t) in nats, detached; (N, T).
        reference_log_prob: log ref(y_t) in nats, at the same temperature; (N, T).
        score: Score of each completion; (N,).
        beta: Price of a nat, in units of the score.
        mask: Boolean, (N, T).

    Returns:
        Rewards, (N, T), in units of the score; zero where masked.

    Source:
        Ziegler et al., "Fine-tuning language models from human preferences" (2019), equation 2;
        Ouyang et al., "Training language models to follow instructions with human feedback"
        (2022), equation 2.
    """
    price: Tensor = beta * objectives.kl_k1(log_prob - reference_log_prob, mask)
    return torch.where(last_token(mask), score[:, None], 0.0) - price


def whiten_keeping_mean(reward: Tensor, mask: Tensor) -> Tensor:
    """Rewards with deviation 1 and the mean they had.

    Args:
        reward: (N, T).
        mask: Boolean, (N, T).

    Returns:
        Same shape; zero where masked.

    Source:
        The code of Ziegler et al. (2019): whitening of rewards does not shift them.
    """
    whitened = objectives.normalize_advantage(reward, mask) + objectives.masked_mean(reward, mask)
    return torch.where(mask, whitened, 0.0)


def actor_critic(
    reward: Tensor, value: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> Estimate:
    """Generalized advantage estimation over the tokens of each completion.

    A completion always terminates at its last token, whether it ended itself or was cut off:
    nothing after it is worth anything.

    Args:
        reward: (N, T), see :func:`token_rewards`.
        value: V of the prompt and the tokens before y_t, detached; (N, T).
        mask: Boolean, (N, T).
        gamma: Discount per token.
        lam: GAE's lambda.

    Returns:
        Advantages and the critic's targets.

    Source:
        Schulman et al. (2016), equation 16, through :func:`tether.objectives.gae`.
    """
    last = last_token(mask)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    advantage = objectives.gae(
        reward,
        value,
        following,
        terminated=last,
        done=last,
        gamma=gamma,
        lam=lam,
        mask=mask,
        axis=1,
    )
    return Estimate(advantage, torch.where(mask, advantage + value, 0.0))


def reinforce(reward: Tensor, mask: Tensor, *, gamma: float) -> Estimate:
    """The return to go of each token, without a baseline.

    Args:
        reward: (N, T), see :func:`token_rewards`.
        mask: Boolean, (N, T).
        gamma: Discount per token.

    Returns:
        Returns as advantages; no targets.

    Source:
        Williams (1992), through :func:`tether.objectives.discounted_return`.
    """
    advantage = objectives.discounted_return(reward, gamma, mask=mask, axis=1)
    return Estimate(advantage, torch.zeros_like(advantage))


def rloo(reward: Tensor, mask: Tensor, *, group_size: int) -> Estimate:
    """REINFORCE with the mean of the other completions of the same prompt as the baseline.

    A_i = R_i - mean_{j != i} R_j,   R_i = sum_t r_it

    A whole completion is one action, so every token of it has the same advantage. The baseline does
    not depend on completion i, so it adds no bias.

    Args:
        reward: (N, T), see :func:`token_rewards`; the rows of a prompt follow each other.
        mask: Boolean, (N, T).
        group_size: Completions per prompt, at least 2; divides N.

    Returns:
        Advantages, constant along each row; no targets.

    Source:
        Ahmadian et al., "Back to basics: revisiting REINFORCE style optimization for learning from
        human feedback in LLMs" (2024), equation 8; Kool et al. (2019).
    """
    total = _totals(reward, mask).reshape(-1, group_size)
    others = (total.sum(dim=1, keepdim=True) - total) / (group_size - 1)
    return _spread((total - others).reshape(-1), mask)


def grpo(reward: Tensor, mask: Tensor, *, group_size: int) -> Estimate:
    """Rewards normalized within each prompt's group.

    A_i = (R_i - mean_j R_j) / (std_j R_j + 1e-4),   R_i = sum_t r_it

    The deviation divides by k - 1, as in common implementations (the paper does not say). GRPO's
    rewards hold no price for leaving the reference; it is in the loss.

    Args:
        reward: (N, T); the rows of a prompt follow each other.
        mask: Boolean, (N, T).
        group_size: k, completions per prompt, at least 2; divides N.

    Returns:
        Advantages, constant along each row; no targets.

    Source:
        Shao et al., "DeepSeekMath: pushing the limits of mathematical reasoning in open language
        models" (2024), section 4.1.2.
    """
    total = _totals(reward, mask).reshape(-1, group_size)
    centred = total - total.mean(dim=1, keepdim=True)
    normalized = centred / (total.std(dim=1, keepdim=True) + GROUP_EPSILON)
    return _spread(normalized.reshape(-1), mask)


def _totals(reward: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, reward, 0.0).sum(dim=1)


def _spread(advantage: Tensor, mask: Tensor) -> Estimate:
    """One advantage for all tokens of a row."""
    tokens = torch.where(mask, advantage[:, None], 0.0)
    return Estimate(tokens, torch.zeros_like(tokens))
