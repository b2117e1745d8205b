"""Models and data as objects, wherever a name is accepted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toy_commands import PAIRS, QUESTIONS
from toy_texts import CHAT, bpe, toy

import tether
from tether.errors import UserError
from tether.language.data.tokens import Example
from tether.learning.run import Run

QUIET: dict[str, Any] = {"progress": False, "sinks": (), "batch_size": 4, "learning_rate": 1e-3}


class Stop(tether.BaseCallback):
    def on_iteration(self, run: Any, learner: Any, metrics: Any) -> bool:
        return learner.steps < 8


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_transformers_model_trains_and_resumes_as_an_object(tmp_path: Path) -> None:
    def given() -> dict[str, Any]:
        language_model = toy()
        return {"model": language_model.model, "tokenizer": language_model.tokenizer}

    data = Dataset.from_list(PAIRS)
    for out, callbacks in (("whole", ()), ("cut", [Stop()])):
        how = {"total_steps": 16, "callbacks": callbacks, "out": tmp_path / out}
        trained = tether.train("dpo", data=data, **how, **given(), **QUIET)
    assert trained.language_model.model.config.model_type == "llama"
    assert Run.open(tmp_path / "cut").spec["setup"]["model"] is None
    with pytest.raises(UserError, match="started from a model object, not a name; pass the same"):
        tether.resume(tmp_path / "cut", data=data)
    with pytest.raises(UserError, match="a tokenizer belongs to a transformers model"):
        tether.resume(tmp_path / "cut", data=data, tokenizer=bpe())
    tether.resume(tmp_path / "cut", data=PAIRS, progress=False, **given())
    whole, cut = (tether.load(tmp_path / name, **given()) for name in ("whole", "cut"))
    assert torch.equal(weights(whole.model), weights(cut.model))
    with pytest.raises(UserError, match="started from a model object"):
        tether.load(tmp_path / "cut")


def test_another_model_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    tether.train(
        "dpo", model=toy(), data=PAIRS, total_steps=8, lora=2, out=tmp_path / "run", **QUIET
    )
    other = toy()
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    with pytest.raises(UserError, match="no longer what it was"):
        tether.resume(tmp_path / "run", model=other, data=PAIRS, total_steps=16, progress=False)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for given, words in (
        ({"model": 3}, "model is a int; expected a name"),
        ({"model": toy().model}, "no tokenizer is given"),
        ({"model": "tiny", "tokenizer": bpe()}, "model is the name 'tiny'"),
        ({"model": toy(), "tokenizer": bpe()}, "a LanguageModel, which has its own"),
    ):
        with pytest.raises(UserError, match=words):
            tether.train("sft", data=QUESTIONS, out=tmp_path / "run", **given, **QUIET)
    with pytest.raises(UserError, match="trains a language model and takes no env"):
        tether.train("sft", "CartPole-v1", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_token_records_are_data(tmp_path: Path) -> None:
    records = [Example((5, 6), (7, 8 + i % 3, 2)) for i in range(8)]
    out = tmp_path / "run"
    trained = tether.train("sft", model=toy(), data=records, total_steps=8, out=out, **QUIET)
    assert trained.examples < len(records)  # some are held out
    changed = [*records[:-1], Example((5, 6), (9, 9, 9))]
    with pytest.raises(UserError, match="are not those that run"):
        tether.resume(out, model=toy(), data=changed, total_steps=16, progress=False)


def test_several_seeds_of_a_language_model_are_one_folder(tmp_path: Path) -> None:
    given = {"model": toy(), "data": QUESTIONS, "total_steps": 4}
    trained = tether.train("sft", seeds=[0, 1], out=tmp_path / "runs", **given, **QUIET)
    assert [run.run.name for run in trained.runs] == ["seed-0", "seed-1"]
    assert [Run.open(run.run).spec["seed"] for run in trained.runs] == [0, 1]


def test_plain_questions_to_a_chat_model_pass_through_its_template(tmp_path: Path) -> None:
    for name, model, template in (("chat", toy(CHAT), "chat"), ("plain", toy(), "plain")):
        trained = tether.train(
            "sft", model=model, data=QUESTIONS, total_steps=4, out=tmp_path / name, **QUIET
        )
        assert Run.open(trained.run).spec["template"] == template
    answers = tether.generate(toy(CHAT), ["Is it?", "Who?"], max_new_tokens=4, temperature=0)
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    assert answers[:1] == tether.generate(toy(CHAT), "Is it?", max_new_tokens=4, temperature=0)


def test_a_resumed_run_writes_where_it_began_to_write(tmp_path: Path) -> None:
    given = {"model": toy(), "data": QUESTIONS}
    for name, sinks in (("without", ()), ("with", ("tensorboard",))):
        out = tmp_path / name
        settings = {**QUIET, "sinks": sinks, "total_steps": 4, "out": out}
        tether.train("sft", **given, **settings)
        tether.resume(out, total_steps=8, progress=False, **given)
        stretches = list((out / "tensorboard").iterdir()) if sinks else []
        assert len(stretches) == 2 * len(sinks)
        assert (out / "tensorboard").exists() == bool(sinks)
