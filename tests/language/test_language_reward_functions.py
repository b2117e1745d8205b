"""Rewards as Python functions: called as TRL calls them, and every mistake told in one line."""

import functools
import json
import math
import textwrap
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_texts import CHAT, toy

import tether
from tether.errors import RewardError, UserError
from tether.language.data.prompt_rows import PromptRows
from tether.language.data.tokens import Completion
from tether.language.methods.best_of_n import best_of_n
from tether.language.methods.rlhf.given_rewards import GivenRewards, is_function_name
from tether.language.methods.rlhf.learner import RLHFConfig
from tether.language.methods.rlhf.rewards import Ensemble
from tether.language.models.reward_function import FunctionScorer, RewardFunction
from tether.language.models.reward_model import RewardModel
from tether.language.models.scoring import score_function
from tether.language.runs.training import ENGINE
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run

# Equal prompts with different answers: only the row tells them apart.
DATA = [
    {"prompt": f"The answer {i % 3} is", "answer": "aeiou"[i % 5], "level": i, "tags": [str(i)]}
    for i in range(8)
]
SMALL: dict[str, Any] = {
    "batch_size": 4,
    "minibatch_size": 4,
    "max_new_tokens": 5,
    "learning_rate": 1e-3,
    "progress": False,
    "sinks": (),
}


def contains(prompts, completions, answer, **kwargs):
    """1 for the answer; does not apply to rows of odd level."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    found = zip(texts, answer, kwargs["level"], strict=True)
    return [None if level % 2 else float(text.count(a)) for text, a, level in found]


def length(completions, completion_ids, tags):
    rows = zip(completions, completion_ids, tags, strict=True)
    return [len(str(c)) + 10 * len(ids) + float(tag[0]) for c, ids, tag in rows]


def prompted(prompts, **kwargs):
    return torch.tensor([float(len(str(prompt))) for prompt in prompts])


def trl_rewards(functions, weights, rows, prompts, completions, completion_ids):
    """What TRL's GRPOTrainer makes of reward functions, written from its source."""
    keys = [key for key in rows[0] if key not in ["prompt", "completion", "completion_ids"]]
    columns = {key: [row[key] for row in rows] for key in keys}
    per_function = torch.zeros(len(prompts), len(functions), dtype=torch.float64)
    for i, function in enumerate(functions):
        found = function(
            prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )
        found = [reward if reward is not None else torch.nan for reward in found]
        per_function[:, i] = torch.tensor(found, dtype=torch.float64)
    weighted = per_function * torch.tensor(weights, dtype=torch.float64)[None]
    return weighted.nansum(dim=1).tolist()


def prepared(data: Any, reward: Any, chat: str | None = None, **settings: Any) -> Any:
    chosen = {n: v for n, v in SMALL.items() if n not in ("progress", "sinks")} | settings
    return ENGINE.prepare("rlhf", model=toy(chat), data=data, reward=reward, **chosen)


@pytest.mark.parametrize("kind", ["plain", "chat", "messages"])
def test_functions_are_called_as_trl_calls_them(kind):
    data: list[dict[str, Any]] = [dict(row) for row in DATA]
    if kind == "messages":
        for row in data:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    made = prepared(
        [{**data[0], "prompt": 3}, *data[:2], {"prompt": ""}, *data[2:]],
        [contains, length, prompted],
        None if kind == "plain" else CHAT,
        reward_weights=(1.0, -0.5, 2.0),
        skip_bad=True,
        max_prompt=4,
        batch_size=16,
    )
    episodes = made.learner.collector.collect()
    rows = [data[row] for row in episodes.prompts]
    assert len({row["level"] for row in rows}) > 4
    ids = [list(item.completion_ids) for item in episodes.completions]
    texts = made.learner.language_model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompts: list[Any] = [row["prompt"] for row in rows]
    answers: list[Any] = texts
    if kind != "plain":
        prompts = [p if isinstance(p, list) else [{"role": "user", "content": p}] for p in prompts]
        answers = [[{"role": "assistant", "content": text}] for text in texts]

    def named_only(prompts, completions, completion_ids, tags, **_):
        return length(completions, completion_ids, tags)

    expected = trl_rewards(
        [contains, named_only, prompted], [1.0, -0.5, 2.0], rows, prompts, answers, ids
    )
    assert episodes.scores.tolist() == pytest.approx(expected, rel=1e-12)
    own = contains(prompts, answers, **{k: [row[k] for row in rows] for k in ("answer", "level")})
    found = episodes.members["test_language_reward_functions.contains"].tolist()
    assert [None if math.isnan(value) else value for value in found] == own


def scored(function: Any, items: Any = None, **more: Any) -> list[float]:
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f"{i} " for i in ids))
    rows = PromptRows(["answer"])
    for number in range(9):
        rows.add(f"p{number}", {"answer": number})
    items = items or [Completion((2,), (3, 4), row=7), Completion((2,), (5,), row=2)]
    scorer = FunctionScorer(RewardFunction(function), tokenizer, rows, **more)
    return scorer(items).tolist()


class Judge:
    def __init__(self) -> None:
        self.factor = 3.0

    def __call__(self, completions, answer):
        return [self.factor * value for value in answer]

    def method(self, completions, **columns):
        return np.array(columns["answer"], np.float32)


async def patient(prompts, completions, answer, **kwargs):
    import asyncio

    await asyncio.sleep(0.001)
    return [int(p[1:]) - a for p, a in zip(prompts, answer, strict=True)]


def test_whatever_can_be_called_is_a_reward():
    def scaled(completions, factor, answer):
        return [factor * value for value in answer]

    assert scored(Judge()) == [21.0, 6.0]
    assert scored(Judge().method) == [7.0, 2.0]
    assert scored(functools.partial(scaled, factor=2)) == [14.0, 4.0]
    assert scored(patient) == scored(patient, timeout=60.0) == [0.0, 0.0]
    assert scored(lambda completions, answer=None: [True, np.float32(0.5)]) == [1.0, 0.5]
    assert scored(lambda **kwargs: tuple(kwargs["completions"][0].split())[:0] or (1, 2)) == [1, 2]
    # Changing what one was given changes nothing for the next call.
    rows = PromptRows(["tags"])
    rows.add("p", {"tags": ["a"]})
    rows.values("tags", [0])[0].append("b")
    assert rows.values("tags", [0, 0]) == [["a"], ["a"]]


def raises(completions, **kwargs):
    raise KeyError("no such answer")


def leaves(completions, **kwargs):
    raise SystemExit(3)


def generates(completions, **kwargs):
    yield from (1.0 for _ in completions)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, r"raised KeyError: 'no such answer' at \S+test_language_reward_functions.py:\d+ "
         r"on a batch of 2 completions \(answers to prompts 7, 2 of data\)"),
        (leaves, "raised SystemExit: 3 at"),
        (generates, r"returned a generator; expected a list of 2 numbers"),
        (lambda completions: None, r"returned None; .* \(is a return missing\?\)"),
        (lambda completions: "good", "returned the text 'good'; expected a list of 2 numbers"),
        (lambda completions: 1.0, r"returned the number 1.0; expected a list"),
        (lambda completions: {"a": 1, "b": 2}, "returned a dict; expected a list"),
        (lambda completions: [1.0], "returned 1 values; expected a list of 2 numbers"),
        (lambda completions: [1.0, "2"], r"the text '2' for row 1 \(an answer to prompt 2 of data"),
        (lambda completions: [math.nan, 1], r"returned nan for row 0 \(an answer to prompt 7 of"),
        (lambda completions: np.array([0, np.inf]), "returned inf for row 1"),
        (lambda completions: [[1.0], [2.0]], "returned a list for row 0"),
        (lambda completions: [1.0, 1j], "returned a complex for row 1"),
    ],
)  # fmt: skip
def test_what_a_function_does_wrong_is_told_by_name_and_row(function, message):
    name = function.__qualname__
    with pytest.raises(RewardError, match=message) as raised:
        scored(function)
    assert str(raised.value).startswith(f"the reward {__name__}:{name} ")
    assert "\n" not in str(raised.value)


def test_a_function_that_does_not_return_is_left_behind():
    def sleeps(completions):
        time.sleep(20)

    began = time.monotonic()
    with pytest.raises(RewardError, match=r"sleeps took longer than reward_timeout=0.1 seconds"):
        scored(sleeps, timeout=0.1)
    assert time.monotonic() - began < 10
    assert scored(lambda completions: [1, 2], timeout=60.0) == [1.0, 2.0]
    with pytest.raises(RewardError, match="raised KeyError: 'no such answer' at"):
        scored(raises, timeout=60.0)


def test_several_rewards_are_a_mean_the_lowest_or_a_weighted_sum_of_those_that_apply():
    items = [Completion((2,), (3,), row=0)] * 3
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "")

    def of(*values):
        return FunctionScorer(RewardFunction(lambda completions: list(values)), tokenizer)

    both = [of(1.0, None, 4.0), of(3.0, 2.0, -2.0)]
    assert Ensemble(both)(items).tolist() == [2.0, 2.0, 1.0]
    assert Ensemble(both, "lowest")(items).tolist() == [1.0, 2.0, -2.0]
    assert Ensemble(both, weights=(2.0, 0.5))(items).tolist() == [3.5, 1.0, 7.0]
    with pytest.raises(UserError, match="reward_weights has 1 numbers for 2 rewards"):
        Ensemble(both, weights=(1.0,))
    with pytest.raises(RewardError, match=r"0 and 1 returned None for row 1 \(an answer to prompt"):
        Ensemble([of(1.0, None, 1.0), of(None, None, 1.0)])(items)
    with pytest.raises(RewardError, match="0 returned None for every completion"):
        Ensemble([of(None, None, None)])(items)
    with pytest.raises(RewardError, match=r"the reward b gave nan for row 1"):
        Ensemble([of(1, 1, 1), lambda items: [0.0, math.nan, 0.0]], names=("a", "b"))(items)
    with pytest.raises(RewardError, match=r"the reward 0 gave an array of shape \(1,\) for 3"):
        Ensemble([lambda items: [0.0]])(items)
    with pytest.raises(UserError, match=r"reward_weights has 1 numbers for 2 rewards \(a, b\)"):
        RLHFConfig(reward=("a", "b"), reward_weights=(1.0,))
    with pytest.raises(UserError, match="reward_combine is lowest, and reward_weights is given"):
        RLHFConfig(reward=("a", "b"), reward_weights=(1.0, 1.0), reward_combine="lowest")


def test_metrics_have_short_distinct_names():
    names = ["m.n:f", "m.n:f", "lexicon", "/runs/best rm", "m:make.<locals>.g", "m:<lambda>"]
    found = Ensemble([lambda items: items] * 6, names=names).names
    assert found == ("m.n.f", "m.n.f-2", "lexicon", "best-rm", "m.make.locals.g", "m.lambda")


def test_what_names_a_function():
    assert is_function_name("mine:reward") and is_function_name("a.b:C.<locals>.f")
    for other in ("sentiment", "owner/name:part", "/runs/a:b", "mine:", "runs/rm", "C:/rm"):
        assert not is_function_name(other)


MODULE = """
    from pathlib import Path
    Path("imported").write_text("yes")
    number, broken = 3, [1]
    def good(completions, **columns): return [float(len(c)) for c in completions]
    def needs(completions, solution): return [0.0 for _ in completions]
    def blind(prompts): return [0.0 for _ in prompts]
    def ordered(completions, /): return [0.0 for _ in completions]
    class Kind:
        pass
"""


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nowhere:good", "there is no module 'nowhere' in the current folder or among"),
        ("rewarding:godo", "rewarding has no 'godo'; did you mean 'good'?"),
        ("rewarding:number", "the reward rewarding:number is the number 3; expected a function"),
        ("rewarding:Kind", "the reward rewarding:Kind is a class; expected a function"),
        (
            "rewarding:needs",
            "neither one of prompts, completions, completion_ids nor in data (its other columns: a",
        ),
        ("rewarding:blind", "takes no completions: it takes prompts; expected"),
        ("rewarding:ordered", "cannot be called by keyword"),
        ("failing:good", "cannot be imported: failing raised ZeroDivisionError: division by zero"),
        ("leaning:good", "cannot be imported: No module named 'nowhere' at"),
        ("runs/none", "reward is 'runs/none', which is no folder of a run; expected a run of"),
    ],
)
def test_rewards_that_do_not_fit_are_refused_before_anything_is_loaded(
    reward, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("rewarding", "failing", "leaning"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    (tmp_path / "rewarding.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "failing.py").write_text("1 / 0\n")
    (tmp_path / "leaning.py").write_text("import nowhere\n")
    if reward != "runs/none":
        loading = "tether.language.models.from_run.Setup.load_model"
        monkeypatch.setattr(loading, lambda *_: pytest.fail("loaded the model"))
    with pytest.raises(UserError) as raised:
        tether.train("rlhf", model=toy(), data=DATA, reward=reward, out="run", **SMALL)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def failing_at(call: int):
    """A function that works until its n-th call, and counts the lengths of the answers."""
    calls = []

    def reward(completions, level):
        calls.append(1)
        if len(calls) == call:
            raise ValueError("the judge is away")
        return [len(c) + 0.1 * n for c, n in zip(completions, level, strict=True)]

    return reward


def numbers(run: Any) -> list[dict[str, float]]:
    rows = read_metrics(Run.open(run).metrics_path)
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_an_error_loses_nothing_and_the_repaired_run_has_the_same_numbers(tmp_path):
    settings = {"data": DATA, "total_steps": 20, **SMALL}
    whole = tether.train(
        "rlhf", model=toy(), reward=failing_at(0), out=tmp_path / "whole", **settings
    )
    with pytest.raises(RewardError, match=r"the judge is away at .*iteration is saved"):
        tether.train("rlhf", model=toy(), reward=failing_at(3), out=tmp_path / "run", **settings)
    failed = Run.open(tmp_path / "run")
    assert failed.checkpoints()[0].stem.endswith("0008")
    assert len(numbers(tmp_path / "run")) == 2
    again = {"model": toy(), "data": DATA, "progress": False}
    # The very first call of this process fails: nothing is lost, and nothing is written twice.
    with pytest.raises(RewardError, match="the judge is away"):
        tether.resume(tmp_path / "run", reward=failing_at(1), **{**again, "model": toy()})
    resumed = tether.resume(tmp_path / "run", reward=failing_at(0), **again)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    assert len(numbers(tmp_path / "run")) == 5
    for one, other in zip(
        resumed.language_model.model.parameters(),
        whole.language_model.model.parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert "reward/" + __name__ + ".failing_at.locals.reward/mean" in resumed.metrics


def test_an_error_at_once_leaves_a_run_that_can_begin_anew(tmp_path):
    settings = {"data": DATA, "total_steps": 4, **SMALL}
    with pytest.raises(RewardError, match=r"of data\)$"):
        tether.train("rlhf", model=toy(), reward=failing_at(1), out=tmp_path / "run", **settings)
    given = {"model": toy(), "data": DATA, "progress": False}
    tether.resume(tmp_path / "run", reward=failing_at(0), **given)
    assert len(numbers(tmp_path / "run")) == 1


def test_a_resumed_run_asks_for_the_same_rewards_and_columns(tmp_path, folders):
    toy_rewards = RewardModel(toy())
    rewards = [length, "lexicon", toy_rewards]
    run = tmp_path / "run"
    settings = {"reward": rewards, "out": run, "total_steps": 4, **SMALL}
    tether.train("rlhf", model=folders["plain"], data=DATA, **settings)
    named = [
        f"{__name__}:length", "lexicon", "tether.language.models.reward_model:RewardModel"
    ]  # fmt: skip
    assert Run.open(run).config["reward"] == named
    metrics = numbers(run)[0]
    for name in ("test_language_reward_functions.length", "lexicon"):
        assert {f"reward/{name}/mean", f"reward/{name}/std"} <= {*metrics}

    def resume(reward, data=DATA):
        given = {} if reward is None else {"reward": reward}
        return tether.resume(run, data=data, total_steps=8, progress=False, **given)

    with pytest.raises(UserError, match="which its folder does not hold; pass the same again"):
        resume(None)
    for wrong in ([prompted, "lexicon", toy_rewards], [toy_rewards, length], [length], "lexicon"):
        with pytest.raises(UserError, match=r"was rewarded by .* and reward is .* same order"):
            resume(wrong)
    with pytest.raises(UserError, match="RewardModel is no longer what it was"):
        resume([length, RewardModel(toy(), seed=1)])
    changed = [{**row, "answer": "x"} for row in DATA]
    with pytest.raises(UserError, match="a column of the data is no longer what it was"):
        resume([length, toy_rewards], changed)
    assert resume([length, toy_rewards]).steps == 8
    again = tether.resume(run, data=DATA, reward=rewards, total_steps=12, progress=False)
    assert again.steps == 12


def test_a_function_of_the_program_itself_is_known_by_its_name_alone():
    recorded = ("__main__:reward", "sentiment")

    def reward(completions):
        return [0.0 for _ in completions]

    for module, fits in (("training", True), ("__main__", True)):
        reward.__module__, reward.__qualname__ = module, "reward"
        found = GivenRewards.again(recorded, reward, "run")
        assert found.objects[0].function is reward and found.names == recorded and fits
    with pytest.raises(UserError, match="was rewarded by training:reward, and reward is other:rew"):
        reward.__module__ = "other"
        GivenRewards.again(("training:reward",), reward, "run")


def test_the_commands_take_functions_and_no_record_imports_anything(
    tether_, folders, tmp_path, monkeypatch
):
    import sys

    monkeypatch.delitem(sys.modules, "rewarding", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "rewarding.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    shared = ["--model", folders["plain"], "--data", "data.jsonl"]
    small = ["--batch-size", "4", "--minibatch-size", "4", "--max-new-tokens", "4", "--quiet"]
    rewards = ["--reward", "rewarding:good", "lexicon", "--reward-weights", "0.1", "2"]
    made = tether_("rlhf", *shared, *rewards, *small, "--total-steps", "4", "--out", "run")
    assert made.code == 0, made.err
    (row,) = numbers("run")
    expected = 0.1 * row["reward/rewarding.good/mean"] + 2 * row["reward/lexicon/mean"]
    assert row["reward/mean"] == pytest.approx(expected)
    (tmp_path / "imported").unlink()
    del sys.modules["rewarding"]
    refused = tether_("resume", "run", "--total-steps", "8")
    assert refused.code == 2
    assert "tether resume run --reward rewarding:good, or reward= in Python" in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "imported").exists()
    resumed = ("resume", "run", "--total-steps", "8", "--quiet", "--reward", "rewarding:good")
    assert tether_(*resumed).code == 0
    assert len(numbers("run")) == 2


def test_several_seeds_record_no_name_that_a_resumption_would_import(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "rewarding", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rewarding.py").write_text(textwrap.dedent(MODULE))
    settings = {"data": DATA, "out": "seeds", "seeds": [0, 1], "total_steps": 4, **SMALL}
    made = tether.train("rlhf", model="tiny", limit=4, reward="rewarding:good", **settings)
    assert [run.steps for run in made.runs] == [4, 4]
    record = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    assert "reward" in record["objects"] and "rewarding" not in json.dumps(record["arguments"])
    for name in ("seed-1", "seed-1/run.json"):
        assert (tmp_path / "seeds" / name).exists()
    (tmp_path / "seeds" / "seed-1").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="reward as an object"):
        tether.resume("seeds")
    with pytest.raises(UserError, match="was rewarded by rewarding:good"):
        tether.resume("seeds/seed-0", data=DATA)
    again = tether.resume("seeds", data=DATA, reward="rewarding:good", progress=False)
    assert [run.steps for run in again.runs] == [4, 4]
    assert numbers("seeds/seed-1") == numbers("elsewhere")


def test_without_a_reward_it_says_what_fits(tether_, folders):
    for command in ("rlhf", "best-of-n"):
        refused = tether_(command, "--model", folders["plain"], "--data", folders["prompts"])
        assert refused.code == 2
        assert refused.err == (
            "tether: no reward is given; expected --reward with a run of `tether reward`, "
            "sentiment or lexicon (for film reviews), judge:NAME (a language model that judges), "
            "or module:function (a Python function of prompts and completions)\n"
        )
    assert RLHFConfig().with_default("movie-reviews").reward == ("sentiment",)
    assert RLHFConfig(reward="lexicon").with_default("movie-reviews").reward == ("lexicon",)
    with pytest.raises(UserError, match="reward is given, and dpo has none"):
        tether.train("dpo", model=toy(), data=DATA, reward=length)
    # What earlier versions recorded.
    old = RLHFConfig.load({**RLHFConfig().dump(), "reward": ["sentiment"]}, recorded=True)
    assert old.reward == ("sentiment",)


def test_best_of_n_is_chosen_and_judged_by_functions(tether_, folders, tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "judging", raising=False)
    (tmp_path / "judging.py").write_text(
        "def level(completions, level): return [n + len(c) for c, n in zip(completions, level)]\n"
        "def answer(answer, **given): return [ord(a) for a in answer]\n"
    )
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    made = tether_(
        *("best-of-n", "--model", folders["plain"], "--data", "data.jsonl", "--n", "3"),
        *("--reward", "judging:level", "--gold", "judging:answer", "--max-new-tokens", "4"),
    )
    assert made.code == 0, made.err
    lines = [json.loads(line) for line in (tmp_path / "best-of-n.jsonl").read_text().splitlines()]
    assert [line["gold"] for line in lines] == [ord(row["answer"]) for row in DATA]
    for line, row in zip(lines, DATA, strict=True):
        assert line["score"] == max(line["scores"]) == row["level"] + len(line["completion"])


def test_best_of_n_from_python_takes_functions_and_their_columns():
    model = toy()
    prompts = ["The answer is", "A cat"]
    ids = [model.tokenizer(text)["input_ids"] for text in prompts]

    def reward(prompts, completions, wanted):
        rows = zip(prompts, completions, wanted, strict=True)
        return [len(p) + 100 * w + c.count("a") for p, c, w in rows]

    scorer = score_function(model.tokenizer, reward, prompts=prompts, wanted=[1, 2])
    found = best_of_n(model, ids, scorer, 3, max_new_tokens=4)
    for base, row, scores in zip((113, 205), found.candidates, found.candidate_scores, strict=True):
        texts = [model.tokenizer.decode(c.completion_ids, skip_special_tokens=True) for c in row]
        assert scores.tolist() == [base + text.count("a") for text in texts]
    # Without their texts, prompts are what their tokens say.
    plain = score_function(model.tokenizer, lambda prompts, completions: list(map(len, prompts)))
    assert best_of_n(model, ids, plain, 2, max_new_tokens=2).scores.tolist() == [13, 5]
    with pytest.raises(UserError, match=r"nor in what is given \(no other columns\)"):
        score_function(model.tokenizer, reward)
    with pytest.raises(UserError, match="wanted has 1 values for 2 prompts"):
        score_function(model.tokenizer, reward, prompts=prompts, wanted=[1])
    with pytest.raises(UserError, match="wanted is given without prompts"):
        score_function(model.tokenizer, reward, wanted=[1, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "rloo", "critic": "separate"}, "critic is separate, which estimator 'rloo'"),
        ({"estimator": "grpo", "value_epsilon": None}, "value_epsilon is None"),
        ({"estimator": "reinforce", "lam": 0.5}, "lam is 0.5"),
        ({"estimator": "rloo", "whiten_advantage": False}, "choose estimator gae or reinforce"),
        ({"kl_estimator": "k2"}, "which estimator 'gae' does not use; leave it out, or choose est"),
        ({"critic": "separate", "value_coefficient": 0.5}, "which critic 'separate' does not use"),
        ({"kl_target": 3.0}, "choose kl_controller adaptive"),
        ({"pretraining_data": "x"}, "which pretraining_coefficient 0.0 does not use"),
    ],
)
def test_settings_of_rlhf_that_do_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RLHFConfig(samples_per_prompt=4, **settings)


def test_a_rank_above_the_adapted_layers_is_refused(tether_, folders):
    made = tether_(
        *("sft", "--model", folders["plain"], "--data", folders["questions"], "--out", "run"),
        *("--lora", "100000"),
    )
    assert made.code == 2
    assert "lora is 100000, and the smallest dimension of the adapted layers of" in made.err
    assert made.err.count("\n") == 1
