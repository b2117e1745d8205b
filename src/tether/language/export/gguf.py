"""A language model as one GGUF file, which llama.cpp and Ollama run.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tether.errors import UserError
from tether.language.export.card import USE_GGUF, base_name, write_model_card
from tether.language.export.gguf_tokenizer import write_tokenizer
from tether.language.export.hf import check_no_env
from tether.language.export.tokenizer import prepared
from tether.language.models.from_run import load_language_model, setup_of
from tether.language.models.language_model import merged
from tether.learning.export_options import ExportOptions
from tether.learning.reports.model_card import portable
from tether.learning.run import Run

FILE: Final = "model.gguf"

_ARCHITECTURES: Final = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
# Of these llama.cpp rotates neighbours, and not the first with the second part of a head.
_INTERLEAVED: Final = frozenset({"llama"})

_TYPES: Final = {
    "float32": (np.float32, gguf.LlamaFileType.ALL_F32),
    "float16": (np.float16, gguf.LlamaFileType.MOSTLY_F16),
}


def write(run: Run, folder: Path, options: ExportOptions, env: Any) -> dict[str, Any]:
    """Writes ``model.gguf`` and a card. An adapter is merged into the weights.

    Returns:
        ``architecture``, ``dtype``, and ``tensors`` written.

    Raises:
        UserError: a reward model, an architecture or a tokenizer that is not written, or a type
            other than float32 and float16.
    """
    check_no_env(run, env)
    dtype = options.dtype or "float16"
    if dtype not in _TYPES:
        raise UserError(f"dtype is {dtype!r}; for gguf expected one of {', '.join(_TYPES)}")
    if run.method == "reward":
        raise UserError(
            f"run {run.path} holds a reward model, which gives scores and no text; export it to hf"
        )
    language_model, template = prepared(run, load_language_model(run.path, device="cpu"))
    config = language_model.causal_lm.config
    architecture = _architecture(config, run)
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(f"{portable(base_name(run))} {run.method}")
    _write_shape(writer, config)
    write_tokenizer(writer, language_model.tokenizer, template, language_model.vocabulary)
    numbers, file_type = _TYPES[dtype]
    writer.add_file_type(file_type)
    tensors = 0
    for name, array in _tensors(merged(language_model), architecture):
        # As llama.cpp's own converter does it: what is no matrix stays float32.
        writer.add_tensor(name, array.astype(numbers if array.ndim > 1 else np.float32))
        tensors += 1
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    write_model_card(
        run, folder, use=USE_GGUF, template=template, library="gguf", tags=("gguf", "llama.cpp")
    )
    return {
        "architecture": gguf.MODEL_ARCH_NAMES[architecture],
        "dtype": dtype,
        "tensors": tensors,
    }


def _architecture(config: Any, run: Run) -> gguf.MODEL_ARCH:
    """What GGUF calls this architecture.

    Raises:
        UserError: it has no name for it, or not for one of its settings.
    """
    model = setup_of(run).model
    found = _ARCHITECTURES.get(config.model_type)
    if found is None:
        raise UserError(
            f"the model {model} is a {config.model_type}, which is not written as GGUF; expected "
            f"one of {', '.join(_ARCHITECTURES)}, or --to hf and llama.cpp's convert_hf_to_gguf.py"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    settings = {
        "rope_type": rope.get("rope_type", "default") != "default",
        "attention_bias": config.model_type == "llama" and config.attention_bias,
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "use_sliding_window": bool(getattr(config, "use_sliding_window", False)),
        "hidden_act": config.hidden_act != "silu",
    }
    for name, unusual in settings.items():
        if unusual:
            value = rope[name] if name in rope else getattr(config, name)
            raise UserError(
                f"the model {model} has {name} {value!r}, which is not written as GGUF; export it "
                "to hf and use llama.cpp's convert_hf_to_gguf.py"
            )
    return found


def _write_shape(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    per_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(per_head)
    writer.add_value_length(per_head)
    writer.add_rope_dimension_count(per_head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, architecture: gguf.MODEL_ARCH) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every parameter by its name in GGUF, float32; tied ones once."""
    config = model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RuntimeError(f"GGUF has no name for the parameter {name}")
        tensor = parameter.detach().float()
        if config.model_type in _INTERLEAVED and ".self_attn.q_proj." in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        elif config.model_type in _INTERLEAVED and ".self_attn.k_proj." in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        yield found, np.ascontiguousarray(tensor.numpy())


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection in llama.cpp's order.

    `transformers` rotates row i of a head with row i + size / 2; llama.cpp rotates neighbours, so
    the two parts of each head alternate.

    Args:
        weight: (heads * size, ...).
        heads: how many heads the rows are of.

    Source:
        `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py.
    """
    parts = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return torch.swapaxes(parts, 1, 2).reshape(weight.shape)
