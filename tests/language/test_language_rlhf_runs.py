"""RLHF as a run: resumed to the last bit, samples kept, mistakes told in one line."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_models import language_model
from rlhf_toys import (
    EOS,
    KINDS,
    LIKED,
    PROMPTS,
    TEXTS,
    count_liked,
    exact,
    learner,
    llama,
    wrapped,
)

from tether.errors import NonFiniteError, UserError
from tether.language.data.tokens import Completion, Prompt
from tether.language.learners import means as averaging
from tether.language.learners.means import Means
from tether.language.learners.sample_table import read_samples
from tether.language.methods.rlhf.learner import RLHFConfig
from tether.language.methods.rlhf.rewards import Ensemble, check_readable, warn_of_scale
from tether.language.models.reward_model import RewardModel
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run


@pytest.mark.parametrize(
    ("kind", "lora"),
    [*((kind, False) for kind in KINDS), ("shared critic", True), ("separate critic", True)],
)
def test_resumed_is_the_same_to_the_last_bit(kind, lora, tmp_path):
    settings = {
        "missing_eos_score": None,
        "normalize_score": True,
        "kl_controller": "adaptive",
        "kl_horizon": 50.0,
        "kl_target": 0.5,
        **KINDS[kind],
    }

    def make():
        return learner(wrapped(llama(), lora=lora), pretraining=TEXTS, **settings)

    def train(folder, budgets):
        for budget in budgets:
            made = make()
            if (tmp_path / folder).exists():
                run = Run.open(tmp_path / folder)
            else:
                run = Run.create(tmp_path / folder, method="rlhf", config={}, spec={})
            run.resume(made)
            run.train(made, budget, callbacks=made.callbacks(), progress=False, sinks=())
        rows = read_metrics(tmp_path / folder)
        return made, [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]

    whole, metrics = train("whole", [80])
    parts, metrics_again = train("parts", [32, 80])
    assert repr(metrics) == repr(metrics_again)
    assert len({row["kl/coefficient"] for row in metrics}) == 5
    for name, module in whole.modules.items():
        for key, parameter in module.named_parameters():
            other = dict(parts.modules[name].named_parameters())[key]
            assert torch.equal(parameter, other), key
    assert read_samples(tmp_path / "whole") == read_samples(tmp_path / "parts")
    assert whole.beta == parts.beta != whole.config.beta


def test_samples_are_kept_and_taken_back_with_the_iterations_of_a_lost_run(tmp_path):
    made = learner(missing_eos_score=None)
    run = Run.create(tmp_path / "run", method="rlhf", config={}, spec={})
    run.train(made, 32, callbacks=made.callbacks(), progress=False, sinks=())
    path = tmp_path / "run" / "samples.jsonl"
    rows = read_samples(tmp_path / "run")
    assert [row["step"] for row in rows] == [16] * 4 + [32] * 4
    sample, row = made.samples[0], rows[4]
    assert tuple(row["completion_ids"]) == sample.completion.completion_ids
    assert row["score"] == sample.completion.completion_ids.count(LIKED)
    assert row["finished"] == (sample.completion.completion_ids[-1] == EOS)
    later = json.dumps({**row, "step": 48})
    path.write_text(path.read_text() + later + "\n" + later[:20])
    made = learner(missing_eos_score=None)
    run = Run.open(tmp_path / "run")
    run.resume(made)
    run.train(made, 48, callbacks=made.callbacks(), progress=False, sinks=())
    steps = [row["step"] for row in read_samples(path)]
    assert steps == [16] * 4 + [32] * 4 + [48] * 4


def test_every_prompt_is_met_before_any_is_met_again_whatever_the_batch():
    met = []
    made = learner(exact(), batch_size=8, samples_per_prompt=2, prompts=PROMPTS)
    texts = []
    for _ in range(2):
        episodes = made.collector.collect()
        assert episodes.prompts.reshape(-1, 2).tolist() == [[p, p] for p in episodes.prompts[::2]]
        met.extend(episodes.prompts[::2].tolist())
        texts.extend(item.completion_ids for item in episodes.completions)
    assert sorted(met[:4]) == sorted(met[4:]) == [0, 1, 2, 3]
    other = learner(exact(), batch_size=16, samples_per_prompt=2, prompts=PROMPTS)
    assert [i.completion_ids for i in other.collector.collect().completions] == texts
    assert len(set(texts)) > 8


def test_a_score_or_loss_that_is_not_a_number_names_step_and_rows():
    def spoiled(items):
        scores = count_liked(items)
        return np.where(np.arange(len(items)) == 5, math.nan, scores)

    made = learner(scorer=spoiled)
    with pytest.raises(NonFiniteError, match=r"score became nan at step 0 in rows 5 of the roll"):
        made.iterate()
    assert made.steps == 0
    made = learner(missing_eos_score=None)
    made.iterate()
    episodes = made.collector.collect()
    measured = made.updater.measure(episodes, [list(range(16))])
    estimate = made.estimate(16, episodes, measured, made.score(episodes))
    advantage = estimate.advantage.clone()
    advantage[[3, 7], 0] = math.inf
    estimate = estimate._replace(advantage=advantage)
    before = [p.clone() for p in made.language_model.model.parameters()]
    epochs = made.updater.minibatches()
    with pytest.raises(NonFiniteError, match=r"loss became .* at step 16 in rows [37]"):
        made.updater.run(16, episodes, measured, estimate, 0.1, [[list(range(16))], *epochs])
    for parameter, old in zip(made.language_model.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None
    with torch.no_grad():
        next(iter(made.language_model.model.parameters()))[LIKED] = math.nan
    with pytest.raises(NonFiniteError, match=r"at step"):
        made.estimate(
            16, episodes, made.updater.measure(episodes, [list(range(16))]), made.score(episodes)
        )


def test_nothing_moves_where_the_critics_gradient_is_no_number(monkeypatch):
    made = learner(critic="separate")
    before = [p.clone() for m in made.modules.values() for p in m.parameters()]
    monkeypatch.setattr(made.updater.optimizers[1], "clip", lambda: math.inf)
    with pytest.raises(NonFiniteError, match="the gradient's norm became inf at step 0, from rows"):
        made.iterate()
    after = [p for m in made.modules.values() for p in m.parameters()]
    assert all(map(torch.equal, after, before)) and all(p.grad is None for p in after)


def test_numbers_and_tensors_are_averaged_apart(monkeypatch):
    """What is on a GPU cannot be stacked with what is not."""
    stacked = []

    def spy(tensors):
        stacked.extend(tensors)
        return torch.stack(tensors)

    monkeypatch.setattr(averaging, "stack", spy)
    metrics = learner(critic="separate").iterate()
    assert metrics["optimizer/gradient_norm"] > 0 < metrics["value/gradient_norm"]
    # The divergence, the clipped share, the value loss: what the model computed.
    assert len(stacked) == 3
    means = Means()
    for number, count in ((2.0, 1), (torch.tensor(4.0), 2), (3.0, 1)):
        means.add("mixed", number, count)
        means.add("number", 1.5)
    assert means.read() == {"mixed": 9 / 4, "number": 1.5}


def test_a_fixed_score_is_off_and_warned_of_beside_scores_of_another_level(caplog):
    assert RLHFConfig().missing_eos_score is None
    fixed = {"missing_eos_score": -1.0, "reward": ("sentiment",)}
    for settings in ({**fixed, "normalize_score": True}, {**fixed, "reward": ("runs/r",)}):
        warn_of_scale(RLHFConfig(**settings))
    assert not caplog.records
    warn_of_scale(RLHFConfig(**fixed))
    assert "beside scores of sentiment as they are" in caplog.text


def test_equal_scores_cannot_be_normalized():
    def flat(items):
        return np.full(len(items), 0.1)

    assert np.full(64, 0.1).std() > 0
    settings = {"batch_size": 64, "minibatch_size": 32, "normalize_score": True}
    with pytest.raises(UserError, match=r"first 64 completions all score 0\.1"):
        learner(scorer=flat, **settings).iterate()


def test_a_reward_is_a_name_or_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sentiment", "reward"):
        (tmp_path / name).mkdir()
    assert RLHFConfig(reward="sentiment").reward == ("sentiment",)
    assert RLHFConfig(reward=["reward", "x"]).reward == (str(tmp_path / "reward"), "x")
    assert RLHFConfig(reward=tmp_path / "reward").reward == (str(tmp_path / "reward"),)
    with pytest.raises(UserError, match="reward"):
        RLHFConfig(reward=3)


def test_a_reward_model_of_other_tokens_is_refused():
    policy, reader = language_model(), language_model()
    check_readable(RewardModel(reader), policy, 8)
    words = {f"v{i}": i for i in range(97)}
    tokenizer = SimpleNamespace(get_vocab=lambda: words)
    for change in ({"tokenizer": tokenizer}, {"eos_id": 9}):
        with pytest.raises(UserError, match="they are not the same; expected one vocabulary"):
            check_readable(RewardModel(dataclasses.replace(reader, **change)), policy, 8)


def test_an_ensemble_is_the_mean_or_the_lowest():
    items = [Completion((2,), (LIKED, EOS)), Completion((2,), (EOS,))]
    both = [count_liked, lambda items: [0.5 for _ in items]]
    assert Ensemble(both)(items).tolist() == [0.75, 0.25]
    assert Ensemble(both, "lowest")(items).tolist() == [0.5, 0.0]
    with pytest.raises(UserError, match="no scorers"):
        Ensemble([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10, "minibatch_size": 4}, "does not divide batch_size=10"),
        ({"estimator": "grpo"}, "samples_per_prompt is 1; expected at least 2"),
        ({"critic_start": "reward"}, "needs a trunk of the critic's own"),
        ({"kl_controller": "adaptive", "beta": 0.0}, "beta=0 cannot be adapted"),
        ({"kl_controller": "adaptive", "kl_horizon": 32}, "kl_horizon=32 is below batch_size=64"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RLHFConfig(**settings)


def test_what_does_not_fit_is_told_before_anything_runs():
    with pytest.raises(UserError, match=r"data\[1\] has 30 tokens, and max_new_tokens is 6"):
        learner(prompts=[Prompt((2,)), Prompt((2,) * 30)])
    with pytest.raises(UserError, match="reward is 'nowhere', which is no folder of a run"):
        learner(scorer=None, reward=("nowhere",))
    for stop in (-1, 8):
        with pytest.raises(UserError, match=f"stop_ids holds {stop}; expected ids of tokens, 0"):
            learner(stop_ids=(stop,))
    with pytest.raises(UserError, match=r"shape \(16, 1\) for 16 completions"):
        learner(scorer=lambda items: count_liked(items)[:, None]).iterate()
    with pytest.raises(UserError, match="pretraining is empty"):
        learner(pretraining=[], pretraining_coefficient=1.0)
