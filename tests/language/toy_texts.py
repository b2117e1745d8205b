"""A tokenizer and a model made in seconds, with and without a chat template."""

from pathlib import Path
from typing import Any

from random_models import llama_model
from transformers import PreTrainedTokenizerFast

from tether.language.models.language_model import LanguageModel, LoraSettings, from_parts
from tether.language.pretraining.tiny_recipe import train_tokenizer

CORPUS = [
    "The answer is 42. The answer is yes. Is the answer no? The question is what the answer is.",
    "user assistant system: one two three four five six seven eight nine ten, hello and goodbye",
    "A cat sat on a mat. A dog ran to a log. The cat and the dog sat and ran and sat again.",
] * 5

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
"""What the assistant says ends with the end-of-sequence token; a line break follows."""


def bpe(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(CORPUS, 340)
    tokenizer.chat_template = chat_template
    return tokenizer


def toy(
    chat_template: str | None = None, lora: LoraSettings | None = None, **settings: Any
) -> LanguageModel:
    tokenizer = bpe(chat_template)
    model = llama_model(**_sizes(tokenizer), **settings)
    return from_parts(model, tokenizer, "toy", lora=lora)


def save_toy(folder: Path, chat_template: str | None = None, **settings: Any) -> Path:
    """A model's folder, as `save_pretrained` writes it."""
    tokenizer = bpe(chat_template)
    llama_model(**_sizes(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.02,
    }
