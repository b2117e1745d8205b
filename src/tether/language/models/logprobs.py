"""Log-probabilities of completions: the only place where a model and tokens become numbers.

Old, reference and training log-probabilities all come from here, so that they agree to the last
bit when model and batch do. The backbone reads each row once; only the hidden states that predict
scored tokens reach the head, a chunk of them at a time, and unless they are few the backward pass
computes the chunks' logits again instead of keeping them. So there is never more than one chunk of
logits, or `KEPT_BYTES`, whatever rows x tokens x vocabulary comes to, and the gradients are exact.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tether.errors import UserError
from tether.language.data.batches import TokenBatch
from tether.language.models.language_model import LanguageModel, same_tokens
from tether.language.models.unembedding import Unembedding
from tether.objectives import categorical_kl

CHUNK_BYTES: Final = 64 * 2**20
"""Memory of one chunk of logits. More does not make the head faster; less costs calls."""

KEPT_BYTES: Final = 320 * 2**20
"""If those of all tokens take no more than this, they are kept for the backward pass, which then
saves one of the head's four matrix products."""


class TokenScores(NamedTuple):
    """What :func:`score_tokens` measured; 0 wherever `mask` is false.

    Attributes:
        log_probs: (I, C) log pi(y_t | x, y_<t) in nats, float32 or wider.
        mask: (I, C) true at scored tokens.
        entropy: (I, C) entropy of pi(. | x, y_<t) in nats, or None if it was not asked for.
    """

    log_probs: Tensor
    mask: Tensor
    entropy: Tensor | None


def token_log_probs(
    language_model: LanguageModel,
    batch: TokenBatch,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of every scored token: log softmax(z_t / temperature)[y_t].

    A completion's log-probability is the sum of its row.

    Args:
        language_model: policy, reference, or any other.
        batch: I completions of at most C tokens; see `tether.language.data.batches`.
        temperature: divides the logits z, as in sampling.
        chunk: tokens that pass the head at once; None: as many as fit 64 MiB of logits. It changes
            memory, not results.

    Returns:
        `log_probs`, (I, C) in nats, and `mask`, (I, C), true at scored tokens; `log_probs` is 0
        elsewhere. Column c is a completion's token c.

    Raises:
        UserError: a temperature or chunk that is not above 0.
    """
    scores = score_tokens(language_model, batch, temperature=temperature, chunk=chunk)
    return scores.log_probs, scores.mask


def score_tokens(
    language_model: LanguageModel,
    batch: TokenBatch,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = False,
    hidden: Tensor | None = None,
) -> TokenScores:
    """What :func:`token_log_probs` gives, and the entropy if wanted; both differentiable.

    Args:
        language_model: policy, reference, or any other.
        batch: I completions of at most C tokens.
        temperature: divides the logits.
        chunk: tokens that pass the head at once; None: as many as fit 64 MiB of logits.
        entropy: also give H = -sum_v pi_v log pi_v of each token's distribution.
        hidden: (B, T, H) from :func:`hidden_states` for this model and batch, if it is at hand
            (for a value head on the same trunk); None: computed here.

    Raises:
        UserError: a temperature or chunk that is not above 0.
    """
    rows = _chunk_rows(language_model, chunk)
    _check_temperature(temperature)
    batch = batch.to(language_model.device)
    if hidden is None:
        hidden = hidden_states(language_model, batch)
    head = language_model.head
    log_probs, entropies = cast(
        tuple[Tensor, Tensor],
        _Head.apply(  # type: ignore[no-untyped-call]
            batch.at_sources(hidden),
            head.weight,
            head.bias,
            batch.targets,
            temperature,
            rows,
            entropy,
            _kept_rows(language_model, chunk) if torch.is_grad_enabled() else 0,
        ),
    )
    return TokenScores(
        batch.by_completion(log_probs),
        batch.mask,
        batch.by_completion(entropies) if entropy else None,
    )


@torch.no_grad()
def token_kl(
    language_model: LanguageModel,
    reference: LanguageModel,
    batch: TokenBatch,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact KL(pi || ref) over the whole vocabulary at every scored token; without gradients.

    Summed over a completion's tokens, and averaged over completions sampled from pi, it estimates
    the KL divergence of the sequences with far less variance than log pi - log ref does.

    Args:
        language_model: pi.
        reference: ref; of the same vocabulary.
        batch: I completions of at most C tokens.
        temperature: divides both models' logits.
        chunk: tokens that pass the heads at once; None: as many as fit 64 MiB of logits.

    Returns:
        KL in nats per token, (I, C), 0 where `mask` is false; and `mask`.

    Raises:
        UserError: different vocabularies, or a temperature or chunk that is not above 0.
    """
    if not same_tokens(language_model, reference):
        raise UserError(
            f"{language_model.name!r} has {language_model.vocabulary} tokens and "
            f"{reference.name!r} {reference.vocabulary}, not the same; expected models of one "
            "vocabulary"
        )
    rows = _chunk_rows(language_model, chunk)
    _check_temperature(temperature)
    batch = batch.to(language_model.device)
    p = batch.at_sources(hidden_states(language_model, batch))
    q = batch.at_sources(hidden_states(reference, batch)).to(p.device)
    ours, theirs = Unembedding.of(language_model.head), Unembedding.of(reference.head)
    divergences = [
        categorical_kl(
            _tempered(ours(p[i : i + rows]), temperature),
            _tempered(theirs(q[i : i + rows]), temperature),
        )
        for i in range(0, len(p), rows)
    ]
    return batch.by_completion(torch.cat(divergences)), batch.mask


def hidden_states(language_model: LanguageModel, batch: TokenBatch) -> Tensor:
    """The backbone's last hidden states, read once for every head; (B, T, H)."""
    batch = batch.to(language_model.device)
    return language_model.hidden_states(batch.input_ids, batch.attention_mask, batch.position_ids)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


class _Head(torch.autograd.Function):
    """Logits, log-softmax and choice of the target, chunk by chunk.

    With p = softmax(z / T): d log p_y / dz = (1_y - p) / T and dH / dz = -p (log p + H) / T.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        rows: int,
        entropy: bool,
        most_kept: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        log_probs = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        entropies = torch.empty_like(log_probs) if entropy else log_probs.new_empty(0)
        kept = []
        unembed = Unembedding(weight, bias)
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            log_p = _tempered(unembed(hidden[part]), temperature).log_softmax(-1)
            log_probs[part] = log_p.gather(-1, targets[part, None]).squeeze(-1)
            if entropy:
                entropies[part] = -(log_p.exp() * log_p).sum(-1)
            if len(hidden) <= most_kept:
                kept.append(log_p)
        ctx.save_for_backward(hidden, weight, bias, targets, entropies, *kept)
        ctx.temperature, ctx.rows = temperature, rows
        # An entropy that is only logged then costs nothing on the way back.
        ctx.set_materialize_grads(False)
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropies, *kept = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight: Tensor | None = None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        grad_bias = torch.zeros_like(bias, dtype=wide) if to_bias else None
        unembed = None if kept else Unembedding(weight, bias)
        for i in range(0, len(hidden), ctx.rows):
            part = slice(i, i + ctx.rows)
            if unembed is None:
                log_p = kept[i // ctx.rows]
            else:
                log_p = _tempered(unembed(hidden[part]), ctx.temperature).log_softmax(-1)
            slope = log_p.new_zeros(len(log_p), 1)
            if grad is not None:
                slope = slope - grad[part, None]
            if grad_entropy is not None:
                slope = slope - (log_p + entropies[part, None]) * grad_entropy[part, None]
            # In the place of what was kept, which is read once.
            logits_grad = log_p.exp_().mul_(slope)
            if grad is not None:
                logits_grad.scatter_add_(-1, targets[part, None], grad[part, None])
            if ctx.temperature != 1.0:
                logits_grad.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += logits_grad.sum(0)
            logits_grad = logits_grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(logits_grad, weight, out=grad_hidden[part])
            if to_weight:
                grad_weight = _added(grad_weight, logits_grad.T, hidden[part])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _added(total: Tensor | None, one: Tensor, other: Tensor) -> Tensor:
    """A sum of matrix products, which in half precision is added up in float32."""
    if total is None:
        return one @ other
    wide = torch.promote_types(one.dtype, torch.float32)
    if one.dtype == wide:
        return total.addmm_(one, other)
    return total.to(wide).add_(one @ other)


def _chunk_rows(language_model: LanguageModel, chunk: int | None) -> int:
    if chunk is None:
        return max(16, CHUNK_BYTES // (4 * language_model.vocabulary))
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; expected at least 1 token")
    return chunk


def _kept_rows(language_model: LanguageModel, chunk: int | None) -> int:
    # Whoever names a chunk wants no more than that in memory.
    return KEPT_BYTES // (4 * language_model.vocabulary) if chunk is None else chunk


def _check_temperature(temperature: float) -> None:
    if not temperature > 0.0:
        raise UserError(
            f"temperature is {temperature}; expected above 0 (1 scores the model as it is)"
        )
