"""The pieces of REINFORCE, VPG, A2C, A2C-TR and PPO-KL, against loops and closed forms."""

from typing import Any

import jax
import numpy as np
import pytest
from comparisons import mean_kl
from jax import numpy as jnp
from test_methods import QUICK, Chain, iterations, learner_of, on_chain

from tether.control.critic import batch
from tether.control.methods import reinforce
from tether.control.networks import forward
from tether.control.parameters import PolicyParameters, numpy_network
from tether.control.training import configure
from tether.errors import UserError


def test_the_weights_of_reinforce_are_the_loops() -> None:
    rng = np.random.default_rng(0)
    reward, done = rng.normal(size=(13, 4)).astype(np.float32), rng.random((13, 4)) < 0.3
    done[-1, 0], done[:, 3] = True, False
    whole, to_go = np.empty((13, 4)), np.empty((13, 4))
    for n in range(4):
        begins = [0, *(t + 1 for t in np.flatnonzero(done[:, n]))]
        for begin, end in zip(begins, [*begins[1:], 13], strict=True):
            for t in range(begin, end):
                to_go[t, n] = sum(0.9 ** (k - t) * reward[k, n] for k in range(t, end))
                whole[t, n] = sum(0.9 ** (k - begin) * reward[k, n] for k in range(begin, end))
    np.testing.assert_allclose(reinforce.reward_to_go(reward, done, 0.9), to_go, rtol=1e-4)
    np.testing.assert_allclose(reinforce.whole_return(reward, done, 0.9), whole, rtol=1e-4)


def test_only_the_baseline_of_reinforce_has_a_critic_and_it_bootstraps() -> None:
    plain, with_critic = on_chain("reinforce"), on_chain("reinforce", weight="baseline")
    assert plain.critic is None
    assert "value/loss" not in plain.iterate()
    rollout = with_critic.collector.collect(7)  # episodes of 20 steps: all are cut by the batch
    estimate = with_critic.critic.judge(batch(rollout))
    value = estimate.value.reshape(7, 8)
    last = forward(numpy_network(with_critic.critic.network), rollout.last_observation)[:, 0]
    for t in range(7):
        rest = sum(0.95 ** (k - t) * rollout.reward[k] for k in range(t, 7))
        expected = rest + 0.95 ** (7 - t) * last - value[t]
        np.testing.assert_allclose(estimate.advantage.reshape(7, 8)[t], expected, atol=1e-5)


def test_the_step_size_of_vpg_follows_the_divergence_of_its_steps() -> None:
    learner = on_chain("vpg")
    target, learner.learning_rate = learner.config.kl_target, 0.1
    rows = iterations(learner, 20)
    rate, moves = 0.1, set()
    for row in rows:
        assert row["optimizer/learning_rate"] == pytest.approx(rate)
        kl = row["policy/kl"] / target
        move = 1 / 1.5 if kl > 2 else 1.5 if kl < 0.5 else 1.0
        rate = min(0.1, rate * move)
        moves.add(move)
    assert moves >= {1 / 1.5, 1.5}  # too long a step to begin with, too short a one in the end
    fresh = on_chain("vpg")
    learner.learning_rate = 0.0123
    fresh.restore(learner.state())
    assert fresh.learning_rate == 0.0123


def test_a_step_size_that_is_not_adaptive_stays() -> None:
    rows = iterations(on_chain("vpg", adaptive=False, learning_rate=0.1), 5)
    assert [row["optimizer/learning_rate"] for row in rows] == [0.1] * 5
    assert any(row["policy/kl"] > 0.06 for row in rows)  # where the rule would have acted


@pytest.mark.parametrize("method", ["reinforce", "vpg", "a2c", "a2c-tr", "ppo-kl"])
def test_the_divergence_reported_is_that_of_the_two_policies(method: str) -> None:
    learner = on_chain(method)
    for _ in range(3):
        rollout = learner.collector.collect(learner.config.steps_per_iteration // 8)
        seen = rollout.observation.reshape(-1, 5)
        before = learner.policy.distribution(seen)
        metrics = learner.update(rollout)
        after = learner.policy.distribution(seen)
        assert metrics["policy/kl"] == pytest.approx(mean_kl(before, after), rel=1e-3, abs=1e-6)
        assert metrics["policy/kl"] > 0


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_the_first_step_of_a2c_is_its_optimizers_up_the_policy_gradient(optimizer: str) -> None:
    learner = on_chain(
        "a2c",
        steps_per_iteration=64,
        lam=1.0,
        max_grad_norm=None,
        learning_rate=7e-4,
        optimizer=optimizer,
        entropy_coefficient=0.3,
    )
    # Far enough from uniform for the entropy to have a slope.
    start = jax.tree.map(lambda p: 30 * p if p.shape[-1] == 2 else p, learner.learnt.actor)
    learner.learnt = learner.learnt._replace(actor=start)
    learner.policy.parameters = start
    before, critic = learner.learnt.actor, learner.learnt.critic
    rollout = learner.collector.collect(8)
    data = batch(rollout)
    last = np.asarray(forward(critic, data.last_observation))[:, 0]
    value = np.asarray(forward(critic, data.observation)).reshape(8, 8)
    returns, following = np.empty((8, 8), np.float32), last
    for t in reversed(range(8)):
        following = rollout.reward[t] + 0.95 * np.where(rollout.terminated[t], 0.0, following)
        returns[t] = following

    def loss(parameters: PolicyParameters) -> Any:
        logits = forward(parameters.network, data.observation)
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, data.action, axis=1)[:, 0]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=1)
        return -jnp.mean(chosen * (returns - value).ravel() + 0.3 * entropy)

    gradient = jax.jit(jax.grad(loss))(before)
    learner.update(rollout)
    # After one step from zero RMSprop's v is 0.01 g^2; Adam's, corrected, is g^2.
    root = 0.1 if optimizer == "rmsprop" else 1.0
    expected = jax.tree.map(lambda p, g: p - 7e-4 * g / (root * np.abs(g) + 1e-5), before, gradient)
    pairs = zip(jax.tree.leaves(learner.learnt.actor), jax.tree.leaves(expected), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_wide_trust_region_is_a2c_and_a_narrow_one_holds_back() -> None:
    bonus = {"entropy_coefficient": 0.003}
    plain = iterations(on_chain("a2c", **bonus), 5)
    wide, narrow = (
        iterations(on_chain("a2c-tr", max_slope=slope, **bonus), 5) for slope in (1e6, 1e-3)
    )
    for name in ("policy/gradient_norm", "policy/entropy", "policy/kl", "value/loss"):
        ours, theirs = [row[name] for row in wide], [row[name] for row in plain]
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-6)
    assert [row["trust_region/bent"] for row in wide] == [0.0] * 5
    # At first the average is the policy, and there is nothing to be held back from.
    assert narrow[0]["trust_region/bent"] == 0.0
    assert narrow[-1]["trust_region/bent"] > 0.3
    assert narrow[-1]["trust_region/kl"] < wide[-1]["trust_region/kl"]


def test_the_average_policy_follows_slowly() -> None:
    learner = on_chain("a2c-tr")
    average, _ = learner.learnt.average, learner.iterate()
    expected = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, average, learner.learnt.actor)
    pairs = zip(jax.tree.leaves(learner.learnt.average), jax.tree.leaves(expected), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_beta_moves_once_an_iteration_by_the_divergence_of_the_whole_update() -> None:
    learner = on_chain("ppo-kl")
    rows = iterations(learner, 8)
    beta, moves = 1.0, set()
    for row in rows:
        assert row["policy/beta"] == beta
        move = 0.5 if row["policy/kl"] < 0.02 else 2.0 if row["policy/kl"] > 0.045 else 1.0
        beta *= move
        moves.add(move)
    assert moves >= {0.5, 2.0}
    fresh = on_chain("ppo-kl")
    learner.beta = 7.0
    fresh.restore(learner.state())
    assert fresh.beta == 7.0


def test_without_a_price_ppo_kl_is_ppo_without_a_clip_and_a_high_price_holds_back() -> None:
    settings = {name: value for name, value in QUICK["ppo-kl"].items() if name != "kl_target"}
    usual = {**settings, "gamma": 0.95, "normalize_observation": False}
    unclipped = learner_of("ppo", Chain, seed=1, **usual, epsilon=None).iterate()
    free, dear = on_chain("ppo-kl"), on_chain("ppo-kl")
    free.beta, dear.beta = 0.0, 30.0
    free_row, dear_row = free.iterate(), dear.iterate()
    for name in ("policy/objective", "policy/entropy", "policy/approx_kl", "value/loss"):
        assert free_row[name] == pytest.approx(unclipped[name], rel=1e-3)
    assert dear_row["policy/beta"] == 30.0
    assert dear_row["policy/kl"] < 0.2 * free_row["policy/kl"]
    assert dear_row["policy/first_ratio"] == free_row["policy/first_ratio"] == 1.0


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_beta_stays(fixed: bool) -> None:
    settings = {"fixed_beta": True, "kl_target": 0.01} if fixed else {}
    learner = on_chain("ppo-kl", beta=3.0, **settings)
    data = batch(learner.collector.collect(32))
    # No update in between: the policy has not moved, which is too little.
    assert learner.adapt(data, learner.old_policy(data)) == {
        "policy/kl": pytest.approx(0.0, abs=1e-6),
        "policy/beta": 3.0,
    }
    assert learner.beta == (3.0 if fixed else 1.5)


def test_only_a_baseline_needs_whole_minibatches() -> None:
    settings = {"steps_per_iteration": 1000, "critic_minibatch_size": 64}
    assert configure("reinforce", settings=settings).dump()["steps_per_iteration"] == 1000
    with pytest.raises(UserError, match="critic_minibatch_size=64 does not divide"):
        configure("reinforce", settings={**settings, "weight": "baseline"})
