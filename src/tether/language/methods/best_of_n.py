"""Best of n: no learning at all. Sample n completions, keep the one a scorer likes most.

It spends time at every answer instead of once in training, and moves from the reference by a known
divergence, which makes it the yardstick of RLHF and of over-optimization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.errors import UserError
from tether.language.data.tokens import Completion
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel
from tether.language.models.scoring import Scorer
from tether.learning.seeding import Stream, derived_seed


class BestOfN(NamedTuple):
    """What :func:`best_of_n` sampled, for P prompts.

    Attributes:
        completions: the winner of each prompt.
        scores: its score; (P,).
        candidates: all n of each prompt.
        candidate_scores: their scores; (P, n).
    """

    completions: list[Completion]
    scores: NDArray[np.float64]
    candidates: list[list[Completion]]
    candidate_scores: NDArray[np.float64]


def best_of_n(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    scorer: Scorer,
    n: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    stop_ids: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> BestOfN:
    """Samples n completions of each prompt and keeps the one that scores highest.

    Args:
        language_model: what to sample from.
        prompts: token ids of P prompts.
        scorer: what to maximize; :func:`tether.language.models.scoring.score_texts` makes one of a
            function of texts, :func:`tether.language.models.scoring.score_function` of a reward
            function with TRL's convention.
        n: completions of each prompt. More: a higher score, at :func:`best_of_n_kl` of divergence.
        max_new_tokens: most tokens of a completion.
        temperature: divides the logits.
        seed: completion j of prompt i depends on (seed, i, j) alone, so a larger n adds to the
            candidates of a smaller one.
        batch_size: rows decoded at once.
        stop_ids: tokens that end a completion; None: the model's own.
        on_batch: called with the number of completions that are sampled, after each batch.

    Raises:
        UserError: n below 1, a seed below 0, a setting that
            :func:`tether.language.models.generation.generate` refuses, or scores that are not one
            finite number for each completion.

    Source:
        Stiennon et al., "Learning to summarize from human feedback" (2020), section 4.3; Nakano et
        al., "WebGPT" (2021), section 3.2, "rejection sampling (best-of-n)".
    """
    if n < 1:
        raise UserError(f"n is {n}; expected at least 1 completion to choose from")
    if seed < 0:
        raise UserError(f"seed is {seed}; expected at least 0")
    seeds = [
        derived_seed(seed, Stream.BEST_OF_N, i, j) for i in range(len(prompts)) for j in range(n)
    ]
    sampled = generate(
        language_model,
        [prompt for prompt in prompts for _ in range(n)],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seeds=seeds,
        batch_size=batch_size,
        stop_ids=stop_ids,
        on_batch=on_batch,
    )
    sampled = [replace(item, row=place // n) for place, item in enumerate(sampled)]
    scores = np.asarray(scorer(sampled), np.float64)
    if scores.shape != (len(sampled),):
        raise UserError(
            f"the scorer gave shape {scores.shape} for {len(sampled)} completions; expected one "
            "number for each"
        )
    if not np.isfinite(scores).all():
        raise UserError(
            f"the scorer gave {scores[~np.isfinite(scores)][0]}; expected finite numbers"
        )
    scores = scores.reshape(len(prompts), n)
    candidates = [sampled[i * n : (i + 1) * n] for i in range(len(prompts))]
    best = scores.argmax(axis=1)
    return BestOfN(
        [row[place] for row, place in zip(candidates, best, strict=True)],
        scores[np.arange(len(prompts)), best],
        candidates,
        scores,
    )


def best_of_n_kl(n: int | NDArray[Any]) -> Any:
    """Bound on how far best-of-n is from what it samples: KL <= ln n - (n - 1) / n, in nats.

    Exact where no two completions are ever equal in score.

    Args:
        n: completions to choose from, at least 1; a number or an array.

    Raises:
        UserError: a number below 1.

    Source:
        Stiennon et al. (2020), appendix G.3, where it is taken as exact; that it is an upper bound:
        Beirami et al., "Theoretical guarantees on the best-of-n alignment policy" (2024).
    """
    if np.any(np.asarray(n) < 1):
        raise UserError(f"n is {n}; expected at least 1")
    return np.log(n) - (np.asarray(n) - 1.0) / n


def observed_best_of_n_kl(scores: ArrayLike, n: int) -> NDArray[np.float64]:
    """KL(best of n || sampling) as far as N samples of each prompt show it, in nats.

    With F the samples' distribution of scores, the best of n has F^n, so

    KL = sum_s b(s) ln (b(s) / p(s)),  p(s) = F(s) - F(s-),  b(s) = F(s)^n - F(s-)^n

    over distinct scores s. Telling apart only completions of different scores, and no more of them
    than were sampled, it is never above :func:`best_of_n_kl`, and near it while n is far below N.

    Args:
        scores: by which the best is chosen; (..., N).
        n: completions to choose from, at least 1.

    Returns:
        The estimate for each prompt; (...).

    Raises:
        UserError: n below 1, or no samples.
    """
    scores = np.asarray(scores, np.float64)
    if n < 1:
        raise UserError(f"n is {n}; expected at least 1")
    if not scores.shape or not scores.shape[-1]:
        raise UserError(f"scores have shape {scores.shape}; expected samples along the last axis")
    flat = scores.reshape(-1, scores.shape[-1])
    found = np.empty(len(flat))
    for row, own in enumerate(flat):
        _, counts = np.unique(own, return_counts=True)
        p = counts / own.size
        below = np.concatenate([[0.0], np.cumsum(counts) / own.size])
        b = np.diff(below**n)
        seen = b > 0.0
        found[row] = np.sum(b[seen] * np.log(b[seen] / p[seen]))
    return found.reshape(scores.shape[:-1])


def expected_best_of_n(
    scores: ArrayLike, n: int, values: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Unbiased estimate of what best-of-n gets, from N >= n samples of each prompt.

    E[v(best of n)] = sum_{i=1}^N C(i - 1, n - 1) / C(N, n) v_(i), with samples sorted by score

    It is the average over all C(N, n) ways of choosing n of the N samples, so every n up to N is
    had from one set of samples, and with far less variance than by drawing anew.

    Args:
        scores: by which the best is chosen, such as a reward model's; (..., N).
        n: completions to choose from, 1 to N.
        values: what the chosen one is worth, such as a gold score; (..., N). None: the scores.
            Samples of equal score share their chances.

    Returns:
        The estimate for each prompt; (...).

    Raises:
        UserError: n outside 1 to N, or shapes that differ.

    Source:
        Nakano et al., "WebGPT" (2021), appendix I, equation 1; with separate values as in Gao et
        al., "Scaling laws for reward model overoptimization" (2022), section 2.
    """
    scores = np.asarray(scores, np.float64)
    values = scores if values is None else np.asarray(values, np.float64)
    if scores.shape != values.shape or scores.ndim == 0:
        raise UserError(
            f"scores have shape {scores.shape} and values {values.shape}; expected the same, with "
            "the samples of a prompt along the last axis"
        )
    count = scores.shape[-1]
    if not 1 <= n <= count:
        raise UserError(f"n is {n}, of {count} samples; expected 1 to {count}")
    # below[i]: of the C(N, n) choices, the share whose best is among the i lowest: C(i, n)/C(N, n).
    below = np.array([_choose_ratio(i, count, n) for i in range(count + 1)])
    ordered = np.sort(scores, axis=-1)
    flat, sorted_flat = scores.reshape(-1, count), ordered.reshape(-1, count)
    weights = np.empty_like(flat)
    for row, (own, line) in enumerate(zip(flat, sorted_flat, strict=True)):
        first = np.searchsorted(line, own, side="left")
        past = np.searchsorted(line, own, side="right")
        weights[row] = (below[past] - below[first]) / (past - first)
    total: NDArray[np.float64] = (weights.reshape(scores.shape) * values).sum(axis=-1)
    return total


def _choose_ratio(i: int, count: int, n: int) -> float:
    """C(i, n) / C(count, n); Python's integers are exact at any size."""
    return math.comb(i, n) / math.comb(count, n)
