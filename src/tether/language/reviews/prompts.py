"""Film reviews with a sentiment: the task of the classic experiments in alignment.

A model continues the beginning of a review (:func:`prefixes`), and a scorer says how positive the
result is: :func:`gold_scorer`, the best this corpus teaches, stands for what people want;
:func:`lexicon_scorer` is a crude stand-in that a policy can please without pleasing anyone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tether.errors import UserError
from tether.language.reviews.corpus import Review, Reviews, Source, Split, clean, load_reviews
from tether.language.reviews.scorers import GoldScorer, LexiconScorer, gold_scorer, lexicon_scorer

__all__ = [
    "GoldScorer",
    "LexiconScorer",
    "Review",
    "Reviews",
    "Source",
    "Split",
    "clean",
    "gold_scorer",
    "leading_ids",
    "lexicon_scorer",
    "load_reviews",
    "prefixes",
    "texts_of",
]


def prefixes(
    tokenizer: Any,
    count: int,
    *,
    split: Split = "held_out",
    shortest: int = 2,
    longest: int = 8,
    source: Source | None = "imdb",
    seed: int = 0,
) -> list[list[int]]:
    """Beginnings of reviews, to be continued by a model: the prompts of a sentiment study.

    Each is the first n tokens of a different review, n uniform from `shortest` to `longest`, after
    the beginning-of-sequence token if the tokenizer puts one. The ids are cut, not the text, so
    what the model sees is what it saw in training.

    Args:
        tokenizer: a Hugging Face tokenizer.
        count: how many prompts.
        split: the part to draw from.
        shortest: least number of tokens, at least 1, not counting the beginning-of-sequence token.
        longest: greatest number of tokens.
        source: draw from these reviews only; None draws from all.
        seed: decides which reviews and which lengths.

    Returns:
        `count` lists of token ids.

    Raises:
        UserError: lengths that make no sense, or more prompts than there are reviews.

    Source:
        Rafailov et al., "Direct Preference Optimization" (2023), appendix C.1: prefixes of 2 to 8
        tokens of IMDb reviews.
    """
    if not 1 <= shortest <= longest:
        raise UserError(
            f"prefixes of {shortest} to {longest} tokens make no sense; expected "
            "1 <= shortest <= longest"
        )
    reviews = [r for r in load_reviews().part(split) if source is None or r.source == source]
    if not 0 <= count <= len(reviews):
        raise UserError(f"{count} prefixes were asked for; there are {len(reviews):,} reviews")
    random = np.random.default_rng(seed)
    order = random.permutation(len(reviews))
    lengths = random.integers(shortest, longest + 1, size=len(reviews))
    lead = leading_ids(tokenizer)
    prompts: list[list[int]] = []
    for index in order:
        if len(prompts) == count:
            break
        # A token stands for at least one character, and never for more than 64.
        text = reviews[index].text[: 64 * longest]
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        length = int(lengths[index])
        if len(ids) > length:
            prompts.append(lead + ids[:length])
    if len(prompts) < count:
        raise UserError(
            f"{count} prefixes were asked for; only {len(prompts):,} reviews are long enough"
        )
    return prompts


def leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: its beginning-of-sequence token, or nothing."""
    bos = tokenizer.bos_token_id
    ids: list[int] = tokenizer("a")["input_ids"]
    return [bos] if bos is not None and ids[:1] == [bos] else []


def texts_of(reviews: Sequence[Review], source: Source | None = None) -> list[str]:
    """The texts alone, of one source or of all."""
    return [r.text for r in reviews if source is None or r.source == source]
