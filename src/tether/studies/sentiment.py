"""The task of the studies of language: openings of film reviews, to be continued positively.

The gold scorer stands for what people want. It labels what policies learn from, and measures what
became of them; a policy trained on its scores directly has what no practitioner has.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tether.language.data.tokens import Completion, Example, Pair, Ranking, collate
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel
from tether.language.models.logprobs import token_kl
from tether.language.models.scoring import Scorer, score_texts
from tether.language.reviews.prompts import gold_scorer, leading_ids, load_reviews, prefixes
from tether.learning.storage.durable import replaced
from tether.studies.language_runs import LanguageStudyConfig

ROWS: Final = 64
"""Completions sampled or scored side by side."""


class SentimentConfig(LanguageStudyConfig):
    """The settings that these studies share; the defaults fit ``tiny`` on two cores."""

    new_tokens: int = Field(default=24, ge=1)
    """Tokens of a continuation. With more tokens the gold scorer is more certain, and everything
    takes longer."""
    test_prompts: int = Field(default=256, ge=2)
    """Held-out prompts on which policies are measured."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """The step size of supervised tuning and of the offline methods; about 1e-5 for models of 100
    million parameters."""
    reward_learning_rate: float = Field(default=5e-4, gt=0)
    """The step size of the reward model; about 2e-5 for models of 100 million parameters."""
    reward_batch_size: int = Field(default=8, ge=1)
    """Rankings in a gradient step of the reward model. Many small steps are better: with 21
    rankings in a step, `tiny` got 58 % of the held-out pairs right instead of 68 %."""
    ppo_learning_rate: float = Field(default=1.5e-4, gt=0)
    """The step size of PPO; about 5e-6 for models of 100 million parameters."""
    batch_size: int = Field(default=64, ge=2)
    """Pairs, completions or demonstrations in a gradient step."""
    demonstrations: int = Field(default=2560, ge=1)
    """Openings of reviews for supervised tuning."""
    prompts: int = Field(default=1400, ge=2)
    """Prompts whose continuations are compared."""
    samples: int = Field(default=3, ge=2)
    """Continuations of each prompt; all pairs of them are compared (4 in the paper)."""
    reward_epochs: float = Field(default=2.0, gt=0)
    """Passes of the reward model over the comparisons."""
    episodes: int = Field(default=2560, ge=1)
    """Completions that PPO samples in training."""

    def held_out_prompts(self, tokenizer: Any) -> list[list[int]]:
        """The prefixes on which policies are measured."""
        return prefixes(tokenizer, self.test_prompts, split="held_out", seed=self.seed)

    def optimization(self) -> dict[str, Any]:
        """Settings that all methods share."""
        return {
            "batch_size": self.batch_size,
            "micro_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a policy does with some prompts.

    Attributes:
        gold: (P,) probability that a text is positive, by the gold scorer.
        log_odds: (P,) the same in nats, which does not saturate.
        kl: (P,) exact KL(pi || ref) of each sampled token, summed over the sequence, in nats.
        texts: prompt and completion.
        completions: the same as tokens.
    """

    gold: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    kl: NDArray[np.float64]
    texts: list[str]
    completions: list[Completion]

    def summary(self) -> dict[str, float]:
        """Means, and the standard errors of the two that make the frontier."""
        root = np.sqrt(len(self.gold))
        return {
            "gold": float(self.gold.mean()),
            "gold_error": float(self.gold.std() / root),
            "log_odds": float(self.log_odds.mean()),
            "kl": float(self.kl.mean()),
            "kl_error": float(self.kl.std() / root),
            "length": float(np.mean([len(c.completion_ids) for c in self.completions])),
        }


def measure(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    seed: int,
) -> Measured:
    """Samples one completion of each prompt, at temperature 1, and looks at it.

    The divergence is that of the whole vocabulary at every token that was sampled, summed over
    the sequence: an unbiased estimate of the sequences' KL with no noise but that of the sample.

    Args:
        policy: what is measured.
        reference: where its divergence is measured from.
        prompts: token ids.
        new_tokens: most tokens of a completion.
        seed: completion i depends on (seed, i) and the policy alone.
    """
    completions = generate(policy, prompts, max_new_tokens=new_tokens, seeds=seed, batch_size=ROWS)
    texts = texts_of(policy, completions)
    kl = []
    for start in range(0, len(completions), ROWS):
        batch = collate(completions[start : start + ROWS], pad_id=policy.pad_id)
        kl.append(token_kl(policy, reference, batch)[0].sum(1).double().cpu().numpy())
    scorer = gold_scorer()
    return Measured(
        np.asarray(scorer(texts), np.float64),
        np.asarray(scorer.log_odds(texts), np.float64),
        np.concatenate(kl),
        texts,
        completions,
    )


def texts_of(model: LanguageModel, completions: Sequence[Completion]) -> list[str]:
    """Prompts and completions as people read them."""
    return [
        model.tokenizer.decode([*c.prompt_ids, *c.completion_ids], skip_special_tokens=True)
        for c in completions
    ]


def gold_rewards(model: LanguageModel) -> Scorer:
    """The gold scorer's log-odds as a reward of tokens."""
    return score_texts(model.tokenizer, gold_scorer().log_odds)


def openings(
    tokenizer: Any, count: int, *, tokens: int, positive: bool | None = None, seed: int
) -> list[Example]:
    """First tokens of reviews of the train split, as demonstrations of how reviews go.

    Args:
        tokenizer: of the model that shall learn them.
        count: how many reviews at most.
        tokens: how many of each.
        positive: only those that liked, or disliked, the film; None: both.
        seed: decides which reviews.
    """
    reviews = [
        r
        for r in load_reviews().train
        if r.source == "imdb" and (positive is None or r.positive == positive)
    ]
    order = np.random.default_rng([seed, 11]).permutation(len(reviews))
    lead = leading_ids(tokenizer)
    examples = []
    for index in order[:count]:
        # A token stands for at least one character, and hardly ever for more than 16.
        text = reviews[index].text[: 16 * tokens]
        ids = [*lead, *tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]]
        examples.append(Example(tuple(ids[:1]), tuple(ids[1:])))
    return examples


def sample_rankings(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    new_tokens: int,
    seed: int,
) -> list[Ranking]:
    """Completions of each prompt, in the order in which the gold scorer likes them.

    Args:
        model: what to sample from.
        prompts: token ids.
        samples: completions of each prompt.
        new_tokens: most tokens of a completion.
        seed: of the samples.

    Returns:
        A ranking for each prompt of which at least two completions differ. Of completions that are
        equal, or equally good, one is kept.

    Source:
        Rafailov et al., "Direct Preference Optimization" (2023), appendix C.1; rankings of K as in
        InstructGPT (Ouyang et al. 2022), section 3.5.
    """
    completions = generate(
        model,
        [prompt for prompt in prompts for _ in range(samples)],
        max_new_tokens=new_tokens,
        seeds=seed,
        batch_size=2 * ROWS,
    )
    scores = gold_scorer().log_odds(texts_of(model, completions)).tolist()
    rankings = []
    for place in range(0, len(completions), samples):
        places = range(place, place + samples)
        by_score = {scores[i]: completions[i].completion_ids for i in places}
        ordered = list(dict.fromkeys(by_score[score] for score in sorted(by_score, reverse=True)))
        if len(ordered) > 1:
            rankings.append(Ranking(completions[place].prompt_ids, tuple(ordered)))
    return rankings


def pairs_in(rankings: Sequence[Ranking]) -> list[Pair]:
    """All C(K, 2) comparisons of each ranking, the better completion first."""
    return [
        Pair(ranking.prompt_ids, better, worse)
        for ranking in rankings
        for better, worse in itertools.combinations(ranking.completions, 2)
    ]


def write_rankings(path: Path, rankings: Sequence[Ranking]) -> None:
    """One JSON array per line, prompt and completions as token ids; whole or not at all."""
    with replaced(path) as file:
        for ranking in rankings:
            row = [ranking.prompt_ids, *ranking.completions]
            file.write(json.dumps(row).encode() + b"\n")


def read_rankings(path: Path) -> list[Ranking]:
    """Undoes :func:`write_rankings`."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Ranking(tuple(row[0]), tuple(map(tuple, row[1:]))) for row in rows]
