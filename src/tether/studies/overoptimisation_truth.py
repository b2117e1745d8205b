"""What was meant: a continuation that is positive and fluent.

    positive   the gold scorer finds the whole text positive with a probability above one half
    fluent     to the reader, its log-probability per token is at least that of the least likely
               tenth of what people wrote after openings of the same kind
    truth      both, 1 or 0

Rewards are learned from comparisons by the gold scorer, which does not read for fluency: so a
policy is paid for one part of what was meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tether.language.data.tokens import Completion
from tether.language.evaluation.policy import fluency
from tether.language.models.language_model import LanguageModel
from tether.language.reviews.prompts import gold_scorer, leading_ids, prefixes

LEAST_LIKELY: Final = 0.1
"""The share of what people wrote that is not fluent enough."""
_PREFIX: Final = (2, 8)
"""Least and most tokens of an opening, as those that policies continue."""


@dataclass(frozen=True)
class Judged:
    """N continuations.

    Attributes:
        said: N texts, without what they continue.
        log_odds: (N,) that the text is positive, by the gold scorer, in nats.
        fluency: (N,) log-probability per token, to the reader, in nats.
        fluent: (N,) whether that is enough.
        truth: (N,) 1 where the text is positive and the continuation fluent, else 0.
    """

    said: list[str]
    log_odds: NDArray[np.float64]
    fluency: NDArray[np.float64]
    fluent: NDArray[np.bool_]
    truth: NDArray[np.float64]


def judge(
    tokenizer: Any, completions: Sequence[Completion], reader: LanguageModel, bar: float
) -> Judged:
    """Looks at continuations.

    Args:
        tokenizer: theirs.
        completions: N of them.
        reader: the model that says how fluent they are; it reads their texts.
        bar: what :func:`fluency_of_people` says.
    """
    asked, said, whole = (
        [tokenizer.decode(list(ids(item)), skip_special_tokens=True) for item in completions]
        for ids in (
            lambda item: item.prompt_ids,
            lambda item: item.completion_ids,
            lambda item: (*item.prompt_ids, *item.completion_ids),
        )
    )
    log_odds = np.asarray(gold_scorer().log_odds(whole), np.float64)
    likely = fluency(reader, asked, said)
    fluent = likely >= bar
    return Judged(said, log_odds, likely, fluent, ((log_odds > 0) & fluent).astype(np.float64))


def fluency_of_people(
    tokenizer: Any, reader: LanguageModel, *, count: int, new_tokens: int, seed: int
) -> float:
    """The log-probability per token that nine tenths of people's continuations reach, in nats.

    Args:
        tokenizer: of the policies, which cuts the reviews.
        reader: as of :func:`judge`.
        count: held-out reviews.
        new_tokens: tokens of a continuation.
        seed: decides which reviews.
    """
    shortest, longest = _PREFIX
    length = longest + new_tokens
    openings = prefixes(tokenizer, count, shortest=length, longest=length, seed=seed)
    lead = len(leading_ids(tokenizer))
    asked, said = [], []
    for place, ids in enumerate(openings):
        start = lead + shortest + place % (longest - shortest + 1)
        asked.append(tokenizer.decode(ids[:start], skip_special_tokens=True))
        said.append(tokenizer.decode(ids[start : start + new_tokens], skip_special_tokens=True))
    return float(np.quantile(fluency(reader, asked, said), LEAST_LIKELY))
