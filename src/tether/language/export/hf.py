"""A language model as a Hugging Face folder, which transformers, vLLM and lm_eval read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tether.errors import UserError
from tether.language.export.card import (
    USE_ADAPTER,
    USE_CAUSAL,
    base_name,
    hub_id,
    write_model_card,
)
from tether.language.export.classifier import write_classifier
from tether.language.export.tokenizer import prepared
from tether.language.models.files import SMOLLM2, TINY, find_folder
from tether.language.models.from_run import is_run, load_language_model, setup_of
from tether.language.models.language_model import DTYPES, LanguageModel, merged
from tether.learning.export_options import ExportOptions
from tether.learning.run import Run


def write(run: Run, folder: Path, options: ExportOptions, env: Any) -> dict[str, Any]:
    """Writes config, safetensors, tokenizer, chat template, generation config and a card.

    An adapter is merged into the weights unless it is to be kept. A reward model becomes a
    sequence classifier with one label.

    Returns:
        ``parameters`` written, and their ``dtype``; of a reward model also how far it differs.

    Raises:
        UserError: an option that does not suit the run.
    """
    check_no_env(run, env)
    if options.keep_adapter:
        _check_adapter(run, options)
    if run.method == "reward":
        return write_classifier(run, folder, options.dtype)
    loaded = load_language_model(run.path, device="cpu")
    model, template = prepared(run, loaded)
    if options.keep_adapter:
        facts = _write_adapter(run, model, folder)
        write_model_card(run, folder, use=USE_ADAPTER, template=template, library="peft")
    else:
        facts = _write_merged(model, folder, options.dtype)
        write_model_card(run, folder, use=USE_CAUSAL, template=template)
    model.tokenizer.save_pretrained(folder)
    return facts


def check_no_env(run: Run, env: Any) -> None:
    """Raises a UserError if an environment was given for a language model."""
    if env is not None:
        raise UserError(f"env is {env!r}, but run {run.path} holds a language model; leave it out")


def with_dtype(model: Any, dtype: str | None) -> Any:
    """The model with its parameters in another type; None leaves them."""
    if dtype is not None:
        # Not its buffers: rotary frequencies stay float32 whatever the parameters are.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[dtype])
    return model


def _write_merged(language_model: LanguageModel, folder: Path, dtype: str | None) -> dict[str, Any]:
    model = with_dtype(merged(language_model), dtype)
    model.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def _write_adapter(run: Run, language_model: LanguageModel, folder: Path) -> dict[str, Any]:
    model = language_model.model
    base = base_name(run)
    # peft finds the base model by this name, wherever the adapter is carried.
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = (
            str(find_folder(base)) if base in (TINY, SMOLLM2) else hub_id(base) or base
        )
    # Otherwise peft asks the hub whether the vocabulary has grown, which it never has here.
    model.save_pretrained(folder, save_embedding_layers=False)
    language_model.causal_lm.generation_config.save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in language_model.trainable_parameters())}


def _check_adapter(run: Run, options: ExportOptions) -> None:
    setup = setup_of(run)
    advice = "leave out keep_adapter"
    if options.dtype is not None:
        raise UserError(f"an adapter is kept in the run's own type; {advice}, or dtype")
    if run.method == "reward":
        raise UserError(
            f"run {run.path} holds a reward model, whose head is no part of an adapter; {advice}"
        )
    if setup.lora is None:
        raise UserError(f"run {run.path} was trained without an adapter; {advice}")
    if is_run(setup.model):
        raise UserError(
            f"the adapter of run {run.path} lies on the model of run {setup.model}, where peft "
            f"cannot find it; {advice}, which merges both"
        )
