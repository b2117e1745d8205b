"""The commands end to end, on a model made here: train, go on, speak, and say what is wrong."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_commands import FAST, QUESTIONS, Outcome

import tether
from tether.control import training as policies
from tether.errors import UserError
from tether.language.commands.speak import Stream
from tether.language.data.templates import Template
from tether.language.models.from_run import load_with_template, open_model
from tether.language.runs import training
from tether.learning import BaseCallback, Run, read_metrics


def without_time(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(path)
    ]


def parameters(run: Path) -> dict[str, Any]:
    state: Any = Run.open(run).load()
    found: dict[str, Any] = state["modules"]["model"]
    return found


def assert_equal_runs(one: Path, other: Path) -> None:
    assert without_time(one) == without_time(other)
    ours, theirs = parameters(one), parameters(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_sft_learns_and_its_run_speaks(tether_: Any, folders: dict[str, Path]) -> None:
    done = tether_(
        *("sft", "--model", folders["plain"], "--data", folders["questions"], "--json"),
        *("--out", "run", "--epochs", "12", "--held-out", "0.2", "--quiet"),
        *("--batch-size", "4", "--learning-rate", "1e-2"),
    )
    assert done.code == 0, done.err
    summary = done.json
    assert summary["method"] == "sft"
    assert Path(summary["run"]) == Path("run")
    assert summary["steps"] >= 12 * summary["examples"] > 0
    rows = read_metrics("run")
    assert rows[-1]["held_out/loss"] < rows[0]["held_out/loss_before"] - 1
    assert summary["metrics"]["held_out/loss"] == rows[-1]["held_out/loss"]

    spoken = tether_("generate", "run", "--prompt", "Is the answer 3?", "--temperature", "0")
    told = tether_(
        *("generate", "run", "--prompt", "Is the answer 3?", "--temperature", "0", "--json"),
    )
    assert spoken.code == told.code == 0
    # What is streamed token by token is what comes in one piece.
    assert spoken.out == told.json["completions"][0] + "\n"
    assert "yes" in spoken.out
    assert told.json["finished"] == [True]

    many = [tether_("generate", "run", "--prompt", "Is", "--samples", "9", "--json") for _ in "ab"]
    assert many[0].json == many[1].json
    assert len(set(many[0].json["completions"])) > 1


@pytest.mark.parametrize("lora", [[], ["--lora", "2"]])
def test_a_stopped_run_ends_like_one_that_was_not(
    tether_: Any, folders: dict[str, Path], lora: list[str]
) -> None:
    command = ["sft", "--model", folders["plain"], "--data", folders["questions"], *FAST, *lora]
    command += ["--total-steps", "24", "--evaluate-every", "2", "--packing"]
    assert tether_(*command, "--out", "whole").code == 0

    class Stop(BaseCallback):
        def on_iteration(self, run: Any, learner: Any, metrics: Any) -> bool:
            return bool(learner.steps < 12)

    settings: dict[str, Any] = {"lora": 2} if lora else {}
    training.train(
        "sft",
        model=folders["plain"],
        data=folders["questions"],
        total_steps=24,
        evaluate_every=2,
        packing=True,
        batch_size=4,
        learning_rate=1e-3,
        out="broken",
        callbacks=[Stop()],
        progress=False,
        **settings,
    )
    assert read_metrics("broken")[-1]["step"] == 12
    resumed = tether_("resume", "broken", "--quiet", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["steps"] == read_metrics("whole")[-1]["step"] >= 24
    assert_equal_runs(Path("whole"), Path("broken"))
    # Nothing is left to do, and the last measurements still stand.
    again = tether_("resume", "broken", "--quiet", "--json").json
    assert again["steps"] == resumed.json["steps"]
    assert again["metrics"]["loss"] == resumed.json["metrics"]["loss"]


def test_a_killed_process_goes_on_bit_for_bit(
    tether_: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    command = ["sft", "--model", folders["plain"], "--data", folders["questions"]]
    command += [*FAST, "--total-steps", "160", "--checkpoint-every", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tether", *map(str, command), "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    checkpoints = tmp_path / "killed" / "checkpoints"
    end = time.monotonic() + 60
    while not (checkpoints.is_dir() and any(checkpoints.glob("*.safetensors"))):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert tether_("resume", "killed", "--quiet").code == 0
    assert tether_(*command, "--out", "whole").code == 0
    assert_equal_runs(Path("whole"), Path("killed"))


def test_chats_remember_and_end(
    tether_: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tether_(
        *("sft", "--model", folders["chat"], "--data", folders["talk"], "--out", "run"),
        *("--epochs", "8", *FAST),
    )
    assert done.code == 0, done.err
    assert json.loads(Path("run/run.json").read_text())["spec"]["template"] == "chat"

    def talk(*lines: str, options: tuple[str, ...] = ()) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        outcome: Outcome = tether_("chat", "run", "--max-new-tokens", "8", *options)
        assert outcome.code == 0, outcome.err
        return outcome

    once = talk("Is Is the answer 3?", options=("--temperature", "0"))
    assert "yes" in once.out
    # A second turn is another question than the same words alone, unless all is forgotten.
    both = talk("Is 1?", "Is 2?", options=("--temperature", "1"))
    assert len(both.out.splitlines()) >= 2
    quit_ = talk("/quit", "Is 2?")
    assert quit_.out == ""
    forged = talk("<eos>", "", "Is 2?", options=("--temperature", "0"))
    assert "tether: message 1 holds '<eos>'" in forged.err
    assert "yes" in forged.out
    reset = talk("Is 1?", "/reset", "Is Is the answer 3?", options=("--temperature", "0"))
    assert reset.out.splitlines()[-1] == once.out.splitlines()[-1]


def test_a_chat_that_outgrows_the_context_says_so(
    tether_: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Is the answer 42?\n" + "one two three " * 60 + "\nIs the answer 42?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    done = tether_("chat", folders["chat"], "--max-new-tokens", "3", "--temperature", "0")
    assert done.code == 0
    assert "the model's context is 128; shorten it, or /reset" in done.err
    assert len(done.out.splitlines()) >= 2


def test_a_character_is_shown_when_it_is_whole(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, template = load_with_template(folders["plain"])
    ids = template.completion_ids("", "a é 漢 b")
    stream, shown = Stream(template), ""
    for token in ids:
        stream(0, token)
        shown += capsys.readouterr().out
        assert "\ufffd" not in shown
    stream.end()
    assert shown + capsys.readouterr().out == "a é 漢 b\n"


def test_the_three_steps_follow_each_other(tether_: Any, folders: dict[str, Path]) -> None:
    sft = tether_(
        *("sft", "--model", folders["plain"], "--data", folders["questions"], "--out", "sft"),
        *("--total-steps", "24", "--lora", "2", *FAST),
    )
    assert sft.code == 0, sft.err
    # The next step starts from what the last one learned, its adapters merged.
    merged, learned = open_model("sft"), training.load_language_model("sft")
    assert not merged.has_adapter and learned.has_adapter
    ids = torch.tensor([[1, 5, 9, 20]])
    torch.testing.assert_close(merged.model(ids).logits, learned.model(ids).logits)
    base = open_model(folders["plain"])
    assert not torch.allclose(merged.model(ids).logits, base.model(ids).logits)

    for method, data in (("dpo", "pairs"), ("dpo", "ranked"), ("reward", "pairs")):
        out = f"{method}-{data}"
        done = tether_(
            *(method, "--model", "sft", "--data", folders[data], "--out", out, *FAST),
            *("--total-steps", "8", "--json"),
        )
        assert done.code == 0, done.err
        assert "reward/accuracy" in done.json["metrics"]
        # A ranking of three is three pairs to dpo.
        assert done.json["examples"] == {"pairs": 16, "ranked": 18}[data]
    scores = training.load_reward_model("reward-pairs").score([[1, 5]], [[9, 2]])
    assert np.isfinite(scores).all()

    done = tether_(
        *("rlhf", "--model", "sft", "--reward", "reward-pairs", "--data", folders["prompts"]),
        *("--out", "rlhf", "--quiet", "--batch-size", "4", "--minibatch-size", "4"),
        *("--max-new-tokens", "4", "--total-steps", "8", "--missing-eos-score", "none", "--json"),
    )
    assert done.code == 0, done.err
    assert "kl/sequence" in done.json["metrics"]
    assert tether_("resume", "rlhf", "--total-steps", "12", "--quiet").code == 0
    assert tether_("generate", "rlhf", "--prompt", "The answer", "--max-new-tokens", "3").code == 0
    refused = tether_("generate", "reward-pairs", "--prompt", "a")
    assert refused.code == 2
    assert "holds a reward model, which gives scores and no text" in refused.err


def test_film_reviews_are_at_hand(tether_: Any, folders: dict[str, Path]) -> None:
    for method in ("sft", "reward"):
        done = tether_(
            *(method, "--model", folders["plain"], "--limit", "12", "--total-steps", "4"),
            *("--max-length", "32", "--held-out", "0.5", "--out", method, "--json", *FAST),
        )
        assert done.code == 0, done.err
        assert done.json["examples"] == 12
        assert "held_out/loss" in done.json["metrics"]
    done = tether_(
        *("rlhf", "--model", folders["plain"], "--reward", "lexicon", "--limit", "8", "--quiet"),
        *("--batch-size", "4", "--minibatch-size", "4", "--max-new-tokens", "4", "--total-steps"),
        *("4", "--out", "rlhf", "--missing-eos-score", "none"),
    )
    assert done.code == 0, done.err


def test_a_config_file_and_flags_that_win(tether_: Any, folders: dict[str, Path]) -> None:
    Path("sft.toml").write_text(
        f'model = "{folders["plain"]}"\ndata = "{folders["questions"]}"\nlearning_rate = 0.5\n'
        "batch_size = 4\nseed = 7\n"
    )
    done = tether_(
        *("sft", "--config", "sft.toml", "--learning-rate", "1e-4", "--total-steps", "4"),
        *("--out", "run", "--quiet"),
    )
    assert done.code == 0, done.err
    record = json.loads(Path("run/run.json").read_text())
    assert record["config"]["learning_rate"] == 1e-4
    assert record["config"]["batch_size"] == 4
    assert record["spec"]["setup"]["seed"] == 7
    Path("sft.toml").write_text("learning_rat = 1\n")
    wrong = tether_("sft", "--config", "sft.toml")
    assert wrong.code == 2
    assert "unknown key 'learning_rat'; did you mean 'learning_rate'?" in wrong.err


def test_mistakes_are_told_in_one_line(tether_: Any, folders: dict[str, Path]) -> None:
    plain, questions = folders["plain"], folders["questions"]
    empty = Path("empty.jsonl")
    empty.write_text('{"prompt": "a", "completion": ""}\n')
    mistakes = {
        ("sft", "--model", plain, "--data", empty): "line 1, field 'completion': empty",
        ("sft", "--model", plain, "--data", folders["pairs"]): (
            "has the columns prompt, chosen, rejected; expected messages; or prompt, completion; or"
        ),
        ("dpo", "--model", plain, "--data", questions): "expected chosen, rejected; or prompt,",
        ("sft", "--model", "no-such-folder/at/all", "--data", questions): "no folder",
        ("sft", "--model", plain, "--data", questions, "--epochs", "0"): "epochs is 0.0",
        ("sft", "--model", plain, "--data", questions, "--total-steps", "0"): "total_steps is 0",
        ("sft", "--model", plain, "--data", questions, "--batch-size", "0"): "batch_size is 0; exp",
        ("sft", "--learning-rte", "1"): "did you mean --learning-rate?",
        ("sft", "--model", plain, "--template", "chat", "--limit", "3"): "texts without prompts",
        ("generate", plain, "--prompt", "a", "--samples", "0"): "samples is 0",
        ("generate", plain, "--prompt", "a", "--max-new-tokens", "0"): "max_new_tokens is 0",
        ("generate", plain, "--prompt", "one two " * 200): "the model's context is 128",
        ("generate", "no/such/run", "--prompt", "a"): "no folder",
        ("rlhf", "--model", plain, "--reward", plain): "is no folder of a run",
    }
    for arguments, expected in mistakes.items():
        done = tether_(*arguments, *(["--quiet"] if arguments[0] != "generate" else []))
        assert done.code == 2, (arguments, done.err)
        assert expected in done.err.splitlines()[-1], (arguments, done.err)
        assert done.err.splitlines()[-1].startswith("tether: ")


def test_runs_whose_data_changed_or_are_gone(tether_: Any, folders: dict[str, Path]) -> None:
    data = Path("data.jsonl")
    data.write_text(folders["questions"].read_text())
    command = ["sft", "--model", folders["plain"], "--data", data, "--out", "run", *FAST]
    assert tether_(*command, "--total-steps", "4").code == 0
    data.write_text(folders["questions"].read_text().replace("yes", "no", 1))
    changed = tether_("resume", "run", "--total-steps", "8")
    assert changed.code == 2
    assert "are not those that run run began with; put them back" in changed.err
    data.unlink()
    assert "there is no data file" in tether_("resume", "run", "--total-steps", "8").err
    training.train(
        "sft", model=folders["plain"], data=QUESTIONS, total_steps=4, out="objects", progress=False
    )
    objects = tether_("resume", "objects", "--total-steps", "32")
    assert objects.code == 2
    assert "was started from a data object, not a file; pass the same data as data=" in objects.err
    resumed = training.resume("objects", data=QUESTIONS, total_steps=32, progress=False)
    assert resumed.steps >= 32


def test_other_kinds_of_run_are_told_apart(tether_: Any, folders: dict[str, Path]) -> None:
    command = ["sft", "--model", folders["plain"], "--data", folders["questions"], "--out", "run"]
    assert tether_(*command, *FAST, "--total-steps", "4").code == 0
    assert tether.load("run").name == "run"
    with pytest.raises(UserError, match="a language model answers: tether generate run --prompt"):
        policies.load("run")
    with Run.create("other", method="ppo", config={}, spec={}):
        pass
    with pytest.raises(UserError, match="was trained by ppo; expected a run of sft, reward"):
        training.load_language_model("other")
    assert tether_("resume", "missing").code == 2


def test_what_was_cut_is_told(tether_: Any, folders: dict[str, Path]) -> None:
    command = ["sft", "--model", folders["plain"], "--data", folders["questions"], "--batch-size"]
    done = tether_(*command, "4", "--total-steps", "4", "--max-completion", "2", "--out", "run")
    assert done.code == 0
    assert "completions were cut" in done.err
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "completion": "b"}\n' * 3)
    command[4] = Path("bad.jsonl")
    assert tether_(*command, "4", "--out", "bad").code == 2
    Path("bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n' * 3)
    left = tether_(*command, "4", "--out", "left", "--skip-bad", "--held-out", "0")
    assert left.code == 0, left.err
    assert "3 bad rows were left out" in left.err


def test_a_template_belongs_to_its_run(folders: dict[str, Path]) -> None:
    for name, kind in (("plain", "plain"), ("chat", "chat")):
        model, template = load_with_template(folders[name])
        assert template.kind == kind
        assert set(Template(model.tokenizer, template.kind).stop_ids) <= set(model.stop_ids)
