"""Giving back holes in the heap: when it happens, and that no number changes."""

import copy

import pytest
import torch
from random_models import VOCABULARY, llama_model
from torch import nn

from tether.language.models import heap_trimming as heap

IDS = torch.arange(24).view(2, 12) % VOCABULARY


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often memory is given back, by models of any size."""
    made: list[int] = []

    def trim(pad: int) -> int:
        made.append(pad)
        return 1

    monkeypatch.setattr(heap, "LEAST_BYTES", 1)
    monkeypatch.setattr(heap, "_trim", lambda: trim)
    return made


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model.base_model, model.get_input_embeddings()


def test_twice_on_the_way_forward_and_twice_on_the_way_back(calls: list[int]) -> None:
    plain = llama_model().eval()
    model = copy.deepcopy(plain)
    assert heap.give_back_holes(*parts(model))
    logits = model(input_ids=IDS).logits
    assert len(calls) == 2
    logits.square().sum().backward()
    assert len(calls) == 4
    plain(input_ids=IDS).logits.square().sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_never_when_nothing_is_learned(calls: list[int]) -> None:
    model = llama_model()
    assert heap.give_back_holes(*parts(model))
    with torch.no_grad():
        model(input_ids=IDS)
    assert calls == []


def test_small_models_are_left_alone() -> None:
    assert not heap.give_back_holes(*parts(llama_model()))


def test_other_systems_are_left_alone(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", lambda: None)
    assert not heap.give_back_holes(*parts(llama_model()))


def test_a_backbone_without_a_stack_of_layers(calls: list[int]) -> None:
    embedding = nn.Embedding(8, 4)
    model = nn.Sequential(embedding, nn.Linear(4, 4))
    assert heap.give_back_holes(model, embedding)
    model(torch.tensor([1, 2])).sum().backward()
    assert len(calls) == 2
