"""Causal language models ready to be aligned: loaded, adapted, referred to, and read by a head."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from tether.errors import UserError
from tether.language.models import files as pretrained
from tether.language.models.adapters import LoraSettings, with_lora
from tether.language.models.heads import ScalarHead
from tether.language.models.heap_trimming import give_back_holes
from tether.language.models.lean_layers import make_lean

__all__ = [
    "LanguageModel",
    "LoraSettings",
    "ScalarHead",
    "from_parts",
    "load_model",
    "merged",
    "reference_of",
    "same_tokens",
    "save_model",
]

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model with what is needed to feed it and to read it.

    Attributes:
        model: a Hugging Face causal language model, or a ``PeftModel`` around one.
        tokenizer: its tokenizer.
        name: what it was loaded by.
        device: where its parameters are.
        dtype: their type.
        pad_id: fills up rows; what it is never matters, masks tell padding.
        eos_id: ends a completion.
        context: most tokens it can read at once.
        stop_ids: every token that ends a completion, `eos_id` first; chat models have several.
        adapter_off: read it as if it had no adapter; see :func:`reference_of`.
        frozen: no gradients ever.
        origin: digest of what it was loaded from; empty where that was not asked for.
    """

    model: Any
    tokenizer: Any
    name: str
    device: torch.device
    dtype: torch.dtype
    pad_id: int
    eos_id: int
    context: int
    stop_ids: tuple[int, ...] = ()
    adapter_off: bool = False
    frozen: bool = False
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.stop_ids:
            object.__setattr__(self, "stop_ids", (self.eos_id,))

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter was put on."""
        return hasattr(self.model, "peft_config")

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model itself, with adapted layers in place."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def backbone(self) -> Any:
        """The part that gives hidden states."""
        return self.causal_lm.base_model

    @property
    def head(self) -> nn.Linear:
        """The part that turns a hidden state into logits."""
        return cast(nn.Linear, self.causal_lm.get_output_embeddings())

    @property
    def hidden_size(self) -> int:
        """H, numbers in a hidden state."""
        return int(self.head.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """V, tokens the model can read and write."""
        return int(self.head.weight.shape[0])

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those of the adapter if there is one, else all."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any = None
    ) -> Tensor:
        """Last hidden states, after the final normalization.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), or (B, T' + T) with T' tokens in the cache, or (B, 1, T, T);
                boolean.
            position_ids: (B, T).
            cache: a ``transformers`` cache, which is extended; None: none.

        Returns:
            (B, T, H) in the model's dtype.

        Raises:
            UserError: a (B, 1, T, T) mask with a model that cannot take one.
        """
        with self._reading():
            hidden: Tensor = self.backbone(
                input_ids=input_ids,
                attention_mask=self._usable(attention_mask),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
            return hidden

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.frozen:
                stack.enter_context(torch.no_grad())
            if self.adapter_off:
                self.model.base_model.disable_adapter_layers()
                stack.callback(self.model.base_model.enable_adapter_layers)
            yield

    def _usable(self, mask: Tensor) -> Tensor:
        if mask.ndim == 2:
            return mask
        config = self.causal_lm.config
        attention = config._attn_implementation
        window = getattr(config, "sliding_window", None) or mask.shape[-1]
        layers = set(getattr(config, "layer_types", None) or ())
        if layers - {"full_attention", "sliding_attention"} or window < mask.shape[-1]:
            raise UserError(
                f"{self.name!r} does not let every token attend to all earlier ones, so several "
                "texts cannot share a row: turn off sharing of prompts and packing"
            )
        if attention in ("sdpa", "eager"):
            # As a number to add, made once: of truth values every layer would make its own.
            lowest = torch.finfo(self.dtype).min
            return torch.zeros_like(mask, dtype=self.dtype).masked_fill_(~mask, lowest)
        raise UserError(
            f"attention {attention!r} takes no mask of its own shape, so several texts cannot "
            "share a row: load the model with sdpa, or turn off sharing of prompts and packing"
        )


def load_model(
    name: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    lora: LoraSettings | None = None,
    seed: int = 0,
) -> LanguageModel:
    """Loads a causal language model, ready to be trained: dropout off, exact gradients.

    Args:
        name: ``tiny``, ``smollm2-135m-instruct``, a folder, or an id of the Hugging Face hub; only
            the last may touch the network.
        dtype: of the parameters: float32, bfloat16, float16 (slow on a CPU) or float64.
        device: such as cpu, cuda, cuda:1.
        lora: put adapters on and freeze the rest; None: train everything.
        seed: of the adapters' first values.

    Raises:
        UserError: no such model, damaged or pickled files, another kind of model, a tokenizer
            without an end-of-sequence token, or a device or dtype that is not available.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    place = _device(device)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = pretrained.find_folder(str(name))
    config = pretrained.load_config(folder)
    model, tokenizer = pretrained.load_files(folder, config, DTYPES[dtype])
    return from_parts(model.to(place), tokenizer, str(name), lora=lora, seed=seed)


def from_parts(
    model: Any, tokenizer: Any, name: str, *, lora: LoraSettings | None = None, seed: int = 0
) -> LanguageModel:
    """A :class:`LanguageModel` from a Hugging Face model and tokenizer that are loaded already.

    Raises:
        UserError: they do not fit each other, or the scorer does not fit the model.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            f"the tokenizer of {name!r} has no end-of-sequence token, so completions could not "
            "end; set eos_token in its tokenizer_config.json"
        )
    for module in model.modules():
        # torch withholds the gradient of this id, which is often the end-of-sequence token's too.
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.eval()
    model.requires_grad_(True)
    make_lean(model)
    give_back_holes(model.base_model, model.get_input_embeddings())
    pad = tokenizer.pad_token_id
    loaded = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        device=next(model.parameters()).device,
        dtype=next(model.parameters()).dtype,
        pad_id=int(eos if pad is None else pad),
        eos_id=int(eos),
        context=_context(model, tokenizer),
        stop_ids=_stop_ids(model, int(eos)),
    )
    _check_fit(loaded)
    if lora is None:
        return loaded
    return dataclasses.replace(loaded, model=with_lora(model, lora, name=name, seed=seed))


def reference_of(language_model: LanguageModel) -> LanguageModel:
    """The policy as it was, for a KL penalty or DPO: never trained, never moving.

    With an adapter it is the same model with the adapter off, at no memory; without one it is a
    frozen copy.
    """
    if language_model.has_adapter:
        return dataclasses.replace(language_model, adapter_off=True, frozen=True)
    model = copy.deepcopy(language_model.model).requires_grad_(False)
    return dataclasses.replace(language_model, model=model, frozen=True)


def save_model(language_model: LanguageModel, folder: str | Path) -> None:
    """Writes an ordinary Hugging Face folder.

    An adapter is merged into the weights, which are then float32 or wider: the steps of bfloat16
    are larger than much of what adapters learn.

    Raises:
        UserError: it cannot be written.
    """
    model = language_model.model
    if language_model.has_adapter:
        model = merged(dataclasses.replace(language_model, model=copy.deepcopy(model)))
    try:
        model.save_pretrained(folder)
        language_model.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def merged(language_model: LanguageModel) -> Any:
    """The Hugging Face model with the adapter, if any, added to its weights, in float32 or wider.

    The given model is used up.
    """
    if not language_model.has_adapter:
        return language_model.model
    wide = torch.promote_types(language_model.dtype, torch.float32)
    return language_model.model.to(wide).merge_and_unload()


def same_tokens(one: LanguageModel, other: LanguageModel) -> bool:
    """Whether an id stands for the same token in both, as far as there are tokenizers to tell."""
    if one.vocabulary != other.vocabulary:
        return False
    known = one.tokenizer is not None and other.tokenizer is not None
    if not known or one.tokenizer is other.tokenizer:
        return True
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} is not available ({pretrained.one_line(error)}); expected cpu, or "
            "cuda where there is a GPU and a PyTorch built for it"
        ) from None
    return device


def _context(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    # Tokenizers say 1e30 for "I do not know".
    return int(positions or min(tokenizer.model_max_length, 1 << 20))


def _stop_ids(model: Any, eos: int) -> tuple[int, ...]:
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [eos, *(more if isinstance(more, list) else [] if more is None else [more])]
    return tuple(dict.fromkeys(int(i) for i in ids))


@torch.no_grad()
def _check_fit(language_model: LanguageModel) -> None:
    """The scorer takes logits to be head(backbone(x)), and a token to see none after it."""
    name, tokens = language_model.name, len(language_model.tokenizer)
    head = language_model.head
    if type(head) is not nn.Linear:
        raise UserError(f"the head of {name!r} is a {type(head).__name__}; expected a linear one")
    rows = min(
        language_model.vocabulary, language_model.causal_lm.get_input_embeddings().weight.shape[0]
    )
    if tokens > rows:
        raise UserError(
            f"the tokenizer of {name!r} knows {tokens} tokens and its model only {rows}; give the "
            "model its own tokenizer"
        )
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=language_model.device) % rows
    positions = torch.arange(4, device=language_model.device).expand(2, 4)
    everything = torch.ones_like(ids).bool()
    try:
        hidden = language_model.hidden_states(ids, everything, positions)
    except TypeError as error:
        raise UserError(
            f"{name!r} takes no position ids or cache as causal language models do "
            f"({pretrained.one_line(error)})"
        ) from error
    logits = language_model.model(
        input_ids=ids, attention_mask=everything, position_ids=positions, use_cache=False
    ).logits
    # The same products of the same numbers: a few roundings, not enough to hide a soft cap.
    if not _close(head(hidden), logits, roundings=4):
        raise UserError(
            f"{name!r} transforms its logits after the head, which is not supported; expected "
            "logits that are a linear function of the last hidden state"
        )
    # Rows of one product may differ in their last bits, layer after layer.
    roundings = 16 if torch.finfo(hidden.dtype).bits < 32 else 50
    if not _close(hidden[0, :3], hidden[1, :3], roundings=roundings):
        raise UserError(f"in {name!r} tokens attend to later ones; expected a causal model")


def _close(one: Tensor, other: Tensor, *, roundings: int) -> bool:
    """Whether two tensors differ by no more than some roundings of their largest number."""
    scale = float(one.abs().max())
    return float((one - other).abs().max()) <= roundings * torch.finfo(one.dtype).eps * scale
