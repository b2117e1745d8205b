"""GGUF files: transformers reads them back and says what the run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from random_models import gpt2_model
from tokenizers import Regex, pre_tokenizers
from toy_texts import bpe, save_toy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tether
from tether.errors import UserError
from tether.language.data.fields import Turn
from tether.language.export.gguf import interleaved
from tether.language.export.gguf_tokenizer import _LLAMA3, _QWEN2, _pre_tokenizer
from tether.language.models.from_run import load_with_template
from tether.language.runs import training

QUICK: dict[str, Any] = {
    "batch_size": 4,
    "learning_rate": 1e-2,
    "total_steps": 8,
    "progress": False,
    "sinks": (),
}
TEXTS = ["The answer is 42, isn't it?\n\n  Yes.", "Grüße 中文 🎬 1234", ""]


def save(folder: Path, kind: str) -> Path:
    """A random model of another architecture, with the toy tokenizer."""
    torch.manual_seed(0)
    tokenizer = bpe()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 3,  # rows that no token needs, as many models have
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**sizes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    elif kind == "qwen3":
        # The one size of a head that transformers expects of a Qwen3 in GGUF.
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=128))
    else:
        model = gpt2_model(vocab_size=len(tokenizer), n_positions=128)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model: Path, data: Path, out: Path, **settings: Any) -> Path:
    training.train("sft", model=str(model), data=str(data), out=out, **settings, **QUICK)
    return out


def read(folder: Path) -> tuple[Any, Any]:
    place: dict[str, Any] = {"gguf_file": "model.gguf"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **place)
    return model, AutoTokenizer.from_pretrained(folder, **place)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def fields(folder: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("kind", ["llama tied", "llama", "qwen2", "qwen3"])
def test_transformers_reads_equal_logits_and_tokens(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    if kind.startswith("llama"):
        tied = kind == "llama tied"
        model = save_toy(tmp_path / "model", tie_word_embeddings=tied, head_dim=16)
    else:
        model = save(tmp_path / "model", kind)
    run = train(model, folders["questions"], tmp_path / "run", lora=2)
    exported = tether.export(run, to="gguf", out=tmp_path / "out", dtype="float32")
    assert exported.files == ["README.md", "model.gguf"]
    assert exported.facts["architecture"] == kind.split(maxsplit=1)[0]
    original, template = load_with_template(run)
    found, tokenizer = read(tmp_path / "out")
    ids = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = logits(original.model, ids)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits(found, ids), expected, atol=2e-5, rtol=0)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id == template.stop_ids[0]
    tied = getattr(original.causal_lm.config, "tie_word_embeddings", False)
    names = {t.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert ("output.weight" in names) == (not tied)


def test_half_the_size_unless_asked_otherwise(folders: dict[str, Path], tmp_path: Path) -> None:
    run = train(folders["plain"], folders["questions"], tmp_path / "run")
    exported = tether.export(run, to="gguf", out=tmp_path / "out")
    assert exported.facts["dtype"] == "float16"
    types = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors
    }
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"
    original, _ = load_with_template(run)
    found, _ = read(tmp_path / "out")
    ids = torch.arange(3, 23)[None]
    difference = (logits(found, ids) - logits(original.model, ids)).abs().max()
    assert 0 < difference < 0.02
    with pytest.raises(UserError, match="expected one of float32, float16"):
        tether.export(run, to="gguf", out=tmp_path / "other", dtype="bfloat16")


def test_the_file_knows_how_it_is_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("chat", "plain"):  # with a chat template of its own, and with ours
        run = train(folders[name], folders["talk"], tmp_path / name)
        tether.export(run, to="gguf", out=tmp_path / f"{name}-out")
        _, template = load_with_template(run)
        _, tokenizer = read(tmp_path / f"{name}-out")
        messages = [{"role": "user", "content": "Is the answer 3?"}]
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert asked == template.prompt_ids((Turn("user", "Is the answer 3?"),))
    found = fields(tmp_path / "chat-out")
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # control, control, control, ...
    assert found["general.name"] == "chat sft"


def test_the_rows_of_neighbours_alternate() -> None:
    # Two heads of four rows: 0 is rotated with 2, 1 with 3.
    weight = torch.arange(8.0)[:, None]
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_gguf_has_no_name_for_is_told_in_one_line(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = train(save(tmp_path / "gpt2", "gpt2"), folders["questions"], tmp_path / "run")
    with pytest.raises(UserError, match=r"is a gpt2, which is not written as GGUF") as caught:
        tether.export(run, to="gguf", out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    biased = save_toy(tmp_path / "biased", attention_bias=True)
    run = train(biased, folders["questions"], tmp_path / "run2")
    with pytest.raises(UserError, match="has attention_bias True"):
        tether.export(run, to="gguf", out=tmp_path / "out")
    scaled = save_toy(
        tmp_path / "scaled",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    )
    run = train(scaled, folders["questions"], tmp_path / "run3")
    with pytest.raises(UserError, match="has rope_type 'linear'"):
        tether.export(run, to="gguf", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.mark.parametrize(
    ("before", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            "smollm",
        ),
        (split(_LLAMA3), "llama-bpe"),
        (split(_QWEN2), "qwen2"),
        (split(r"\w+"), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Whitespace(), None),
    ],
)
def test_only_a_tokenizer_that_llama_cpp_knows_is_written(before: Any, name: str | None) -> None:
    backend = bpe().backend_tokenizer
    backend.pre_tokenizer = before
    content = json.loads(backend.to_str())
    if name is not None:
        assert _pre_tokenizer(content) == name
        return
    with pytest.raises(UserError, match="tokenizer is not written as GGUF"):
        _pre_tokenizer(content)
