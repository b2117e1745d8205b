"""What goes wrong in the middle of a run: it stops, says where and why, and loses nothing."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_texts import save_toy

from tether import cli
from tether.language.methods import sft
from tether.language.methods.rlhf import update as rlhf_update
from tether.language.runtime.out_of_memory import is_out_of_memory
from tether.learning import Run, load_checkpoint, read_metrics

SHARED = ["--model", "toy", "--batch-size", "4", "--micro-batch-size", "2", "--quiet", "--out"]


@pytest.fixture
def tether_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs a command beside a toy model and its data; returns the code and the last line told."""
    monkeypatch.chdir(tmp_path)
    save_toy(tmp_path / "toy")
    rows: dict[str, list[dict[str, Any]]] = {
        "answers": [{"prompt": f"Is {i}?", "completion": " yes" * (i % 3 + 1)} for i in range(16)],
        "pairs": [{"prompt": f"Is {i}?", "chosen": " yes", "rejected": " no"} for i in range(16)],
        "prompts": [{"prompt": f"Is {i}?"} for i in range(6)],
    }
    for name, content in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, (capfd.readouterr().err.splitlines() or [""])[-1]

    return call


def sound(run: Path | str) -> int:
    """The step of the newest checkpoint, all of whose parameters are numbers."""
    state: Any = Run.open(run).load()
    modules = state["modules"].values()
    assert all(np.isfinite(array).all() for module in modules for array in module.values())
    return int(read_metrics(run)[-1]["step"])


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["sft", "--data", "answers.jsonl", "--held-out", "0"], r"(in|from) examples? \d+"),
        (["dpo", "--data", "pairs.jsonl"], r"(in|from) records? \d+(, \d+)* of the training data"),
        (
            ["reward", "--data", "pairs.jsonl"],
            r"(in|from) records? \d+(, \d+)* of the training data",
        ),
    ],
    ids=["sft", "dpo", "reward"],
)
def test_a_run_that_diverges_stops_names_the_rows_and_keeps_its_checkpoint(tether_, command, named):
    wild = ["--max-gradient-norm", "none", "--weight-decay", "0", "--warmup", "0"]
    begun = [*command, *SHARED, "run", "--checkpoint-every", "4", "--schedule", "constant"]
    assert tether_(*begun, *wild, "--total-steps", "8", "--learning-rate", "1e-3")[0] == 0
    assert sound("run") == 8
    # The same run, but for a step size at which float32 ends.
    record = json.loads(Path("run/run.json").read_text())
    record["config"]["learning_rate"] = 1e18
    Path("run/run.json").write_text(json.dumps(record))
    code, told = tether_("resume", "run", "--total-steps", "400", "--quiet")
    assert code == 2
    found = re.search(
        rf"became (nan|inf|-inf) at step (\d+), {named}.*(checkpoint had been saved|is saved)", told
    )
    assert found is not None, told
    steps = int(found.group(2))
    # What is saved is from before the step at which the run stopped.
    saved = load_checkpoint(Run.open("run").checkpoints()[0])[1]["steps"]
    assert 8 <= saved <= steps


def test_out_of_memory_names_the_setting_that_mends_it(tether_, monkeypatch):
    """A real failure of the allocator, in the fourth micro-batch."""
    honest, calls = sft.token_log_probs, []

    def greedy(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            torch.empty(1 << 48)
        return honest(*arguments, **settings)

    command = ["sft", "--data", "answers.jsonl", "--held-out", "0", *SHARED]
    command += ["run", "--checkpoint-every", "4", "--total-steps", "12"]
    monkeypatch.setattr(sft, "token_log_probs", greedy)
    code, told = tether_(*command)
    assert code == 2
    assert told == (
        "tether: out of memory at step 4; lower micro_batch_size "
        "(2), which changes no result; or shorten texts with max_length, or try dtype bfloat16 or "
        "lora 16 (step_000000000004.safetensors is saved)"
    )
    assert sound("run") == 4
    # With that mended, the run goes on.
    monkeypatch.setattr(sft, "token_log_probs", honest)
    assert tether_("resume", "run", "--quiet")[0] == 0
    assert sound("run") == 12


def test_reinforcement_learning_has_two_such_settings(tether_, monkeypatch):
    def greedy(*_: Any, **__: Any) -> Any:
        return torch.empty(1 << 48)

    monkeypatch.setattr(rlhf_update, "hidden_states", greedy)
    code, told = tether_(
        *("rlhf", "--data", "prompts.jsonl", "--reward", "lexicon", *SHARED, "run"),
        *("--minibatch-size", "4", "--max-new-tokens", "3", "--missing-eos-score", "none"),
    )
    assert code == 2
    assert "lower micro_batch_size (2) or generation_batch_size (64), which" in told


def test_running_out_of_memory_is_told_from_other_failures():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 48)
    assert is_out_of_memory(real.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
    assert not is_out_of_memory(ValueError("out of memory"))
