"""A byte-level BPE tokenizer in the metadata of a GGUF file."""

from __future__ import annotations

import json
from typing import Any, Final

import gguf

from tether.errors import UserError
from tether.language.data.templates import Template
from tether.language.reviews.prompts import leading_ids

_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def write_tokenizer(writer: Any, tokenizer: Any, template: Template, vocabulary: int) -> None:
    """Writes tokens, merges, special tokens and the chat template.

    Args:
        writer: a ``GGUFWriter``.
        tokenizer: a fast tokenizer.
        template: how the run wrote to the model; its first stop token ends a turn.
        vocabulary: rows of the model's embedding, which may be more than there are tokens.

    Raises:
        UserError: another kind of tokenizer than byte-level BPE, or one that cuts texts into words
            in a way that has no name in llama.cpp.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(backend))
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    for index in range(vocabulary):
        if index not in by_id:
            kind = gguf.TokenType.UNUSED
        elif index not in added:
            kind = gguf.TokenType.NORMAL
        elif added[index].special:
            kind = gguf.TokenType.CONTROL
        else:
            kind = gguf.TokenType.USER_DEFINED
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        types.append(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = backend["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if template.stop_ids[0] != tokenizer.eos_token_id:
        writer.add_eot_token_id(template.stop_ids[0])
    for name in ("bos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(bool(leading_ids(tokenizer)))
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.get_chat_template())


def _pre_tokenizer(backend: dict[str, Any]) -> str:
    """What llama.cpp calls the way in which this tokenizer cuts a text before it merges bytes."""
    model, before = backend["model"], backend.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    last = steps[-1] if steps else {}
    problem = "it is no byte-level BPE"
    if model.get("type") == "BPE" and last.get("type") == "ByteLevel" and not _normalizes(backend):
        cuts = [_cut(step) for step in steps[:-1]]
        if last.get("use_regex", True):
            cuts.append("gpt-2")
        known = {
            ("gpt-2",): "gpt-2",
            ("digits", "gpt-2"): "smollm",
            (_LLAMA3,): "llama-bpe",
            (_QWEN2,): "qwen2",
        }
        found = known.get(tuple(cuts))
        if found is not None and not last.get("add_prefix_space"):
            return found
        problem = "it cuts texts into words in a way that llama.cpp has no name for"
    raise UserError(
        f"the model's tokenizer is not written as GGUF: {problem}; export the run to hf and use "
        "llama.cpp's convert_hf_to_gguf.py"
    )


def _normalizes(backend: dict[str, Any]) -> bool:
    kind = (backend.get("normalizer") or {}).get("type")
    # llama.cpp does not compose characters for Qwen either, which nearly all texts already are.
    return kind not in (None, "NFC")


def _cut(step: dict[str, Any]) -> str:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return "digits"
    if step.get("type") == "Split" and step.get("behavior") == "Isolated":
        return str(step.get("pattern", {}).get("Regex", "another pattern"))
    return str(step.get("type"))
