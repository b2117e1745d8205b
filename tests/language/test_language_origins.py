"""Commands one after another: what each must know of the last, and mistakes told in one line."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import completions, language_model
from toy_commands import FAST, Outcome

from tether.arguments import parse
from tether.errors import UserError
from tether.language.commands.speak import GenerateOptions
from tether.language.data.sources import open_source
from tether.language.data.tokens import collate
from tether.language.methods import METHODS
from tether.language.models.from_run import Setup, is_run, open_model
from tether.language.models.language_model import (
    LanguageModel,
    LoraSettings,
    load_model,
    save_model,
)
from tether.language.models.logprobs import token_log_probs
from tether.language.runs import training
from tether.language.runs.prepare import prepare
from tether.language.runtime.cache import cache_folder
from tether.learning import BaseCallback, Run


def test_what_a_run_began_with_may_not_change_under_it(
    tether_: Any, folders: dict[str, Path]
) -> None:
    def learn(method: str, model: object, data: str, out: str, *more: object) -> None:
        done = tether_(
            method, "--model", model, "--data", folders[data], "--out", out, *FAST, *more
        )
        assert done.code == 0, done.err

    learn("sft", folders["plain"], "questions", "sft", "--total-steps", "8", "--lora", "2")
    learn("dpo", "sft", "pairs", "dpo", "--total-steps", "8", "--lora", "2")
    learn("reward", "sft", "pairs", "reward", "--total-steps", "8")
    rlhf = ["--reward", "reward", "--minibatch-size", "4", "--max-new-tokens", "4"]
    learn("rlhf", folders["plain"], "prompts", "rlhf", "--total-steps", "4", *rlhf)
    origins = Run.open("rlhf").spec["origins"]
    assert origins.keys() == {"model", str(Path("reward").resolve())}
    assert tether_("generate", "dpo", "--prompt", "a", "--max-new-tokens", "2").code == 0
    for run in ("dpo", "rlhf"):
        done = tether_("resume", run, "--total-steps", "12", "--quiet")
        assert done.code == 0, done.err

    for run in ("sft", "reward"):
        assert tether_("resume", run, "--total-steps", "16", "--quiet").code == 0
    for command, words in (
        (("generate", "dpo", "--prompt", "a"), "run dpo holds adapters for the model"),
        (("resume", "dpo", "--total-steps", "24"), "is no longer what it was when run dpo"),
        (
            ("resume", "rlhf", "--total-steps", "24"),
            "is no longer what it was when run rlhf",
        ),
    ):
        refused = tether_(*command)
        assert refused.code == 2, refused.err
        assert words in refused.err.splitlines()[-1]


def test_the_next_step_starts_from_all_that_a_bfloat16_adapter_learned(
    tether_: Any, folders: dict[str, Path]
) -> None:
    command = ["sft", "--model", folders["plain"], "--data", folders["questions"], *FAST]
    command += ["--total-steps", "8", "--lora", "2", "--dtype", "bfloat16", "--out", "run"]
    assert tether_(*command).code == 0
    learned, merged = training.load_language_model("run").model.float(), open_model("run")
    short = open_model("run", dtype="bfloat16").model
    assert {p.dtype for p in short.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in short.buffers() if b.is_floating_point()} == {torch.float32}
    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.no_grad():
        expected = learned(ids).logits
        with learned.disable_adapter():
            effect = float((expected - learned(ids).logits).norm())
        assert float((merged.model(ids).logits - expected).norm()) < 1e-3 * effect


def test_how_a_run_was_asked_is_how_it_is_asked_next(
    tether_: Any, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    def learn(method: str, model: object, data: str, out: str, *more: str) -> Outcome:
        command = [method, "--model", model, "--data", folders[data], "--total-steps", "4"]
        outcome: Outcome = tether_(*command, "--out", out, *FAST, *more)
        return outcome

    assert learn("sft", folders["chat"], "questions", "sft", "--template", "chat").code == 0
    assert learn("dpo", "sft", "pairs", "dpo").code == 0
    assert Run.open("dpo").spec["template"] == "chat"
    assert not caplog.records
    assert learn("reward", "sft", "pairs", "reward", "--template", "plain").code == 0
    assert "sft has learned from chat prompts, and these are plain" in caplog.text
    rewards = ["--reward", "reward", "--minibatch-size", "4", "--max-new-tokens", "4"]
    refused = learn("rlhf", "sft", "prompts", "rlhf", *rewards)
    assert refused.code == 2
    assert "reward has learned from plain prompts, and these are chat" in refused.err
    texts = tether_("rlhf", "--model", folders["plain"], "--template", "chat", "--limit", "2")
    assert texts.code == 2
    assert "the prompts of movie-reviews are beginnings of texts" in texts.err


def test_an_epoch_answers_every_prompt_as_often_as_asked(
    tether_: Any, folders: dict[str, Path]
) -> None:
    done = tether_(
        *("rlhf", "--model", folders["plain"], "--data", folders["prompts"], "--reward", "lexicon"),
        *("--estimator", "rloo", "--samples-per-prompt", "2", "--batch-size", "4", "--json"),
        *("--minibatch-size", "4", "--max-new-tokens", "3", "--out", "rlhf", "--quiet"),
    )
    assert done.code == 0, done.err
    assert done.json["steps"] == 12
    assert done.json["metrics"]["data/epoch"] == 1.0


def test_a_start_that_fails_leaves_no_folder_in_the_way(
    tether_: Any, folders: dict[str, Path]
) -> None:
    command = ["reward", "--model", folders["plain"], "--data", folders["ranked"], "--out", "run"]
    refused = tether_(*command, *FAST, "--label-noise", "0.1")
    assert refused.code == 2
    assert "label_noise is 0.1" in refused.err
    assert not Path("run").exists()
    assert tether_(*command, *FAST, "--total-steps", "4").code == 0


def test_runs_that_resume_elsewhere_are_told_in_one_line(tether_: Any) -> None:
    for method, more in (
        ("pretraining", "python -m tether.language.pretraining"),
        ("x", "which no engine of tether has"),
    ):
        with Run.create(method, method=method, config={}, spec={"seed": 0}):
            pass
        refused = tether_("resume", method)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1 and more in refused.err
        with pytest.raises(UserError, match=f"was trained by {method}; expected a run of sft"):
            training.resume(method)


def test_parts_of_the_film_reviews(tether_: Any, folders: dict[str, Path]) -> None:
    refused = tether_("sft", "--model", folders["plain"], "--split", "nonsense", "--limit", "4")
    assert refused.code == 2
    assert "split is 'nonsense'; expected 'train' or 'held_out'" in refused.err
    setup = {"model": str(folders["plain"]), "max_length": 64, "limit": 40}
    config = training.configure("sft", {"held_out": 0.25})
    for part in ("train", "held_out"):
        made = prepare(METHODS["sft"], Setup(split=part, **setup), "movie-reviews", config)
        assert made.held_out
        # What is learned is not measured on, whichever part it comes from.
        assert not {repr(r) for r in made.data} & {repr(r) for r in made.held_out}


def test_none_is_nothing_but_in_a_text() -> None:
    options = parse(GenerateOptions, ["tiny", "--prompt", "none", "--top-k", "none"], prog="x")
    assert options.prompt == "none"
    assert options.speech.top_k is None
    assert parse(GenerateOptions, ["tiny", "--top-k", "3"], prog="x").speech.top_k == 3
    assert parse(GenerateOptions, ["tiny"], prog="x").prompt is None


def test_only_what_was_training_is_said_to_go_on(
    tether_: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tether.language.commands.speak.load_with_template", stop)
    done = tether_("generate", folders["plain"], "--prompt", "a")
    assert (done.code, done.err) == (130, "tether: stopped at once\n")
    monkeypatch.setattr("tether.language.runs.training.prepare", stop)
    done = tether_("sft", "--model", folders["plain"], "--data", folders["questions"])
    assert done.code == 130
    assert "can be continued: tether resume RUN" in done.err


def test_a_reward_model_that_never_came_to_its_end_is_told_of(
    tether_: Any, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(BaseCallback):
        def on_iteration(self, run: Any, learner: Any, metrics: Any) -> bool:
            return False

    settings: dict[str, Any] = {"model": folders["plain"], "data": folders["pairs"]}
    settings |= {"total_steps": 16, "batch_size": 4, "out": "run", "progress": False}
    training.train("reward", callbacks=[Stop()], **settings)
    training.load_reward_model("run")
    assert "run run has not come to its end" in caplog.text
    caplog.clear()
    assert tether_("resume", "run", "--quiet").code == 0
    training.load_reward_model("run")
    assert not caplog.records


def test_what_a_bfloat16_adapter_learned_is_not_rounded_away(tmp_path):
    policy = language_model("llama", dtype=torch.bfloat16, lora=LoraSettings(rank=2))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(1e-3)
    base = language_model("llama", dtype=torch.bfloat16)
    save_model(policy, tmp_path / "merged")
    batch = collate(completions(4), pad_id=0)

    def said(model: LanguageModel) -> torch.Tensor:
        wide = dataclasses.replace(model, model=model.model.float(), dtype=torch.float32)
        return token_log_probs(wide, batch)[0].detach()

    merged, adapted, before = said(load_model(tmp_path / "merged")), said(policy), said(base)
    effect = (adapted - before).norm()
    assert effect > 0.01
    assert (merged - adapted).norm() < 1e-2 * effect


@pytest.mark.parametrize("name", ['[{"prompt": "a"}]' * 50, "x/" * 3 + "y" * 300, "~no-such/x"])
def test_names_that_no_file_can_have(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: _unknown(name))
    with pytest.raises(UserError) as caught:
        load_model(name)
    assert len(str(caught.value)) < 400
    assert not is_run(name)
    with pytest.raises(UserError, match=r"there is no data file|did not give it"):
        open_source(name)


def _unknown(name: str) -> None:
    raise OSError(f"no {name[:20]}")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache .* cannot be written: .*; set TETHER_CACHE"):
        cache_folder()
    monkeypatch.setenv("TETHER_CACHE", "~no-such-user/cache")
    with pytest.raises(UserError, match="set TETHER_CACHE"):
        cache_folder()
