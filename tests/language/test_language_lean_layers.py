"""Layers that keep only their inputs: the same bits forward, the same gradients, fewer bytes."""

import copy

import pytest
import torch
from random_models import VOCABULARY, llama_model, tokenizer
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tether.language.models.language_model import LoraSettings, from_parts
from tether.language.models.lean_layers import make_lean

IDS = torch.tensor([[3, 5, 7, 11, 13, 17], [2, 4, 8, 16, 32, 64]])


def small(kind: str) -> nn.Module:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**settings))
    if kind == "gemma":
        return GemmaForCausalLM(GemmaConfig(**settings))
    return llama_model(mlp_bias=kind == "llama with biases", attention_dropout=0.0)


def outcome(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a loss that weighs every one of them differently."""
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=IDS).logits
    weights = torch.linspace(-1.0, 1.0, logits.numel()).view_as(logits)
    (logits * weights).mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model: nn.Module) -> int:
    """Of distinct arrays that autograd holds after a forward pass, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.base_model(input_ids=IDS.repeat(8, 8)).last_hidden_state.sum()
    assert loss.requires_grad
    return sum(held.values())


@pytest.mark.parametrize(
    ("kind", "layers"), [("llama", 7), ("qwen2", 7), ("llama with biases", 7), ("gemma", 2)]
)
def test_forward_to_the_bit_and_gradients(kind: str, layers: int) -> None:
    """Gemma multiplies by 1 + w, and so keeps its own normalizations."""
    plain = small(kind)
    lean = copy.deepcopy(plain)
    assert make_lean(lean) == layers
    logits, gradients = outcome(plain)
    lean_logits, lean_gradients = outcome(lean)
    assert torch.equal(lean_logits, logits)
    assert lean_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        apart = float((lean_gradients[name] - gradient).abs().max())
        assert apart <= 2e-5 * float(gradient.abs().max()), name


def test_what_only_looks_alike_stays_as_it_is() -> None:
    class GainRMSNorm(nn.Module):
        variance_epsilon = 1e-6

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            return (1.0 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    norm = GainRMSNorm()
    assert make_lean(nn.Sequential(norm)) == 0
    assert norm(torch.ones(1, 8)).sum() > 7


def test_what_is_trained_measures_as_what_is_not() -> None:
    lean = small("llama")
    make_lean(lean)
    with torch.no_grad():
        still = lean(input_ids=IDS).logits
    assert torch.equal(lean(input_ids=IDS).logits, still)


def test_two_fifths_of_the_memory_are_saved() -> None:
    plain = small("llama")
    lean = copy.deepcopy(plain)
    make_lean(lean)
    assert kept_bytes(lean) < 0.72 * kept_bytes(plain)


def test_a_copy_computes_with_its_own_weights() -> None:
    lean = small("llama")
    make_lean(lean)
    other = copy.deepcopy(lean)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "norm" in name or "mlp" in name:
                parameter.zero_()
    before = lean(input_ids=IDS).logits
    assert not torch.equal(other(input_ids=IDS).logits, before)


def test_adapters_are_heeded_and_trained() -> None:
    """Put on later, they replace parts that a lean layer would otherwise pass by."""
    lora = LoraSettings(rank=2, target_modules=("gate_proj", "up_proj", "down_proj"))
    adapted = from_parts(small("llama"), tokenizer(), "adapted", lora=lora)
    model = adapted.model
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.normal_(std=0.1)
    logits, gradients = outcome(model)
    assert gradients.keys() == trainable.keys()
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.allclose(merged(input_ids=IDS).logits, logits, atol=1e-4)


def test_half_precision_is_no_less_exact() -> None:
    """Against float32, gradients err no more than those of the layers they replace."""
    exact = small("llama")
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    lean = copy.deepcopy(plain)
    make_lean(lean)
    _, wanted = outcome(copy.deepcopy(plain).float())
    logits, plain_gradients = outcome(plain)
    lean_logits, lean_gradients = outcome(lean)
    assert torch.equal(lean_logits, logits)

    def error(gradients: dict[str, Tensor]) -> float:
        return sum(float((gradients[n].float() - g).norm() / g.norm()) for n, g in wanted.items())

    assert error(lean_gradients) <= 1.1 * error(plain_gradients)
