"""Answers of a language model to texts: what `tether generate` does, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tether.errors import UserError
from tether.language.data.fields import Text
from tether.language.data.templates import Kind, Template
from tether.language.models.from_run import load_with_template, with_template
from tether.language.models.generation import generate
from tether.language.models.given import GivenModel, given_model
from tether.language.models.language_model import LanguageModel


def answer_prompts(
    model: str | Path | GivenModel,
    prompts: str | Sequence[Text],
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
) -> list[str]:
    """Answers prompts, through the template that the model was trained with.

    Args:
        model: a run, a model's name or folder, or a loaded model.
        prompts: a text, or several texts or conversations (lists of messages).
        tokenizer: of a ``transformers`` model.
        max_new_tokens: most tokens of an answer; fewer where the model's context ends first.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among so many likeliest tokens only.
        top_p: sample among the fewest likeliest tokens that together are this probable.
        seed: decides what is sampled; the answer to prompt i depends on (seed, i) alone.
        batch_size: answers generated at once.
        device: of a model that is named.

    Returns:
        One answer for each prompt.

    Raises:
        UserError: no such model, a prompt without room for an answer, or a bad setting.
    """
    language_model, template = _opened(model, tokenizer, device)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    ids = [list(template.prompt_ids(text)) for text in texts]
    room = language_model.context - max(map(len, ids), default=0)
    if room < 1:
        raise UserError(
            f"a prompt takes {language_model.context - room} tokens, and the model's context is "
            f"{language_model.context}; shorten it"
        )
    answers = generate(
        language_model,
        ids,
        max_new_tokens=min(max_new_tokens, room),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seeds=seed,
        batch_size=batch_size,
    )
    return [template.decode(answer.completion_ids) for answer in answers]


def _opened(
    model: str | Path | GivenModel, tokenizer: Any, device: str
) -> tuple[LanguageModel, Template]:
    given, name = given_model(model, tokenizer)
    if given is None:
        return load_with_template(str(name), device=device)
    kind: Kind = "chat" if given.tokenizer.chat_template else "plain"
    return with_template(given, kind)
