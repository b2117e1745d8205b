"""Models that a user has loaded already, wherever a name is accepted too."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

from tether.errors import UserError
from tether.language.models.adapters import LoraSettings, with_lora
from tether.language.models.language_model import LanguageModel, from_parts

GivenModel: TypeAlias = "LanguageModel | Any"
"""A :class:`LanguageModel`, or a ``transformers.PreTrainedModel`` that comes with a tokenizer."""


def given_model(
    model: str | Path | GivenModel | None, tokenizer: Any = None
) -> tuple[GivenModel | None, str | None]:
    """Tells a model's name from a model.

    Args:
        model: a name, a model, or None for the default.
        tokenizer: of a ``transformers`` model.

    Returns:
        The model, if it is one, as a :class:`LanguageModel`; its name, if it is a name.

    Raises:
        UserError: neither, or a tokenizer is missing or not needed.
    """
    named = model is None or isinstance(model, str | Path)
    if tokenizer is not None and (named or isinstance(model, LanguageModel)):
        what = f"the name {str(model)!r}" if named else "a LanguageModel, which has its own"
        raise UserError(
            f"tokenizer is given, and model is {what}; a tokenizer belongs to a transformers model"
        )
    if model is None or isinstance(model, str | Path):
        return None, None if model is None else str(model)
    if isinstance(model, LanguageModel):
        return model, None
    if not (hasattr(model, "get_output_embeddings") and hasattr(model, "config")):
        raise UserError(
            f"model is a {type(model).__name__}; expected a name, a folder, a run, a LanguageModel "
            "or a causal language model of transformers"
        )
    if tokenizer is None:
        raise UserError(
            f"model is a {type(model).__name__} and no tokenizer is given; pass tokenizer= too"
        )
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    return from_parts(model, tokenizer, str(name)), None


def adapted(
    language_model: LanguageModel, lora: LoraSettings | None, *, seed: int
) -> LanguageModel:
    """The model with fresh adapters on, if there are to be any.

    Raises:
        UserError: it has adapters already.
    """
    if lora is None:
        return language_model
    if language_model.has_adapter:
        raise UserError(
            f"lora is {lora.rank}, and the given model {language_model.name!r} has adapters "
            "already; leave lora out, or merge them first"
        )
    model = with_lora(language_model.model, lora, name=language_model.name, seed=seed)
    return dataclasses.replace(language_model, model=model)
