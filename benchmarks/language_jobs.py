"""What the language benchmark asks of everyone: data, settings, sizes, and what they cost.

A job is a JSON object that any contender can carry out: token ids, settings that mean the same to
all, and options that are the contender's own. Texts are film reviews, tokenized here once, so
nobody's tokenization is timed and everybody reads the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

METHODS = ("dpo", "sft", "rlhf", "rlhf_chat", "generate")
UNITS = {
    "dpo": "pairs",
    "sft": "tokens",
    "rlhf": "episodes",
    "rlhf_chat": "episodes",
    "generate": "tokens",
}
OPTIMIZER = {
    "schedule": "constant",
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "adam_epsilon": 1e-8,
    "max_gradient_norm": 1.0,
}
LAPTOP: dict[str, dict[str, Any]] = {
    "dpo": {
        "steps": 6,
        "batch_size": 4,
        "prompt": 64,
        "completion": 64,
        "beta": 0.1,
        "learning_rate": 1e-5,
    },
    "sft": {"steps": 5, "batch_size": 8, "longest": 320, "learning_rate": 2e-5},
    "rlhf": {
        "steps": 2,
        "batch_size": 16,
        "minibatch_size": 8,
        "epochs": 4,
        "prompt": 32,
        "completion": 32,
        "temperature": 1.0,
        "beta": 0.05,
        "learning_rate": 3e-6,
    },
    "generate": {"steps": 2, "batch_size": 32, "prompt": 32, "completion": 64, "temperature": 1.0},
}
LAPTOP["rlhf_chat"] = {**LAPTOP["rlhf"], "completion": 64}
SERVER: dict[str, dict[str, Any]] = {
    "dpo": {**LAPTOP["dpo"], "steps": 21, "batch_size": 32, "prompt": 256, "completion": 256},
    "sft": {**LAPTOP["sft"], "steps": 21, "batch_size": 32, "longest": 1024},
    "rlhf": {
        **LAPTOP["rlhf"],
        "steps": 4,
        "batch_size": 256,
        "minibatch_size": 64,
        "prompt": 64,
        "completion": 128,
    },
    "generate": {**LAPTOP["generate"], "steps": 3, "batch_size": 256, "completion": 256},
}
SERVER["rlhf_chat"] = SERVER["rlhf"]
"""The same methods in sizes that fill a GPU."""

# Whatever helps the peer and leaves the result as it is; the fastest of these is its best.
NO_CHECKPOINTING = {"gradient_checkpointing": False}
CACHED = {**NO_CHECKPOINTING, "precompute_ref_log_probs": True}
GROUPED = {**NO_CHECKPOINTING, "train_sampling_strategy": "group_by_length"}
PACKED = {**NO_CHECKPOINTING, "packing": True}
COMPILED = {"torch_compile": True}
CANDIDATES: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {
        "no checkpointing, cached reference": CACHED,
        "the same, compiled": CACHED | COMPILED,
    },
    "sft": {
        "no checkpointing, grouped by length": GROUPED,
        "no checkpointing": NO_CHECKPOINTING,
        "no checkpointing, packed": PACKED,
    },
    # Its PPO never turned checkpointing on, and sampling has nothing to turn off.
    "rlhf": {},
    "rlhf_chat": {},
    "generate": {},
}


@dataclass(frozen=True)
class Texts:
    """Film reviews as token ids, of one tokenizer."""

    tokenizer: Any
    reviews: list[list[int]]

    @classmethod
    def read(cls, tokenizer: Any, count: int = 4000) -> Texts:
        from tether.language.reviews.prompts import load_reviews

        texts = [review.text for review in load_reviews().train[:count]]
        return cls(tokenizer, tokenizer(texts, add_special_tokens=False)["input_ids"])

    def windows(self, length: int, count: int, seed: int) -> list[list[int]]:
        """The first `length` tokens of `count` different reviews."""
        long = [ids[:length] for ids in self.reviews if len(ids) >= length]
        order = np.random.default_rng(seed).permutation(len(long))
        if len(order) < count:
            raise ValueError(f"there are {len(order)} reviews of {length} tokens; expected {count}")
        return [long[i] for i in order[:count]]


def dpo_data(texts: Texts, settings: dict[str, Any], seed: int) -> list[dict[str, list[int]]]:
    """Pairs in the order to be met: the review's own continuation, and another review's."""
    prompt, completion = settings["prompt"], settings["completion"]
    count = settings["steps"] * settings["batch_size"]
    eos = texts.tokenizer.eos_token_id
    windows = texts.windows(prompt + completion - 1, count + 1, seed)
    return [
        {
            "prompt": own[:prompt],
            "chosen": [*own[prompt:], eos],
            "rejected": [*other[prompt:], eos],
        }
        for own, other in pairwise(windows)
    ]


def sft_data(texts: Texts, settings: dict[str, Any], seed: int) -> list[dict[str, list[int]]]:
    """Demonstrations of the corpus's own lengths, from a sentence to `longest` tokens."""
    longest, tokenizer = settings["longest"], texts.tokenizer
    count = settings["steps"] * settings["batch_size"]
    ask = "Write a film review that begins with these words: "
    examples = []
    for i in np.random.default_rng(seed).permutation(len(texts.reviews))[:count]:
        ids = texts.reviews[i]
        turn = [{"role": "user", "content": ask + tokenizer.decode(ids[:6])}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        answer = [*ids, tokenizer.eos_token_id][: longest - len(prompt)]
        examples.append({"prompt": list(prompt), "completion": answer})
    return examples


def prompt_data(texts: Texts, settings: dict[str, Any], seed: int) -> list[dict[str, list[int]]]:
    """Beginnings of reviews, all of one length, each asked once."""
    count = settings["steps"] * settings["batch_size"]
    return [{"prompt": ids} for ids in texts.windows(settings["prompt"], count, seed)]


def chat_data(texts: Texts, settings: dict[str, Any], seed: int) -> list[dict[str, list[int]]]:
    """Questions in the chat template, whose answers mostly end by themselves."""
    count, tokenizer = settings["steps"] * settings["batch_size"], texts.tokenizer
    ask = "In one short sentence, would you watch a film whose review begins like this? "
    prompts = []
    for i in np.random.default_rng(seed).permutation(len(texts.reviews))[:count]:
        turn = [{"role": "user", "content": ask + tokenizer.decode(texts.reviews[i][:12])}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        prompts.append({"prompt": list(ids)})
    return prompts


DATA: dict[str, Callable[[Texts, dict[str, Any], int], list[dict[str, list[int]]]]] = {
    "dpo": dpo_data,
    "sft": sft_data,
    "rlhf": prompt_data,
    "rlhf_chat": chat_data,
    "generate": prompt_data,
}


def needed_flops(
    method: str,
    settings: dict[str, Any],
    config: dict[str, Any],
    data: Sequence[dict[str, list[int]]],
    length: float | None = None,
) -> float:
    """Floating-point operations the method cannot do without, over all its data.

    A prompt of two completions counts once, and the head only where a completion is predicted, for
    everyone alike: utilization then compares contenders as their rates do.

    Args:
        method: which.
        settings: of its job.
        config: the model's.
        data: the job's.
        length: mean tokens of sampled answers; None: all have as many as they may.

    Source:
        Two per parameter and token in a forward pass, two more for each pass of attention over what
        came before, twice as many again going back (Kaplan et al. 2020, section 2.1; Chowdhery et
        al. 2022, appendix B).
    """

    def forward(read: float, scored: float, context: float) -> float:
        return read * (2.0 * backbone + attention * context / 2.0) + scored * 2.0 * head

    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // heads
    layers = config["num_hidden_layers"]
    backbone = layers * hidden * (2 * heads * dim + 2 * groups * dim + 3 * wide)
    attention = 4.0 * layers * heads * dim
    head = hidden * config["vocab_size"]
    total = 0.0
    for record in data:
        prompt = len(record["prompt"])
        if method == "dpo":
            answers = len(record["chosen"]) + len(record["rejected"])
            total += 3.0 * forward(prompt + answers, answers, prompt + answers / 2.0)
        elif method == "sft":
            answer = len(record["completion"])
            total += 3.0 * forward(prompt + answer, answer, prompt + answer)
        else:
            answer = settings["completion"] if length is None else length
            once = forward(prompt + answer, answer, prompt + answer)
            if method == "generate":
                total += once
            else:
                # Sampling, old and reference log-probabilities, the reward, and the epochs.
                read = forward(prompt + answer, 0.0, prompt + answer)
                total += (3.0 + 3.0 * settings["epochs"]) * once + read
    return total
