"""Tiny models with random weights, in the precision that makes equalities exact."""

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tether.language.data.tokens import Completion
from tether.language.models.language_model import LanguageModel, LoraSettings, from_parts

VOCABULARY = 97
EOS = 1


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = {"<bos>": 0, "<eos>": EOS, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = Whitespace()
    special = special or {"bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def llama_model(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            # Wide, or every next token would be nearly as likely as any other.
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": EOS,
            "pad_token_id": None,
            "attention_dropout": 0.1,
            **settings,
        }
    )
    return LlamaForCausalLM(config)


def gpt2_model(seed: int = 0, **settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        **{
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": EOS,
            **settings,
        }
    )
    return GPT2LMHeadModel(config)


def language_model(
    kind: str = "gpt2",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    lora: LoraSettings | None = None,
    attention: str = "sdpa",
    **settings: Any,
) -> LanguageModel:
    """GPT-2 computes in its dtype throughout; Llama's normalizations are float32 whatever it is."""
    if (kind, attention, dtype) == ("llama", "eager", torch.float64):
        # Its softmax is float32, in which the mask's lowest float64 is -inf, and padding NaN.
        dtype = torch.float32
    make = {"llama": llama_model, "gpt2": gpt2_model}[kind]
    model = make(seed, attn_implementation=attention, **settings).to(dtype)
    return from_parts(model, tokenizer(), kind, lora=lora, seed=seed)


def completions(count: int, seed: int = 0, longest: int = 7) -> list[Completion]:
    """Ragged prompts and completions, the first ones of extreme lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    made = []
    for index in range(count):
        prompt, completion = torch.randint(1, longest + 1, (2,), generator=generator).tolist()
        if index < 2:
            prompt, completion = [(1, longest), (longest, 1)][index]
        made.append(Completion(ids(prompt), [*ids(completion), EOS]))
    return made
