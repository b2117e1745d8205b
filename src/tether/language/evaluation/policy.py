"""A policy measured on prompts: by scores, against another policy, by a larger model, by counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tether.errors import UserError
from tether.language.data.batches import collate
from tether.language.data.templates import Template
from tether.language.data.tokens import Completion
from tether.language.evaluation.texts import distinct, profanity, refusals, words_of
from tether.language.evaluation.win_rate import length_controlled, win_rate
from tether.language.methods import METHODS
from tether.language.methods.rlhf.given_rewards import GivenRewards
from tether.language.methods.rlhf.reward_settings import RewardSettings
from tether.language.methods.rlhf.rewards import check_readable, open_scorer
from tether.language.models.from_run import Setup, load_with_template, open_model
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel, same_tokens
from tether.language.models.logprobs import token_log_probs
from tether.language.runs.prepare import ModelAndData, prepare
from tether.language.runs.rewards import recorded_in
from tether.learning.seeding import Stream, derived_seed

_ROWS = 16


class EvaluationConfig(RewardSettings):
    """What is measured."""

    against: str | None = None
    """Another run or model that answers the same prompts: the win rate against it is reported."""
    fluency: str | None = None
    """A larger model, such as smollm2-135m-instruct, whose log-probability per token says how
    fluent the answers are."""
    max_new_tokens: int = Field(32, ge=1)
    """The most tokens an answer may have, including the end-of-sequence token."""
    temperature: float = Field(1.0, ge=0)
    """The logits are divided by this; 0 takes the most likely token."""


@dataclass(frozen=True)
class Answers:
    """What a policy says to the prompts.

    Attributes:
        items: (N,) completions.
        prompts: (N,) texts.
        texts: (N,) the answers as texts.
        scores: (N,) what the rewards give.
    """

    items: list[Completion]
    prompts: list[str]
    texts: list[str]
    scores: NDArray[np.float64]


def evaluate_policy(setup: Setup, config: EvaluationConfig) -> dict[str, Any]:
    """Answers prompts and measures the answers.

    Args:
        setup: the model and the prompts.
        config: what is measured.

    Returns:
        ``score`` (mean and standard error), ``length`` in words, ``distinct_1``, ``distinct_2``,
        ``profanity`` in a thousand words, ``refusals``; ``fluency`` in nats per token if a model is
        given; with ``against`` the same of the other policy, and ``win_rate``, its ``interval``,
        ``n``, ``ties`` and ``length_controlled``.

    Raises:
        UserError: there is no such run, model, reward or data, or the policies' tokens differ.
    """
    rewards = GivenRewards.of(config.reward)
    config, rewards = recorded_in(config, rewards, setup.data, {})
    source = prepare(METHODS["rlhf"], setup, setup.data, config, None, rewards.functions)
    other = None
    if config.against is not None:
        other, _ = load_with_template(config.against, device=setup.device)
        if not same_tokens(other, source.language_model):
            raise UserError(
                f"{config.against!r} and {setup.model!r} have different tokens, so they cannot be "
                "given the same prompts; compare runs of one base model"
            )
    reader = None if config.fluency is None else open_model(config.fluency, device=setup.device)
    scorer = open_scorer(config, source.language_model, rewards, source.rows)
    longest = max(len(r.prompt_ids) for r in source.data) + config.max_new_tokens
    check_readable(scorer, source.language_model, longest)

    def said(model: LanguageModel, key: int) -> Answers:
        return _answers(source, model, config, scorer, key=key, seed=setup.seed)

    own = said(source.language_model, 0)
    found = {"model": setup.model, "prompts": len(own.items), **_measured(own, reader)}
    if other is not None:
        rival = said(other, 1)
        found["against"] = {"model": config.against, **_measured(rival, reader)}
        found |= win_rate(own.scores, rival.scores, seed=setup.seed)
        found["length_controlled"] = length_controlled(
            own.scores, rival.scores, _lengths(own), _lengths(rival)
        )
    return found


def fluency(
    model: LanguageModel, prompts: Sequence[str], texts: Sequence[str]
) -> NDArray[np.float64]:
    """Mean log-probability per token of each text after its prompt, (N,) nats.

    It can't tell sense from routine: a stock phrase is the most fluent text there is.
    """
    template = Template(model.tokenizer, "plain")
    items = []
    for prompt, text in zip(prompts, texts, strict=True):
        before = template.prompt_ids(prompt)
        ids = template.continuation(text, literal=True) or [model.eos_id]
        room = model.context - len(ids)
        items.append(Completion(tuple(before[-max(room, 1) :]), tuple(ids[: model.context - 1])))
    order = sorted(range(len(items)), key=lambda i: len(items[i].completion_ids))
    found = np.zeros(len(items))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        batch = collate([items[row] for row in rows], pad_id=model.pad_id)
        with torch.no_grad():
            log_probs, mask = token_log_probs(model, batch)
        found[rows] = (log_probs.double().sum(-1) / mask.sum(-1)).cpu().numpy()
    return found


def _answers(
    source: ModelAndData,
    model: LanguageModel,
    config: EvaluationConfig,
    scorer: Any,
    *,
    key: int,
    seed: int,
) -> Answers:
    prompts = [record.prompt_ids for record in source.data]
    items = generate(
        model,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        # Each policy draws numbers of its own, or those alike would tie.
        seeds=[derived_seed(seed, Stream.MEASUREMENT, key, i) for i in range(len(prompts))],
    )
    items = [
        Completion(item.prompt_ids, item.completion_ids, item.finished, row=row)
        for row, item in enumerate(items)
    ]
    decode = source.language_model.tokenizer.decode
    texts = [decode(list(item.completion_ids), skip_special_tokens=True) for item in items]
    asked = [decode(list(item.prompt_ids), skip_special_tokens=True) for item in items]
    return Answers(items, asked, texts, np.asarray(scorer(items), np.float64))


def _lengths(answers: Answers) -> list[int]:
    return [len(words_of(text)) for text in answers.texts]


def _measured(answers: Answers, reader: LanguageModel | None) -> dict[str, Any]:
    scores, texts = answers.scores, answers.texts
    error = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
    found: dict[str, Any] = {
        "score": float(scores.mean()),
        "score_error": error,
        "length": float(np.mean(_lengths(answers))),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "profanity": profanity(texts),
        "refusals": refusals(texts),
    }
    if reader is not None:
        found["fluency"] = float(fluency(reader, answers.prompts, texts).mean())
    return found
