"""What goes with a model so that other programs write to it as its training did."""

from __future__ import annotations

from typing import Any

from tether.language.data.templates import PLAIN_CHAT, Template
from tether.language.models.from_run import with_template
from tether.language.models.language_model import LanguageModel
from tether.language.reviews.prompts import leading_ids
from tether.learning.run import Run


def prepared(run: Run, language_model: LanguageModel) -> tuple[LanguageModel, Template]:
    """The run's template, and its model with a tokenizer and stop tokens that agree with it.

    The tokenizer gets the chat template with which the run was trained, where it has none of its
    own; the generation config gets every token that ends an answer.
    """
    language_model, template = with_template(language_model, run.spec["template"])
    tokenizer = language_model.tokenizer
    if tokenizer.chat_template is None and template.kind == "chat":
        tokenizer.chat_template = plain_chat(tokenizer)
    stops = list(language_model.stop_ids)
    generation = getattr(language_model.causal_lm, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = stops if len(stops) > 1 else stops[0]
        generation.pad_token_id = language_model.pad_id
    return language_model, template


def plain_chat(tokenizer: Any) -> str:
    """The layout of a conversation without a chat template, as a template of its own."""
    return PLAIN_CHAT.replace("{{ lead }}", "{{ bos_token }}" if leading_ids(tokenizer) else "")
