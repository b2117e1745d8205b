"""The divergence from the policy that training began with: measured, priced, and bounded."""

import gymnasium as gym
import numpy as np
import pytest
from comparisons import assert_equal_states
from gymnasium import spaces

import tether
from tether.control.envs import make
from tether.control.methods import METHODS
from tether.control.training import configure
from tether.errors import UserError
from tether.learning.methods import find_method
from tether.learning.output.metrics import read_metrics

PAYS = np.array([0.0, 1.0, 3.0])


class Bandit(gym.Env):
    """One step, three arms."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(PAYS[int(action)]), True, False, {}


def learner_of(method, env, total_steps=100_000, seed=0, **settings):
    kind, config = find_method(METHODS, method), configure(method, settings=settings)
    world = make(env, kind.environments(config))
    return kind(config, world, seed=seed, total_steps=total_steps)


def probabilities(policy) -> np.ndarray:
    logits = policy.distribution(policy.normalize(np.zeros((1, 1)))).logits[0].astype(float)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


SMALL = {"num_envs": 8, "steps_per_iteration": 256, "hidden": (16,), "normalize_reward": False}


@pytest.mark.parametrize("method", ["ppo", "a2c", "trpo", "reinforce", "vpg", "ppo-kl"])
def test_a_price_leads_to_the_policy_of_the_closed_form(method) -> None:
    """argmax E[r] - beta KL(pi || pi_0) is pi_0 exp(r / beta), normalized."""
    beta = 2.0
    settings = {**SMALL, "initial_kl_coefficient": beta}
    if method in ("ppo", "ppo-kl"):
        settings |= {"minibatch_size": 64, "epochs": 4}
    if method in ("ppo", "ppo-kl", "a2c"):
        settings |= {"learning_rate": 3e-3}
    if method == "a2c":
        settings |= {"entropy_coefficient": 0.0}
    learner = learner_of(method, Bandit, **settings)
    before = probabilities(learner.policy)
    for _ in range(60):
        metrics = learner.iterate()
    wanted = before * np.exp(PAYS / beta)
    wanted /= wanted.sum()
    found = probabilities(learner.policy)
    np.testing.assert_allclose(found, wanted, atol=0.08)
    kl = float((found * np.log(found / before)).sum())
    assert metrics["policy/initial_kl"] == pytest.approx(kl, rel=1e-3)
    # Without a price nothing is left of the other arms.
    assert found.max() < 0.8


def test_the_rewards_that_are_learned_from_are_clipped_and_charged() -> None:
    learner = learner_of("reinforce", Bandit, **SMALL, clip_reward=1.5, initial_kl_coefficient=0.5)
    fresh = probabilities(learner.policy)
    learner.iterate()
    moved = probabilities(learner.policy)
    rollout = learner.collector.collect(32)
    action = rollout.action.reshape(rollout.reward.shape)
    charge = 0.5 * np.log(moved / fresh)
    np.testing.assert_allclose(
        rollout.reward, np.minimum(PAYS, 1.5)[action] - charge[action], atol=1e-5
    )
    np.testing.assert_array_equal(rollout.episode_returns, PAYS[action].ravel())


def test_a_budget_is_never_left_and_ends_the_training(tmp_path) -> None:
    given = {"progress": False, "sinks": (), "threads": 1, "seed": 0, **SMALL}
    given |= {"minibatch_size": 64, "learning_rate": 3e-3}
    run = tether.train(
        "ppo", env=Bandit, total_steps=50_000, out=tmp_path / "run", **given, initial_kl_budget=0.3
    )
    kls = [row["policy/initial_kl"] for row in read_metrics(run.run)]
    assert run.steps < 50_000
    assert max(kls) <= 0.3
    assert kls[0] < 0.1 < kls[-1]
    policy = run.policy
    again = tether.resume(run.run, env=Bandit, progress=False, sinks=())
    assert again.steps == run.steps
    assert_equal_states(again.policy.state(), policy.state())


def test_the_initial_policy_of_init_from_survives_a_resume(tmp_path) -> None:
    given = {"progress": False, "sinks": (), "threads": 1, "seed": 0, **SMALL}
    given |= {"minibatch_size": 64, "learning_rate": 3e-3}
    base = tether.train("ppo", env=Bandit, total_steps=1024, out=tmp_path / "base", **given)
    more = {**given, "measure_initial_kl": True, "init_from": tmp_path / "base", "env": Bandit}
    whole = tether.train("ppo", total_steps=1024, out=tmp_path / "whole", **more)
    half = tether.train("ppo", total_steps=512, out=tmp_path / "half", **more)
    assert half.steps == 512
    # The policy it began with has learned on since.
    tether.resume(base.run, env=Bandit, total_steps=2048, progress=False, sinks=())
    learner = learner_of(
        "ppo",
        Bandit,
        **{k: v for k, v in given.items() if k in SMALL},
        minibatch_size=64,
        learning_rate=3e-3,
        measure_initial_kl=True,
    )
    learner.restore(tether.learning.Run.open(half.run).load())
    initial = probabilities(learner.initial._policy)
    first = read_metrics(whole.run)[0]["policy/initial_kl"]
    assert first < 0.05
    final = probabilities(whole.policy)
    expected = float((final * np.log(final / initial)).sum())
    assert read_metrics(whole.run)[-1]["policy/initial_kl"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"clip_reward": 0.0}, {"initial_kl_coefficient": -1.0}, {"initial_kl_budget": 0.0}]
)
def test_a_value_out_of_range_is_named(wrong) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        configure("ppo", settings=wrong)
