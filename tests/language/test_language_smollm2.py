"""The embedded chat model: converted from its package once, then an ordinary folder."""

import socket

import pytest
import torch

from tether.language.data.tokens import collate
from tether.language.models import files as pretrained
from tether.language.models.generation import generate
from tether.language.models.language_model import load_model
from tether.language.models.logprobs import token_log_probs


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2-135m-instruct")


def test_it_answers_and_stops(model):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = model.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    answer = generate(model, [prompt], max_new_tokens=24, temperature=0)[0]
    text = model.tokenizer.decode(answer.completion_ids, skip_special_tokens=True)
    assert text == "The capital of France is Paris."
    assert answer.finished
    log_probs, mask = token_log_probs(model, collate([answer], pad_id=model.pad_id))
    assert mask.all()
    # It is sure of its answer.
    assert log_probs.sum() > -5
    assert (model.vocabulary, model.hidden_size) == (49152, 576)


def test_second_load_is_the_folder_without_package_or_network(model, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a converted model was fetched or converted again")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(pretrained, "_convert", refuse)
    again = load_model("smollm2-135m-instruct", dtype="bfloat16")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.head.weight.float(), model.head.weight)
