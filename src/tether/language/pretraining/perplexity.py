"""How well a causal language model predicts texts, in units that two models can share."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch.nn import functional

from tether.language.pretraining.windows import Batch, Windows, cut_windows
from tether.learning.learner import Metrics

Precision = Literal["float32", "bfloat16"]


def windows_of(texts: Sequence[str], tokenizer: Any, context: int) -> Windows:
    """Texts as windows of ``<bos>`` text ``<eos>``, cut at the context.

    Args:
        texts: whole documents.
        tokenizer: one that puts ``<bos>`` before a text by itself, as that of ``tiny`` does.
        context: most tokens of a window.
    """
    encoded = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    return cut_windows([[*ids, tokenizer.eos_token_id] for ids in encoded], context)


def next_token_log_probs(
    model: Any, batch: Batch, *, precision: Precision = "float32"
) -> torch.Tensor:
    """Ln p(token | what came before it in its window) of every real target, in nats, shape (N,).

    For whole windows only: rows begin at position 0 and are padded on the right, so causal
    attention needs no mask.

    Args:
        model: a causal language model with ``model`` (trunk) and ``lm_head``, on the CPU.
        batch: N predicted tokens.
        precision: of the matrix products; the softmax is always float32.
    """
    mask = torch.from_numpy(batch.mask)
    with autocast(precision):
        hidden = model.model(
            input_ids=torch.from_numpy(batch.inputs), use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[mask])
    targets = torch.from_numpy(batch.targets)[mask]
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def autocast(precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in `precision` within."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def held_out_figures(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    context: int,
    precision: Precision = "float32",
    batch_tokens: int = 8192,
) -> Metrics:
    """Perplexity of texts the model has not seen.

    Every token but ``<bos>`` is predicted once, ``<eos>`` included, from at most `context` tokens.

    Returns:
        ``held_out/loss`` in nats per token; ``held_out/perplexity``, its exponential;
        ``held_out/word_perplexity``, exp(nats of a text / its words), words being what white space
        separates; ``held_out/bits_per_byte`` of UTF-8. The last two do not depend on the tokenizer.
    """
    windows = windows_of(texts, tokenizer, context)
    nats = 0.0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in windows.batches(batch_tokens, tokenizer.pad_token_id):
            log_probs = next_token_log_probs(model, batch, precision=precision)
            nats -= float(log_probs.sum(dtype=torch.float64))
    model.train(training)
    loss = nats / windows.tokens
    words = sum(len(text.split()) for text in texts)
    length = sum(len(text.encode()) for text in texts)
    return {
        "held_out/loss": loss,
        "held_out/perplexity": math.exp(loss),
        "held_out/word_perplexity": math.exp(nats / words),
        "held_out/bits_per_byte": nats / math.log(2) / length,
    }
