"""Exported language models: plain transformers and peft say what tether says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from toy_commands import FAST
from transformers import AutoModelForCausalLM, AutoTokenizer

import tether
from tether.errors import UserError
from tether.language.data.fields import Turn
from tether.language.models.from_run import load_language_model, load_with_template
from tether.language.models.generation import generate
from tether.language.runs import training
from tether.learning import read_metrics

QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "progress": False, "sinks": ()}


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short runs, of every kind of model and layout."""
    root = tmp_path_factory.mktemp("runs")
    plain, chat = str(folders["plain"]), str(folders["chat"])
    talk, questions = str(folders["talk"]), str(folders["questions"])
    for name, model, data, more in (
        ("full", plain, questions, {}),
        ("lora", chat, talk, {"lora": 4}),
        ("own layout", plain, talk, {"lora": 4}),
    ):
        training.train(
            "sft", model=model, data=data, total_steps=24, out=root / name, **more, **QUICK
        )
    training.train(
        *("dpo",),
        **{"model": str(root / "lora"), "data": str(folders["pairs"]), "lora": 2},
        **{"total_steps": 8, "out": root / "twice", **QUICK},
    )
    return {name: root / name for name in ("full", "lora", "own layout", "twice")}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits.double()
    return found


@pytest.mark.parametrize("name", ["full", "lora", "own layout", "twice"])
def test_transformers_says_what_the_run_says(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    exported = tether.export(runs[name], to="hf", out=out)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        *exported.files
    }
    original, template = load_with_template(runs[name])
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = logits(original.model, ids)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=0)
    assert exported.facts["parameters"] == sum(p.numel() for p in model.parameters())
    # It is asked as in training, and ends where training ended.
    if template.kind == "chat":
        turns = (Turn("user", "Is the answer 3?"), Turn("assistant", "no"), Turn("user", "Why?"))
        asked = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert asked == template.prompt_ids(turns)
    else:
        asked = tokenizer("Is the answer 3?")["input_ids"]
        assert asked == template.prompt_ids("Is the answer 3?")
        assert tokenizer.chat_template is None
    stops = model.generation_config.eos_token_id
    assert set(original.stop_ids) == set(stops if isinstance(stops, list) else [stops])
    answer = model.generate(
        torch.tensor([asked]),
        attention_mask=torch.ones(1, len(asked)),
        max_new_tokens=12,
        do_sample=False,
    )
    (ours,) = generate(original, [asked], max_new_tokens=12, temperature=0)
    assert tuple(answer[0, len(asked) :].tolist()) == ours.completion_ids


def test_an_adapter_is_kept_for_peft(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = tether.export(runs["lora"], to="hf", out=out, keep_adapter=True)
    assert "model.safetensors" not in exported.files
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    ids = torch.arange(3, 23)[None]
    original = load_language_model(runs["lora"])
    torch.testing.assert_close(logits(model, ids), logits(original.model, ids), atol=1e-6, rtol=0)
    with model.disable_adapter():
        assert (logits(model, ids) - logits(original.model, ids)).abs().max() > 1e-3
    assert ModelCard.load(out / "README.md").data.library_name == "peft"


def test_weights_in_another_type(runs: dict[str, Path], tmp_path: Path) -> None:
    exported = tether.export(runs["lora"], to="hf", out=tmp_path / "out", dtype="bfloat16")
    assert exported.facts["dtype"] == "bfloat16"
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        types = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert types == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(3, 23)[None]
    original = load_language_model(runs["lora"])
    difference = (logits(model, ids) - logits(original.model, ids)).abs().max()
    assert 0 < difference < 0.05


def test_the_card_tells_where_the_model_comes_from(runs: dict[str, Path], tmp_path: Path) -> None:
    tether.export(runs["twice"], to="hf", out=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert {"tether", "dpo"} <= set(card.data.tags or [])
    assert card.data.base_model is None  # a folder here is no id of the hub
    row = read_metrics(runs["twice"])[-1]
    assert f"| loss | {row['loss']:.6g} |" in card.text
    assert "| lora | 2 |" in card.text
    assert "| loss | dpo |" in card.text
    assert "`pairs.jsonl`" in card.text
    # Nothing of this machine's folders.
    assert str(runs["twice"].parent) not in (tmp_path / "out" / "README.md").read_text()


def test_a_model_and_data_of_the_hub_are_named_in_the_metadata(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    from tether.language.export.card import write_model_card
    from tether.learning.run import Run

    spec = json.loads((runs["full"] / "run.json").read_text())["spec"]
    spec["setup"].update(model="owner/model", data="owner/data:part")
    with Run.create(tmp_path / "run", method="sft", config={}, spec=spec) as run:
        _, template = load_with_template(runs["full"])
        write_model_card(run, tmp_path, use="", template=template)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets) == ("owner/model", ["owner/data"])


def test_what_keep_adapter_cannot_do(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, message in (
        ("full", "was trained without an adapter"),
        ("twice", "lies on the model of run"),
    ):
        with pytest.raises(UserError, match=message):
            tether.export(runs[name], to="hf", out=tmp_path / "out", keep_adapter=True)
    with pytest.raises(UserError, match="run's own type"):
        tether.export(
            runs["lora"], to="hf", out=tmp_path / "out", keep_adapter=True, dtype="float16"
        )
    assert list(tmp_path.iterdir()) == []


WITHOUT_TETHER = """
import importlib.abc, json, sys
sys.path.append(sys.argv[1])

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tether":
            raise ImportError("tether was asked for")

sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)
assert not any(name.split(".")[0] == "tether" for name in sys.modules)
print(json.dumps(answer[0, inputs["input_ids"].shape[1]:].tolist()))
"""


def test_a_dpo_run_of_smollm2_answers_without_tether(tether_: Any, tmp_path: Path) -> None:
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} plus {n}?"}],
            "chosen": [{"role": "assistant", "content": f"It is {2 * n}."}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        }
        for n in range(4)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = tether_(
        *("dpo", "--model", "smollm2-135m-instruct", "--data", "pairs.jsonl", "--lora", "16"),
        *("--total-steps", "4", "--held-out", "0", "--out", "run", *FAST),
    )
    assert done.code == 0, done.err
    written = tether_("export", "run", "--to", "hf", "--out", "model", "--json")
    assert written.code == 0, written.err
    assert "model.safetensors" in written.json["files"]
    packages = Path(transformers.__file__).parents[1]
    # Without site, so that no .pth file puts this source tree on the path.
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WITHOUT_TETHER, packages, tmp_path / "model"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert told.returncode == 0, told.stderr
    model, template = load_with_template("run")
    asked = template.prompt_ids((Turn("user", "What is the capital of France?"),))
    (ours,) = generate(model, [asked], max_new_tokens=24, temperature=0)
    assert tuple(json.loads(told.stdout)) == ours.completion_ids
    assert "Paris" in template.decode(ours.completion_ids)
    card = ModelCard.load("model/README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
