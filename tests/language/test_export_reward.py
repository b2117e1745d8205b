"""Exported reward models: plain transformers gives the scores that tether gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from random_models import gpt2_model
from toy_texts import CHAT, bpe, save_toy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tether
from tether.errors import UserError
from tether.language.data.fields import Turn
from tether.language.data.templates import Template
from tether.language.models.from_run import load_reward_model, load_with_template, setup_of
from tether.language.runs import training
from tether.learning.run import Run

QUICK: dict[str, Any] = {
    "batch_size": 4,
    "learning_rate": 1e-2,
    "total_steps": 24,
    "progress": False,
    "sinks": (),
}
PROMPTS = ["Is 3?", "The cat sat on the", "What?"]
ANSWERS = [" yes", " no no", " a mat and a dog"]


def save_gpt2(folder: Path) -> Path:
    """A model whose final normalization has a bias."""
    tokenizer = bpe()
    model = gpt2_model(
        vocab_size=len(tokenizer),
        n_positions=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_padded_with_eos(folder: Path) -> Path:
    """A chat model that pads with the token that ends an answer, as SmolLM2 does."""
    save_toy(folder, CHAT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rewards")
    gpt2, padded = save_gpt2(root / "gpt2-model"), save_padded_with_eos(root / "padded-model")
    for name, model, more in (
        ("llama", folders["plain"], {}),
        ("lora", folders["chat"], {"lora": 4, "template": "chat"}),
        ("gpt2", gpt2, {}),
        ("padded", padded, {"template": "chat"}),
        ("shared trunk", folders["plain"], {"members": 3}),
        ("lowest", folders["plain"], {"members": 2, "combine": "lowest"}),
        ("adapters", folders["plain"], {"members": 2, "lora": 2}),
    ):
        training.train(
            "reward",
            model=str(model),
            data=str(folders["pairs"]),
            out=root / name,
            **more,
            **QUICK,
        )
    return {path.name: path for path in root.iterdir() if (path / "run.json").exists()}


def template_of(run: Path) -> Template:
    opened = Run.open(run)
    tokenizer = AutoTokenizer.from_pretrained(setup_of(opened).model)
    return Template(tokenizer, opened.spec["template"])


@pytest.mark.parametrize("name", ["llama", "lora", "gpt2", "padded", "shared trunk"])
def test_transformers_scores_as_tether_does(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    exported = tether.export(runs[name], to="hf", out=tmp_path / "out")
    template = template_of(runs[name])
    prompts = [template.prompt_ids(prompt) for prompt in PROMPTS]
    answers = [
        template.completion_ids(prompt, answer)
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    truth = load_reward_model(runs[name])
    assert truth.normalized
    expected = truth.score(prompts, answers)
    assert expected.std() > 0.01
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (model.config.num_labels, tokenizer.padding_side) == (1, "right")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.pad_token_id not in template.stop_ids
    rows = [{"input_ids": p + a} for p, a in zip(prompts, answers, strict=True)]
    batch = tokenizer.pad(rows, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        scores = model(**batch).logits[:, 0].numpy()
    bias = model.config.reward_bias
    np.testing.assert_allclose(scores + bias, expected, atol=1e-4)
    # Only a final normalization without a bias leaves the level outside the weights.
    assert (bias == 0.0) == (name == "gpt2")
    assert exported.facts["reward_bias"] == bias
    assert exported.facts["largest_difference"] < 1e-4


@pytest.mark.parametrize("name", ["llama", "lora", "gpt2"])
def test_the_card_shows_how_to_score(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    tether.export(runs[name], to="hf", out=out)
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    code = card.text.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/folder", str(out)).replace('"..."', "texts.pop(0)")
    names: dict[str, Any] = {
        "prompt": PROMPTS[0],
        "completion": ANSWERS[0],
        "texts": [PROMPTS[0], ANSWERS[0]],
    }
    exec(code, names)
    template = template_of(runs[name])
    turns = PROMPTS[0] if template.kind == "plain" else (Turn("user", PROMPTS[0]),)
    prompt = template.prompt_ids(turns)
    expected = load_reward_model(runs[name]).score(
        [prompt], [template.completion_ids(turns, ANSWERS[0])]
    )
    assert float(names["score"]) == pytest.approx(float(expected[0]), abs=1e-4)


@pytest.mark.parametrize("name", ["lowest", "adapters"])
def test_an_ensemble_that_is_no_single_model_is_refused(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match="ensemble of 2 reward models"):
        tether.export(runs[name], to="hf", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_reward_model_is_no_adapter_and_no_gguf(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="head is no part of an adapter"):
        tether.export(runs["lora"], to="hf", out=tmp_path / "out", keep_adapter=True)
    with pytest.raises(UserError, match="reward model"):
        tether.export(runs["lora"], to="gguf", out=tmp_path / "out")
    with pytest.raises(UserError, match="scores and no text"):
        load_with_template(runs["lora"])
    assert list(tmp_path.iterdir()) == []
