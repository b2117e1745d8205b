"""Two processes learn what one would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import gpt2_model
from toy_texts import bpe

from tether import cli
from tether.language.runtime.processes import Processes, processes
from tether.learning import Run, read_metrics

HERE = Path(__file__).parent
SHARED = ["--model", "model", "--dtype", "float64", "--batch-size", "5", "--micro-batch-size", "2"]
# Adam would divide the rounding of gradients that are zero by itself.
SHARED += ["--adam-epsilon", "1e-3", "--learning-rate", "1e-2", "--json", "--sinks"]
COMMANDS = {
    # Eleven examples: the third batch has one row, so one process has nothing to read.
    "sft": ["sft", "--data", "answers.jsonl", "--total-steps", "11", "--held-out", "0.15"],
    "packed": ["sft", "--data", "answers.jsonl", "--total-steps", "10", "--packing"],
    "dpo": ["dpo", "--data", "pairs.jsonl", "--total-steps", "10", "--held-out", "0.3"],
    "kto": ["dpo", "--loss", "kto", "--data", "verdicts.jsonl", "--total-steps", "10"],
    "reward": ["reward", "--data", "pairs.jsonl", "--total-steps", "10"],
    "rlhf": ["rlhf", "--data", "prompts.jsonl", "--total-steps", "10"]
    + ["--minibatch-size", "5", "--max-new-tokens", "5", "--missing-eos-score", "none"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that computes in float64 throughout, and data."""
    root = tmp_path_factory.mktemp("two")
    tokenizer = bpe()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    gpt2_model(vocab_size=len(tokenizer), n_positions=128, **special).save_pretrained(
        root / "model"
    )
    tokenizer.save_pretrained(root / "model")
    words = ["yes", "no no", "a cat sat", "one two three four"]
    rows: dict[str, list[dict[str, Any]]] = {
        "answers": [{"prompt": f"Is {i}?", "completion": f" {words[i % 4]}"} for i in range(13)],
        "pairs": [
            {"prompt": f"Is {i}?", "chosen": words[i % 4], "rejected": words[(i + 1) % 4],
             "label": 1 - 0.1 * (i % 3)} for i in range(12)
        ],
        "verdicts": [
            {"prompt": f"Is {i}?", "completion": words[i % 4], "label": [1, 0.2, 0.5][i % 3]}
            for i in range(11)
        ],
        "prompts": [{"prompt": f"The answer {i} is"} for i in range(7)],
    }  # fmt: skip
    for name, content in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return root


def command(name: str, out: str, *more: str) -> list[str]:
    taught = ["--reward", f"{out}/reward"] if name == "rlhf" else []
    return [*COMMANDS[name], *taught, *SHARED, "--out", f"{out}/{name}", *more]


def launched(place: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs commands in two processes that `accelerate` starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # --multi_gpu has it start the processes by itself, also where there is no GPU.
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", port, "--mixed_precision", "no", "--num_machines", "1"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "--dynamo_backend", "no"]
        + [str(HERE / "commands_in_turn.py"), json.dumps(commands)],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def numbers(value: Any, path: str = "") -> dict[str, Any]:
    """A state's arrays and numbers by path; texts tell apart what has nothing to compare."""
    if isinstance(value, dict):
        parts: Any = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {} if value is None or isinstance(value, str) else {path: value}
    return {k: v for name, part in parts for k, v in numbers(part, f"{path}/{name}").items()}


def settled(run: Path) -> list[dict[str, Any]]:
    """Measurements but the clock's, and the accuracy where no update has been made: at the
    reference all margins are zero, so it counts the signs of rounding errors."""
    return [
        {
            name: value
            for name, value in row.items()
            if not name.startswith("time/") and not (name.endswith("accuracy") and row["step"] <= 5)
        }
        for row in read_metrics(run)
    ]


def test_two_processes_learn_what_one_does(place: Path, monkeypatch, capfd) -> None:
    commands = [command(name, "two") for name in COMMANDS]
    # A run goes on in two processes as well, and so does one that a single process began.
    commands[1:1] = [["resume", "two/sft", "--total-steps", "16", "--quiet"]]
    done = launched(place, *commands)
    assert done.returncode == 0, done.stderr[-3000:]
    # The leader alone speaks.
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["run"] for one in told] == [f"two/{name}" for name in COMMANDS]

    monkeypatch.chdir(place)
    for name in COMMANDS:
        assert cli.main(command(name, "one", "--quiet")) == 0
    assert cli.main(["resume", "one/sft", "--total-steps", "16", "--quiet"]) == 0
    for name in COMMANDS:
        two, one = Path("two") / name, Path("one") / name
        states = [numbers(Run.open(run).load()) for run in (two, one)]
        assert states[0].keys() == states[1].keys()
        # The heads of reward models compute in float32, whatever the model does.
        near = 1e-6 if name in ("reward", "rlhf") else 1e-9
        for path, expected in states[1].items():
            np.testing.assert_allclose(
                states[0][path], expected, rtol=near, atol=near, err_msg=f"{name}{path}"
            )
        assert len(settled(two)) == len(settled(one)) >= 2
        for found, expected in zip(settled(two), settled(one), strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), name
    assert capfd.readouterr().err


def test_shares_are_disjoint_and_whole() -> None:
    items = list(range(11))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert processes().count == 1 and processes().share(items) is items
    assert processes().gather("x") == ["x"]
