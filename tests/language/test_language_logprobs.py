"""The scorer against the plainest way to say the same: one text at a time, all logits at once."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from random_models import EOS, VOCABULARY, completions, language_model
from torch import Tensor

from tether.errors import UserError
from tether.language.data.tokens import (
    Completion,
    Example,
    TokenBatch,
    collate,
    collate_packed,
    collate_shared,
)
from tether.language.models import logprobs
from tether.language.models.language_model import LanguageModel, LoraSettings, reference_of
from tether.language.models.logprobs import (
    hidden_states,
    score_tokens,
    token_kl,
    token_log_probs,
)
from tether.language.models.unembedding import Unembedding

# Llama's normalizations round to float32.
TOLERANCE = {"gpt2": {"rtol": 1e-9, "atol": 1e-10}, "llama": {"rtol": 1e-4, "atol": 1e-5}}


def naive_logits(model: LanguageModel, item: Completion, temperature: float = 1.0) -> Tensor:
    """Logits that predict the completion, (C, V), from an unpadded row without a mask."""
    ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
    logits = model.model(input_ids=ids).logits[0] / temperature
    return logits[len(item.prompt_ids) - 1 : -1]


def naive_log_probs(model: LanguageModel, item: Completion, temperature: float = 1.0) -> Tensor:
    log_p = naive_logits(model, item, temperature).log_softmax(-1)
    return log_p[torch.arange(len(item.completion_ids)), torch.tensor(item.completion_ids)]


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}
    model.model.zero_grad(set_to_none=True)
    return found


def weighted(rows: list[Tensor]) -> Tensor:
    """A loss that gives every token another weight, so that none can stand for another."""
    return sum(((torch.arange(len(r)) + 1.0 + i) * r).sum() for i, r in enumerate(rows))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], kind: str) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = float(gradient.abs().max())
        apart = float((found[name] - gradient).abs().max())
        assert apart <= TOLERANCE[kind]["rtol"] * size, name


def rows_of(log_probs: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[there] for row, there in zip(log_probs, mask, strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("side", "temperature", "chunk"), [("left", 1.0, None), ("right", 0.7, 3), ("left", 1.3, 1)]
)
def test_values_and_gradients_equal_the_naive_ones(kind, attention, side, temperature, chunk):
    model = language_model(kind, attention=attention)
    items = completions(4)
    naive = [naive_log_probs(model, item, temperature) for item in items]
    weighted(naive).backward()
    expected = gradients(model)

    batch = collate(items, pad_id=EOS, side=side)
    log_probs, mask = token_log_probs(model, batch, temperature=temperature, chunk=chunk)
    rows = rows_of(log_probs, mask)
    for row, other in zip(rows, naive, strict=True):
        torch.testing.assert_close(row, other, **TOLERANCE[kind])
    assert (log_probs[~mask] == 0).all()
    weighted(rows).backward()
    assert_close(gradients(model), expected, kind)


def test_head_with_bias_and_untied_head():
    model = language_model("llama", tie_word_embeddings=False)
    head = model.head
    assert head.weight is not model.causal_lm.get_input_embeddings().weight
    head.bias = torch.nn.Parameter(torch.linspace(-2, 2, VOCABULARY, dtype=torch.float64))
    items = completions(3)
    weighted([naive_log_probs(model, item, 0.8) for item in items]).backward()
    expected = gradients(model)
    batch = collate(items, pad_id=0)
    weighted(rows_of(*token_log_probs(model, batch, temperature=0.8, chunk=2))).backward()
    found = gradients(model)
    assert "lm_head.bias" in found
    assert_close(found, expected, "llama")


def test_entropy_and_its_gradient():
    model = language_model()
    items = completions(3)
    naive = []
    for item in items:
        log_p = naive_logits(model, item, 0.7).log_softmax(-1)
        naive.append(-(log_p.exp() * log_p).sum(-1))
    weighted(naive).backward()
    expected = gradients(model)

    batch = collate(items, pad_id=0)
    scores = score_tokens(model, batch, temperature=0.7, chunk=4, entropy=True)
    assert scores.entropy is not None
    rows = rows_of(scores.entropy, scores.mask)
    for row, other in zip(rows, naive, strict=True):
        torch.testing.assert_close(row, other)
    weighted(rows).backward()
    assert_close(gradients(model), expected, "gpt2")

    # Asking for the entropy, and using it beside the log-probabilities, disturbs neither.
    weighted(
        [
            a + b
            for a, b in zip(naive_both(model, items), naive_both(model, items, True), strict=True)
        ]
    ).backward()
    expected = gradients(model)
    scores = score_tokens(model, batch, temperature=0.7, entropy=True)
    weighted(rows_of(scores.log_probs + scores.entropy, scores.mask)).backward()
    assert_close(gradients(model), expected, "gpt2")


def naive_both(
    model: LanguageModel, items: list[Completion], entropy: bool = False
) -> list[Tensor]:
    if not entropy:
        return [naive_log_probs(model, item, 0.7) for item in items]
    logs = [naive_logits(model, item, 0.7).log_softmax(-1) for item in items]
    return [-(log_p.exp() * log_p).sum(-1) for log_p in logs]


def loss_and_gradients(model: LanguageModel, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    log_probs, mask = token_log_probs(model, batch)
    loss = weighted(rows_of(log_probs, mask))
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ids_in_the_padding_change_nothing(kind, attention):
    model = language_model(kind, attention=attention)
    items = completions(4)
    loss, expected = loss_and_gradients(model, collate(items, pad_id=0))
    assert all(g.isfinite().all() for g in expected.values())
    for pad in (EOS, VOCABULARY - 1):
        same, found = loss_and_gradients(model, collate(items, pad_id=pad))
        assert torch.equal(same, loss)
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), name


def test_nan_in_the_padding_changes_nothing():
    model = language_model()
    batch = collate(completions(4), pad_id=0)
    pads = ~batch.attention_mask
    assert pads.any()

    def hidden(value: float | None) -> Tensor:
        states = hidden_states(model, batch).detach()
        if value is not None:
            states[pads] = value
        return states.requires_grad_()

    def run(value: float | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        states = hidden(value)
        scores = score_tokens(model, batch, hidden=states, entropy=True)
        loss = weighted(rows_of(scores.log_probs - scores.entropy, scores.mask))
        loss.backward()
        return loss.detach(), states.grad, gradients(model)

    loss, to_hidden, to_head = run(None)
    for value in (float("nan"), float("inf")):
        other, other_to_hidden, other_to_head = run(value)
        assert torch.equal(other, loss)
        assert torch.equal(other_to_hidden, to_hidden)
        for name, gradient in to_head.items():
            assert torch.equal(other_to_head[name], gradient)


def test_padding_side_and_micro_batches_leave_the_gradient_equal():
    model = language_model()
    items = completions(6)

    def total(batches: list[TokenBatch]) -> dict[str, Tensor]:
        for batch in batches:
            log_probs, mask = token_log_probs(model, batch)
            (-log_probs[mask].sum() / sum(len(i.completion_ids) for i in items)).backward()
        return gradients(model)

    expected = total([collate(items, pad_id=0)])
    assert_close(total([collate(items, pad_id=0, side="right")]), expected, "gpt2")
    for size in (1, 4):
        split = [collate(items[i : i + size], pad_id=0) for i in range(0, 6, size)]
        assert_close(total(split), expected, "gpt2")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prompt_equals_unshared(kind, attention):
    model = language_model(kind, attention=attention)
    groups = []
    for index, item in enumerate(completions(3)):
        others = completions(3, seed=index + 1)
        groups.append([item] + [Completion(item.prompt_ids, o.completion_ids) for o in others])
    groups[1] = groups[1][:2]
    items = [item for group in groups for item in group]
    plain = collate(items, pad_id=0)
    shared = collate_shared(groups, pad_id=0)
    assert shared.input_ids.numel() < plain.input_ids.numel()

    expected, mask = token_log_probs(model, plain)
    log_probs, same_mask = token_log_probs(model, shared)
    assert torch.equal(mask, same_mask)
    assert mask[:, 0].all()
    torch.testing.assert_close(log_probs[:, 0], expected[:, 0], **TOLERANCE[kind])
    torch.testing.assert_close(log_probs, expected, **TOLERANCE[kind])
    _, wanted = loss_and_gradients(model, plain)
    _, found = loss_and_gradients(model, shared)
    assert_close(found, wanted, kind)
    hidden = shared.at_last(hidden_states(model, shared))
    torch.testing.assert_close(
        hidden, plain.at_last(hidden_states(model, plain)), **TOLERANCE[kind]
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_packed_rows_equal_rows_of_their_own(kind):
    model = language_model(kind)
    items = completions(5)
    plain = collate(items, pad_id=0)
    packed = collate_packed([items[:1], items[1:4], items[4:]], pad_id=0)
    expected, mask = token_log_probs(model, plain)
    log_probs, same_mask = token_log_probs(model, packed)
    assert torch.equal(mask, same_mask)
    torch.testing.assert_close(log_probs, expected, **TOLERANCE[kind])
    _, wanted = loss_and_gradients(model, plain)
    _, found = loss_and_gradients(model, packed)
    assert_close(found, wanted, kind)


def test_masked_tokens_of_a_completion_are_read_but_not_scored():
    model = language_model()
    item = completions(1)[0]
    mask = [index % 2 == 0 for index in range(len(item.completion_ids))]
    full, _ = token_log_probs(model, collate([item], pad_id=0))
    holes = collate([Example(item.prompt_ids, item.completion_ids, mask)], pad_id=0)
    log_probs, there = token_log_probs(model, holes)
    assert there[0].tolist() == mask
    torch.testing.assert_close(log_probs, torch.where(there, full, 0.0))
    assert holes.tokens == sum(mask)


def test_rows_and_vocabulary_never_meet_at_full_size(monkeypatch):
    model = language_model()
    items = completions(8)
    batch = collate(items, pad_id=0)
    seen: list[int] = []
    unembed = Unembedding.__call__

    def spy(self, hidden):
        seen.append(len(hidden))
        return unembed(self, hidden)

    monkeypatch.setattr(Unembedding, "__call__", spy)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor.shape[-1:] == (VOCABULARY,) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = score_tokens(model, batch, chunk=5, entropy=True)
    # Only completion positions pass the head, and no more than a chunk at a time.
    assert sum(seen) == batch.tokens < batch.attention_mask.sum()
    assert max(seen) == 5
    assert max(kept) == 0
    scores.log_probs.sum().backward()
    assert sum(seen) == 2 * batch.tokens
    assert max(seen) == 5
    # What fits one chunk is computed once.
    seen.clear()
    score_tokens(model, batch, chunk=batch.tokens).log_probs.sum().backward()
    assert seen == [batch.tokens]


def test_logits_are_kept_while_they_are_few(monkeypatch):
    """Over several chunks, too; and kept or made again, the gradients are the same."""
    model = language_model()
    batch = collate(completions(8), pad_id=0)
    row = 4 * VOCABULARY
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 16 * row)
    assert batch.tokens > 16
    found = []
    for room in (batch.tokens, batch.tokens - 1):
        monkeypatch.setattr(logprobs, "KEPT_BYTES", room * row)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(len(tensor) if tensor.shape[-1:] == (VOCABULARY,) else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = score_tokens(model, batch, entropy=True)
        assert sum(kept) == (batch.tokens if room == batch.tokens else 0)
        (scores.log_probs.sum() + weighted([*scores.entropy])).backward()
        found.append(gradients(model))
    assert_close(*found, "gpt2")


def test_old_and_new_log_probabilities_agree_to_the_last_bit():
    for dtype, kind in itertools.product((torch.float32, torch.bfloat16), ("llama", "gpt2")):
        model = language_model(kind, dtype=dtype)
        batch = collate(completions(4), pad_id=0)
        with torch.no_grad():
            old, _ = token_log_probs(model, batch)
        new, _ = token_log_probs(model, batch)
        assert new.requires_grad
        assert new.dtype == torch.float32
        assert torch.equal(old, new)


@pytest.mark.parametrize("chunk", [None, 3])
def test_log_probabilities_carry_no_rounding_of_short_logits(chunk):
    """Logits near 60, where neighbours in bfloat16 are a quarter apart."""
    model = language_model("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        model.head.weight.mul_(20.0)
    batch = collate(completions(4), pad_id=0)
    found = token_log_probs(model, batch, chunk=chunk)[0]
    hidden = batch.at_sources(hidden_states(model, batch)).double()
    logits = hidden.detach() @ model.head.weight.detach().double().T
    assert float(logits.abs().max()) > 30
    expected = logits.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    found = found.flatten()[batch.slot_index].double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_models_of_other_tokens_are_not_compared():
    model, other = language_model(), language_model(seed=1)
    words = {f"v{i}": i for i in range(VOCABULARY)}
    object.__setattr__(other, "tokenizer", SimpleNamespace(get_vocab=lambda: words))
    with pytest.raises(UserError, match="not the same; expected models of one vocabulary"):
        token_kl(model, other, collate(completions(2), pad_id=0))


def test_bfloat16_gradients_point_where_float32_points():
    exact = language_model("llama", dtype=torch.float32)
    short = language_model("llama", dtype=torch.bfloat16)
    batch = collate(completions(6), pad_id=0)
    _, expected = loss_and_gradients(exact, batch)
    _, found = loss_and_gradients(short, batch)
    one = torch.cat([g.flatten() for g in expected.values()])
    other = torch.cat([found[name].float().flatten() for name in expected])
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_reference_under_an_adapter_is_the_base_model_bit_for_bit(kind):
    base = language_model(kind, dtype=torch.float32)
    policy = language_model(kind, dtype=torch.float32, lora=LoraSettings(rank=4))
    reference = reference_of(policy)
    batch = collate(completions(4), pad_id=0)
    expected, _ = token_log_probs(base, batch)
    # A fresh adapter does nothing.
    assert torch.equal(token_log_probs(policy, batch)[0], expected)
    assert torch.equal(token_log_probs(reference, batch)[0], expected)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1)
    assert not torch.allclose(token_log_probs(policy, batch)[0], expected)
    found, _ = token_log_probs(reference, batch)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_reading_the_reference_between_forward_and_backward_disturbs_nothing():
    policy = language_model(lora=LoraSettings(rank=4))
    with torch.no_grad():
        for index, parameter in enumerate(policy.trainable_parameters()):
            parameter.add_(0.01 * (index + 1))
    batch = collate(completions(4), pad_id=0)
    _, expected = loss_and_gradients(policy, batch)
    assert expected
    log_probs, mask = token_log_probs(policy, batch)
    token_log_probs(reference_of(policy), batch)
    weighted(rows_of(log_probs, mask)).backward()
    found = gradients(policy)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)


def test_reference_without_adapter_is_a_copy_that_stays():
    policy = language_model()
    reference = reference_of(policy)
    batch = collate(completions(3), pad_id=0)
    before, _ = token_log_probs(policy, batch)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.mul_(1.1)
    after, _ = token_log_probs(reference, batch)
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert not reference.trainable_parameters()


def test_kl_is_the_exact_sum_over_the_vocabulary():
    policy, reference = language_model(seed=0), language_model(seed=1)
    items = completions(4)
    batch = collate(items, pad_id=0)
    kl, mask = token_kl(policy, reference, batch, temperature=0.7, chunk=3)
    for row, item in zip(rows_of(kl, mask), items, strict=True):
        log_p = naive_logits(policy, item, 0.7).log_softmax(-1)
        log_q = naive_logits(reference, item, 0.7).log_softmax(-1)
        torch.testing.assert_close(row, (log_p.exp() * (log_p - log_q)).sum(-1))
    assert (kl[mask] > 0).all()
    zero, _ = token_kl(policy, reference_of(policy), batch)
    torch.testing.assert_close(zero, torch.zeros_like(zero))
    with pytest.raises(UserError, match="expected models of one vocabulary"):
        token_kl(policy, language_model(vocab_size=120), batch)


def test_settings_that_make_no_sense_are_refused():
    model = language_model()
    batch = collate(completions(2), pad_id=0)
    for settings, complaint in (
        ({"temperature": 0.0}, "temperature is 0.0; expected above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"chunk": 0}, "chunk is 0; expected at least 1"),
    ):
        with pytest.raises(UserError, match=complaint):
            token_log_probs(model, batch, **settings)


def test_several_texts_in_a_row_are_refused_where_attention_cannot_part_them():
    items = completions(2)
    packed = collate_packed([items], pad_id=0)
    model = language_model("llama", dtype=torch.float32)
    model.causal_lm.config.sliding_window = 4
    with pytest.raises(UserError, match="does not let every token attend to all earlier ones"):
        token_log_probs(model, packed)
    model.causal_lm.config.sliding_window = 64
    token_log_probs(model, packed)
    model.causal_lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="attention 'flash_attention_2' takes no mask"):
        token_log_probs(model, packed)
