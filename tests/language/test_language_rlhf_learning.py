"""RLHF learns: the score rises, the tether holds, and the critic is the one that was asked for."""

import math

import numpy as np
import pytest
import torch
from rlhf_toys import (
    EOS,
    LIKED,
    PROMPTS,
    count_liked,
    episodes_of,
    exact,
    gradient_of,
    learner,
    llama,
    moved,
    wrapped,
)

from tether.errors import UserError
from tether.language.data.tokens import Completion, collate
from tether.language.models.logprobs import hidden_states
from tether.language.models.reward_model import RewardModel


@pytest.mark.parametrize(
    ("settings", "lora", "least"),
    [
        ({}, False, 3.5),
        ({"critic": "separate"}, False, 3.5),
        # Two ranks beside one frozen layer and a frozen head cannot say everything.
        ({}, True, 1.5),
        ({"estimator": "reinforce"}, False, 3.5),
        ({"estimator": "rloo", "samples_per_prompt": 4}, False, 3.5),
        ({"estimator": "grpo", "samples_per_prompt": 4, "kl_estimator": "k2"}, False, 3.5),
    ],
    ids=["ppo", "ppo separate", "ppo lora", "reinforce", "rloo", "grpo"],
)
def test_the_expected_score_rises(settings, lora, least):
    """Say token 3 as often as you can, and end."""
    made = learner(
        wrapped(llama(), lora=lora),
        total_steps=1600,
        missing_eos_score=-1.0,
        **{"batch_size": 64, "minibatch_size": 32, "micro_batch_size": 32, **settings},
    )
    scores, totals = [], []
    for _ in range(25):
        metrics = made.iterate()
        scores.append(metrics["reward/mean"])
        totals.append(metrics["reward/total"])
    assert np.mean(scores[:2]) < 0.6
    assert np.mean(scores[-3:]) > least
    assert np.mean(totals[-3:]) > np.mean(totals[:2]) + 0.5 * least


def divergences(seed, **settings):
    """KL of a sequence in each of 60 iterations in which leaving the reference pays."""
    made = learner(
        wrapped(llama(seed)),
        seed=seed,
        total_steps=64 * 60,
        batch_size=64,
        minibatch_size=64,
        micro_batch_size=64,
        max_new_tokens=3,
        estimator="rloo",
        samples_per_prompt=8,
        learning_rate=6e-3,
        schedule="constant",
        missing_eos_score=None,
        beta=0.3,
        **settings,
    )
    return [made.iterate()["kl/sequence"] for _ in range(60)]


@pytest.mark.parametrize("seed", range(5))
def test_the_adaptive_controller_holds_the_divergence_of_a_sequence(seed):
    found = divergences(seed, kl_controller="adaptive", kl_target=1.0, kl_horizon=256.0)
    assert 0.75 < np.mean(found[-30:]) < 1.25


def test_without_the_controller_the_same_problem_ends_far_away():
    assert np.mean(divergences(0)[-30:]) > 3.0


def test_a_fixed_coefficient_stays_and_an_adaptive_one_follows_zieglers_rule():
    made = learner(missing_eos_score=None)
    for _ in range(3):
        assert made.iterate()["kl/coefficient"] == 0.05
    made = learner(missing_eos_score=None, kl_controller="adaptive", kl_target=2.0, kl_horizon=80)
    expected = 0.05
    for _ in range(3):
        metrics = made.iterate()
        assert metrics["kl/coefficient"] == pytest.approx(expected, rel=1e-12)
        error = min(max(metrics["kl/sequence"] / 2.0 - 1.0, -0.2), 0.2)
        expected *= 1.0 + error * 16 / 80


def test_a_shared_critic_pulls_at_the_trunk_and_a_separate_one_leaves_the_policy_alone():
    def trunk_gradient(value_coefficient, **settings):
        made = moved(learner(exact(), missing_eos_score=None, **settings))
        # Past the check that refuses a weight which a separate critic does not use.
        weight = {"value_coefficient": value_coefficient}
        made.updater.config = made.updater.config.model_copy(update=weight)
        episodes = made.collector.collect()
        return gradient_of(made, episodes)

    key = "model.transformer.h.0.mlp.c_fc.weight"
    without = trunk_gradient(value_coefficient=0.0)
    shared = trunk_gradient(value_coefficient=0.5)
    assert (shared[key] - without[key]).abs().max() > 1e-3
    separate = trunk_gradient(value_coefficient=0.5, critic="separate")
    none = trunk_gradient(value_coefficient=0.0, critic="separate")
    torch.testing.assert_close(separate[key], none[key], rtol=0, atol=0)
    assert separate["critic.model.transformer.h.0.mlp.c_fc.weight"].abs().max() > 1e-4
    assert "critic.head.weight" in separate


@pytest.mark.parametrize("value_epsilon", [None, 0.2])
def test_scores_in_larger_units_do_not_let_the_critic_take_over_the_trunk(value_epsilon):
    def gradient(unit):
        made = learner(
            exact(),
            scorer=lambda items: unit * np.asarray(count_liked(items), float),
            missing_eos_score=None,
            value_coefficient=0.5,
            value_epsilon=value_epsilon,
            beta=0.0,
        )
        with torch.no_grad():
            # A critic that has found the scale of the scores, and is wrong in proportion.
            weight = made.critic.head.weight
            weight.copy_(unit * torch.linspace(-1.0, 1.0, weight.numel()).view_as(weight))
        return gradient_of(made, made.collector.collect())

    hundred, thousand = gradient(100.0), gradient(1000.0)
    for name, one in hundred.items():
        if not name.startswith("critic."):
            torch.testing.assert_close(thousand[name], one, rtol=1e-4, atol=1e-7)
    assert hundred["model.transformer.h.0.mlp.c_fc.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("lora", [False, True])
def test_a_separate_critic_shares_no_parameter_that_learns_and_copies_none_that_does_not(lora):
    made = learner(wrapped(llama(), lora=lora), critic="separate")
    policy = dict(made.language_model.model.named_parameters())
    critic = dict(made.critic.model.named_parameters())
    assert policy.keys() == critic.keys()
    for name, parameter in policy.items():
        same = parameter.data_ptr() == critic[name].data_ptr()
        assert same == (not parameter.requires_grad or name == "lm_head.weight"), name
    assert not made.critic.head.weight.any()
    assert made.critic.model.lm_head.weight.requires_grad is False
    assert made.language_model.model.lm_head.weight.requires_grad is not lora


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("members", [1, 2])
def test_a_critic_can_begin_as_the_reward_model(lora, members):
    rewarding = RewardModel(exact(9, lora=lora), members=members, seed=4)
    with torch.no_grad():
        for parameter in rewarding.language_model.trainable_parameters():
            parameter.add_(0.1)
    rewarding.gain, rewarding.bias = np.full(members, 2.0), np.full(members, -0.3)
    made = learner(exact(), scorer=rewarding, critic="separate", critic_start="reward")
    item = Completion((2, 4), (5, LIKED, 6))
    batch = collate([Completion((2, 4), (5, LIKED, 6, EOS))], pad_id=0)
    value = made.critic(batch, hidden_states(made.language_model, batch))
    # The state in which the next token is chosen is the one after the last that was.
    expected = rewarding.member_scores([item])[0, 0]
    assert float(value[0, 3].detach()) == pytest.approx(expected, rel=1e-6)
    assert expected != rewarding.member_scores([item], raw=True)[0, 0]
    kept = rewarding.member_scores([item])
    made.iterate()
    assert np.array_equal(kept, rewarding.member_scores([item]))


def test_a_reward_model_must_be_there_and_read_the_policys_tokens():
    with pytest.raises(UserError, match="the scorer is no reward model"):
        learner(critic="separate", critic_start="reward")
    other = RewardModel(wrapped(llama(vocabulary=12)))
    with pytest.raises(UserError, match="has 8 tokens and the reward model 'miniature' 12"):
        learner(scorer=other)


def test_adapters_move_and_nothing_else_and_the_reference_is_the_model_without_them():
    model = wrapped(llama(), lora=True)
    made = learner(model, missing_eos_score=None)
    before = {n: p.clone() for n, p in model.model.named_parameters()}
    base = llama()
    for _ in range(2):
        metrics = made.iterate()
    assert metrics["kl/sequence"] != 0.0
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
    ids = torch.tensor([[2, 5, 6]])
    reference = made.updater.reference
    hidden = reference.hidden_states(ids, torch.ones_like(ids).bool(), torch.arange(3)[None])
    assert torch.equal(reference.head(hidden), base.eval()(ids).logits)
    assert all(p.requires_grad == ("lora_" in n) for n, p in model.model.named_parameters())


def test_a_reward_model_teaches_and_stays_as_it_was():
    rewarding = RewardModel(wrapped(llama(7)), seed=1)
    samples = learner(missing_eos_score=None).collector.collect().completions
    rewarding.normalize(samples)
    made = learner(
        scorer=rewarding,
        missing_eos_score=None,
        batch_size=64,
        minibatch_size=32,
        micro_batch_size=32,
        total_steps=64 * 15,
    )
    before = [p.clone() for p in rewarding.language_model.model.parameters()]
    rewards = [made.iterate()["reward/mean"] for _ in range(15)]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:2]) + 0.5
    for parameter, old in zip(rewarding.language_model.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None


def test_the_learning_rate_falls_to_zero_and_the_metrics_are_those_promised():
    made = learner(missing_eos_score=None, total_steps=48, learning_rate=0.01)
    rows = [made.iterate() for _ in range(3)]
    assert [row["optimizer/learning_rate"] for row in rows] == pytest.approx(
        [0.01, 0.01 * 2 / 3, 0.01 / 3]
    )
    promised = {
        "reward/mean",
        "reward/total",
        "kl/sequence",
        "kl/coefficient",
        "policy/approx_kl",
        "policy/clip_fraction",
        "policy/entropy",
        "policy/first_ratio",
        "value/loss",
        "value/explained_variance",
        "tokens/length",
        "episode/eos_fraction",
        "time/tokens_per_second",
        "optimizer/gradient_norm",
    }
    assert promised <= rows[0].keys()
    assert all(math.isfinite(row[name]) for row in rows for name in promised)
    lengths = [len(s.completion.completion_ids) for s in made.samples]
    assert rows[-1]["tokens/length"] == np.mean(lengths)
    ended = [s.completion.completion_ids[-1] == EOS for s in made.samples]
    assert rows[-1]["episode/eos_fraction"] == np.mean(ended)
    scores = count_liked([s.completion for s in made.samples])
    assert rows[-1]["reward/mean"] == scores.mean()
    kl = np.mean([s.kl for s in made.samples])
    assert rows[-1]["kl/sequence"] == pytest.approx(kl, rel=1e-6)
    assert rows[-1]["reward/total"] == pytest.approx(scores.mean() - 0.05 * kl, rel=1e-5)
    assert made.steps == 48 and made.updater.pretrained == 0
    assert {s.completion.prompt_ids for s in made.samples} <= {p.prompt_ids for p in PROMPTS}


def test_the_entropy_is_that_of_the_distributions_the_tokens_came_from():
    made = learner(exact(), missing_eos_score=None, temperature=0.6, ppo_epochs=1)
    episodes = episodes_of([Completion((2, 4), (5, LIKED, 6, EOS))])
    measured = made.updater.measure(episodes, [[0]])
    batch = collate(episodes.completions, pad_id=0)
    hidden = batch.at_sources(hidden_states(made.language_model, batch))
    p = torch.softmax(made.language_model.head(hidden) / 0.6, -1)
    expected = -(p * p.log()).sum(-1)
    torch.testing.assert_close(measured.entropy[0], expected, rtol=1e-10, atol=1e-12)
