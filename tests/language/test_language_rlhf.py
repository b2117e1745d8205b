"""RLHF's arithmetic: rewards, ratios, masks, estimators, expected gradients."""

import math
import time

import numpy as np
import pytest
import torch
from rlhf_toys import (
    EOS,
    KINDS,
    LIKED,
    TEXTS,
    episodes_of,
    everything,
    exact,
    gradient_of,
    gradients,
    learner,
    llama,
    moved,
    plain_log_probs,
    wrapped,
)

from tether import objectives
from tether.errors import UserError
from tether.language.data.tokens import Completion, Prompt, collate
from tether.language.learners.means import Means
from tether.language.learners.rollout import shuffled
from tether.language.methods.rlhf import advantages
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.models.logprobs import token_log_probs
from tether.learning.seeding import Stream


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_rewards_of_an_episode_sum_to_its_score_minus_its_price(temperature):
    made = moved(learner(exact(), temperature=temperature, missing_eos_score=-1.5, beta=0.3))
    episodes = made.collector.collect()
    assert 0 < episodes.finished.sum() < len(episodes.finished)
    measured = made.updater.measure(episodes, made.updater.minibatches()[0])
    reward = advantages.token_rewards(
        measured.log_prob,
        measured.reference_log_prob,
        made.score(episodes),
        made.beta,
        measured.mask,
    )
    for row, item in enumerate(episodes.completions):
        pi = plain_log_probs(made.language_model, item, temperature).sum().detach()
        ref = plain_log_probs(made.updater.reference, item, temperature).sum()
        score = episodes.scores[row] if item.finished else -1.5
        assert float(reward[row].sum()) == pytest.approx(score - 0.3 * float(pi - ref), abs=1e-9)
        assert abs(float(pi - ref)) > 1e-3
        assert not reward[row, len(item.completion_ids) :].any()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_one_to_the_last_bit(kind, lora):
    settings = {"micro_batch_size": 5, "missing_eos_score": None, **KINDS[kind]}
    made = learner(wrapped(llama(), lora=lora), pretraining=TEXTS, **settings)
    for _ in range(3):
        metrics = made.iterate()
        assert metrics["policy/first_ratio"] == 1.0
        assert metrics["policy/approx_kl"] > 0.0
    made = learner(
        wrapped(llama(), lora=lora),
        pretraining=TEXTS,
        **{**settings, "ppo_epochs": 1, "minibatch_size": 16},
    )
    for iteration in range(3):
        metrics = made.iterate()
        assert metrics["policy/first_ratio"] == 1.0
        assert metrics["policy/approx_kl"] == 0.0
        assert metrics["policy/clip_fraction"] == 0.0
        assert (metrics["kl/sequence"] == 0.0) == (iteration == 0)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_padding_changes_nothing(kind, junk):
    settings = {"missing_eos_score": None, **KINDS[kind]}
    made = moved(learner(exact(), pretraining=TEXTS, seed=1, **settings))
    episodes = made.collector.collect()
    rows = list(range(16))
    measured = made.updater.measure(episodes, [rows])
    assert not measured.mask.all()
    score = made.score(episodes)
    estimate = made.estimate(0, episodes, measured, score)
    expected = gradient_of(made, episodes, measured=measured, estimate=estimate)

    def spoiled(tensor):
        return torch.where(measured.mask, tensor, junk)

    bad = measured._replace(
        **{name: spoiled(t) for name, t in measured._asdict().items() if name != "mask"}
    )
    again = made.estimate(0, episodes, bad, score)
    for one, other in zip(estimate, again, strict=True):
        assert torch.equal(one[measured.mask], other[measured.mask])
    bad_estimate = advantages.Estimate(*(spoiled(t) for t in estimate))
    found = gradient_of(made, episodes, measured=bad, estimate=bad_estimate)
    object.__setattr__(made.language_model, "pad_id", 6)
    other_pad = gradient_of(made, episodes, measured=measured, estimate=estimate)
    assert expected and any(g.abs().max() > 1e-6 for g in expected.values())
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name])
        torch.testing.assert_close(gradient, other_pad[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalization", ["token", "episode"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_micro_batches_changes_no_gradient(kind, normalization):
    found = []
    for size in (16, 5, 1):
        settings = {"missing_eos_score": None, "normalization": normalization, **KINDS[kind]}
        made = moved(learner(exact(), pretraining=TEXTS, micro_batch_size=size, **settings))
        episodes = made.collector.collect()
        gradient_of(made, episodes)
        if made.config.pretraining_coefficient:
            made.updater._pretrain(Means())
        found.append(gradients(made))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-9, atol=1e-12)


def test_gae_at_lambda_one_is_the_return_minus_the_value():
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([7, 1, 3, 6, 2])
    mask = torch.arange(7) < lengths[:, None]
    spoiled = torch.where(mask, value, math.nan)
    found = advantages.actor_critic(reward, spoiled, mask, gamma=1.0, lam=1.0)
    zero_step = advantages.actor_critic(reward, spoiled, mask, gamma=1.0, lam=0.0)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            expected = reward[row, t:length].sum() - value[row, t]
            assert float(found.advantage[row, t]) == pytest.approx(float(expected), abs=1e-12)
            after = value[row, t + 1] if t + 1 < length else 0.0
            error = reward[row, t] + after - value[row, t]
            assert float(zero_step.advantage[row, t]) == pytest.approx(float(error), abs=1e-12)
    expected = torch.where(mask, found.advantage + value, 0.0)
    torch.testing.assert_close(found.target, expected)


def exact_objective(made, prompt, longest, scores):
    """E[score] - beta KL(pi || ref), by enumeration, differentiable."""
    total = torch.zeros((), dtype=torch.float64)
    mass = 0.0
    for item in everything(prompt, 4, longest):
        pi = plain_log_probs(made.language_model, item, 0.8).sum()
        with torch.no_grad():
            ref = plain_log_probs(made.updater.reference, item, 0.8).sum()
        total = total + pi.exp() * (scores(item) - made.beta * (pi - ref))
        mass += float(pi.exp())
    assert mass == pytest.approx(1.0)
    return total


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "reinforce"},
        {"estimator": "gae", "lam": 1.0, "value_coefficient": 0.0},
        {"estimator": "gae", "lam": 1.0, "critic": "separate"},
    ],
    ids=["reinforce", "gae shared", "gae separate"],
)
def test_the_expected_gradient_is_that_of_score_minus_kl(settings):
    """All 40 completions of 4 tokens, 3 long: what k1 in the reward estimates, and a baseline."""
    made = learner(
        exact(vocabulary=4),
        prompts=[Prompt((2, 0))],
        whiten_advantage=False,
        normalization="episode",
        temperature=0.8,
        max_new_tokens=3,
        beta=0.4,
        missing_eos_score=None,
        **settings,
    )
    moved(made)

    def score(item):
        return float(np.sin(3.0 * item.completion_ids[0]) + 0.7 * sum(item.completion_ids))

    objective = exact_objective(made, (2, 0), 3, score)
    parameters = dict(made.language_model.model.named_parameters())
    expected = dict(
        zip(
            parameters,
            torch.autograd.grad(objective, list(parameters.values())),
            strict=True,
        )
    )
    found = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for item in everything((2, 0), 4, 3):
        probability = plain_log_probs(made.language_model, item, 0.8).sum().exp().detach()
        gradient = gradient_of(made, episodes_of([item], [score(item)]))
        for name in found:
            # What is minimized is minus the objective.
            found[name] -= probability * gradient[f"model.{name}"]
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_grpos_penalty_has_the_gradient_of_its_divergence(estimator, off_policy):
    """One token, equal scores: only the penalty is left, and k2 and k3 pull differently.

    Off policy the tokens are those of the policy as it was, each weighted by pi / pi_old.
    """
    made = learner(
        exact(vocabulary=4),
        prompts=[Prompt((2, 0))],
        estimator="grpo",
        samples_per_prompt=2,
        kl_estimator=estimator,
        normalization="episode",
        beta=0.5,
        max_new_tokens=1,
        missing_eos_score=None,
    )
    moved(made)

    def logits(model):
        ids, positions = torch.tensor([[2, 0]]), torch.arange(2)[None]
        return model.head(model.hidden_states(ids, torch.ones(1, 2).bool(), positions)[0, -1])

    rollouts = []
    for token in range(4):
        item = Completion((2, 0), (token,), finished=token == EOS)
        episodes = episodes_of([item, item], [1.0, 1.0])
        rollouts.append((episodes, made.updater.measure(episodes, [[0, 1]])))
    sampled = torch.softmax(logits(made.language_model), -1).tolist()
    if off_policy:
        moved(made, seed=8, by=0.1)
    pi, ref = logits(made.language_model), logits(made.updater.reference)
    assert off_policy == (float((pi.softmax(-1) - torch.tensor(sampled)).abs().max()) > 0.01)
    kl = objectives.categorical_kl(pi, ref) if estimator == "k2" else None
    kl = objectives.categorical_kl(ref, pi) if kl is None else kl
    parameters = dict(made.language_model.model.named_parameters())
    expected = torch.autograd.grad(0.5 * kl, list(parameters.values()), allow_unused=True)
    found = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for probability, (episodes, measured) in zip(sampled, rollouts, strict=True):
        gradient = gradient_of(made, episodes, measured=measured)
        for name in found:
            found[name] += probability * gradient[f"model.{name}"]
    for name, gradient in zip(parameters, expected, strict=True):
        wanted = torch.zeros_like(found[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], wanted, rtol=1e-7, atol=1e-9)


def test_rloo_and_grpo_by_hand():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]]).bool()
    reward = torch.tensor([[0.0, 1, 2], [5, 9, 9], [1, 0, 9], [2, 4, 9]], dtype=torch.float64)
    # Totals 3, 5 of the first prompt and 1, 6 of the second.
    found = advantages.rloo(reward, mask, group_size=2).advantage
    assert found.tolist() == [[-2, -2, -2], [2, 0, 0], [-5, -5, 0], [5, 5, 0]]
    # All four of one prompt: each against the mean of the three others.
    found = advantages.rloo(reward, mask, group_size=4).advantage
    assert found[:, 0].tolist() == pytest.approx([3 - 4, 5 - 10 / 3, 1 - 14 / 3, 6 - 3])
    found = advantages.grpo(reward, mask, group_size=2).advantage
    one, two = 1 / (math.sqrt(2) + 1e-4), 2.5 / (math.sqrt(12.5) + 1e-4)
    assert found[:, 0].tolist() == pytest.approx([-one, one, -two, two])
    assert found[2].tolist() == pytest.approx([-two, -two, 0])
    same = advantages.grpo(torch.ones(4, 3), mask[:1].expand(4, 3), group_size=4).advantage
    assert not same.any()


def test_the_score_stands_on_the_last_token_and_a_cut_off_completion_has_a_fixed_one():
    items = [
        Completion((2,), (4, 5, EOS)),
        Completion((2,), (LIKED, LIKED, LIKED), finished=False),
        Completion((2,), (EOS,)),
    ]
    made = learner(exact(), beta=0.0, missing_eos_score=-4.0)
    episodes = episodes_of(items, [2.0, 3.0, 7.0])
    measured = made.updater.measure(episodes, [[0, 1, 2]])
    reward = advantages.token_rewards(
        measured.log_prob, measured.reference_log_prob, made.score(episodes), 0.0, measured.mask
    )
    assert reward.tolist() == [[0, 0, 2], [0, 0, -4], [7, 0, 0]]
    made = learner(exact(), missing_eos_score=None)
    assert made.score(episodes).tolist() == [2, 3, 7]
    made = learner(exact(), missing_eos_score=-1.0, normalize_score=True)
    low, high = (2 - 4) / math.sqrt(14 / 3), (7 - 4) / math.sqrt(14 / 3)
    assert made.score(episodes).tolist() == pytest.approx([low, -1.0, high])


def test_a_rollout_without_any_end_is_refused_unless_it_scores_as_it_is():
    settings = {"max_new_tokens": 1, "batch_size": 2, "minibatch_size": 2, "seed": 2}
    with pytest.raises(UserError, match="none of the first 2 completions ended"):
        learner(missing_eos_score=-1.0, **settings).iterate()
    assert learner(**settings).iterate()["episode/eos_fraction"] == 0.0


def test_the_time_of_a_slow_reward_is_not_that_of_sampling():
    made = learner(exact())
    scorer = made.collector.scorer

    def slow(completions):
        time.sleep(0.4)
        return scorer(completions)

    made.collector.scorer = slow
    began = time.perf_counter()
    times = made.iterate()
    seconds = time.perf_counter() - began
    parts = [times[f"time/{part}_seconds"] for part in ("generation", "scoring", "update")]
    assert parts[1] >= 0.4 and parts[0] > 0 and parts[2] > 0
    assert sum(parts) == pytest.approx(seconds, abs=0.05)


def test_a_critic_apart_learns_whatever_its_weight_beside_the_policy():
    for critic, learns in (("shared", False), ("separate", True)):
        made = moved(learner(exact(), critic=critic, estimator="gae"))
        # Past the check that refuses a weight which a separate critic does not use.
        made.updater.config = made.updater.config.model_copy(update={"value_coefficient": 0.0})
        episodes = made.collector.collect()
        gradient = gradient_of(made, episodes)["critic.head.weight"]
        assert (float(gradient.abs().max()) > 1e-6) == learns


def test_whitening_keeps_the_mean_of_rewards_and_centres_advantages():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    reward = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, math.nan]], dtype=torch.float64)
    found = advantages.whiten_keeping_mean(reward, mask)
    kept = found[mask]
    assert float(kept.mean()) == pytest.approx(3.0)
    assert float(kept.std(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    assert not found[~mask].any()
    made = moved(learner(exact(), missing_eos_score=None))
    episodes = made.collector.collect()
    measured = made.updater.measure(episodes, [list(range(16))])
    advantage = made.estimate(0, episodes, measured, made.score(episodes)).advantage
    assert float(advantage[measured.mask].mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(advantage[measured.mask].std(unbiased=False)) == pytest.approx(1.0, abs=1e-6)


def test_pretraining_adds_its_weighted_mean_negative_log_likelihood():
    made = learner(exact(), pretraining=TEXTS, pretraining_coefficient=2.5, minibatch_size=4)
    met = []
    for _ in range(3):
        before = made.updater.pretrained
        tally = Means()
        made.language_model.model.zero_grad()
        made.updater._pretrain(tally)
        found = gradients(made)
        rows = shuffled(range(before, before + 4), 3, 0, Stream.PRETRAINING_ORDER)
        met.extend(rows)
        batch = collate([TEXTS[row] for row in rows], pad_id=0)
        log_prob, mask = token_log_probs(made.language_model, batch)
        made.language_model.model.zero_grad()
        loss = -log_prob[mask].mean()
        (2.5 * loss).backward()
        for name, gradient in gradients(made).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
        assert tally.read()["pretraining/loss"] == pytest.approx(float(loss))
    assert sorted(met) == [0] * 4 + [1] * 4 + [2] * 4


def test_the_defaults_are_the_published_settings():
    """Ziegler et al. and its reproductions: the details that PPO on text stands and falls by."""
    config = RLHFConfig()
    assert (config.gamma, config.lam, config.ppo_epochs) == (1.0, 0.95, 4)
    assert (config.epsilon, config.value_epsilon, config.value_coefficient) == (0.2, 0.2, 0.1)
    assert (config.schedule, config.adam_epsilon, config.warmup) == ("linear", 1e-5, 0.0)
    assert config.whiten_advantage and not config.whiten_reward
    assert (config.kl_target, config.kl_horizon) == (6.0, 10_000.0)
    # The sources have -1, beside rewards of mean 0 and deviation 1 only.
    assert config.missing_eos_score is None
