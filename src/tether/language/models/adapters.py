"""Low-rank adapters: a model learns in a few parameters beside its own."""

import warnings
from typing import Any, cast

import torch
from pydantic import Field

from tether.errors import UserError
from tether.language.models.files import one_line
from tether.learning.config import Config


class LoraSettings(Config):
    """Low-rank adapters: W x becomes W x + (alpha / rank) B A x, and only A and B are trained.

    Source:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022), equation 3.
    """

    rank: int = Field(default=16, ge=1)
    """Rows of A. More: more to learn with, and to keep. Usually 4 to 64."""
    alpha: float = Field(default=32.0, gt=0)
    """Strength; the product is scaled by alpha / rank. Usually 1 to 2 times the rank."""
    target_modules: tuple[str, ...] = ()
    """Names of the adapted layers; none: every linear layer but the head, the best place."""


def with_lora(model: Any, lora: LoraSettings, *, name: str, seed: int) -> Any:
    """A ``PeftModel`` around `model`: adapters that do nothing yet, everything else frozen.

    Args:
        model: a Hugging Face causal language model.
        lora: the settings.
        name: what to call the model in errors.
        seed: of the first values of A; B begins at zero.

    Raises:
        UserError: no layer of that name, or a rank above the smallest dimension of one of them.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    _check_rank(model, lora, name)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha),
        target_modules=list(lora.target_modules) or "all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        warnings.catch_warnings(),
    ):
        # peft asks transformers for something by its old name, which the user can do nothing about.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated")
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, settings).eval()
        except ValueError as error:
            raise UserError(f"no adapter can be put on {name!r}: {one_line(error)}") from error
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        raise UserError(
            "target_modules names the head, which the scorer reads as it is; leave it out"
        )
    return adapted


def _check_rank(model: Any, lora: LoraSettings, name: str) -> None:
    """Raises a UserError where the product B A could not have the rank that is asked for."""
    from transformers.pytorch_utils import Conv1D

    head, wanted = model.get_output_embeddings(), lora.target_modules
    sizes = {
        layer: min(module.weight.shape)
        for layer, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not head
        and (not wanted or any(layer == w or layer.endswith(f".{w}") for w in wanted))
    }
    if not sizes:
        return
    layer = min(sizes, key=lambda key: sizes[key])
    if lora.rank > sizes[layer]:
        raise UserError(
            f"lora is {lora.rank}, and the smallest dimension of the adapted layers of {name!r} is "
            f"{sizes[layer]} ({layer}); expected at most {sizes[layer]} (usual: 4 to 64)"
        )
