"""PPO solves what is solvable, repeats itself bit for bit, and goes on after a checkpoint."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from comparisons import assert_equal_states
from gymnasium import spaces
from toy_environments import Copy

from tether.control.envs import make
from tether.control.evaluation import evaluate
from tether.control.learner import OnPolicyLearner
from tether.control.methods.ppo import PPO, PPOConfig, batch, compiled
from tether.learning import load_checkpoint, save_checkpoint

QUICK: dict[str, Any] = {
    "num_envs": 8,
    "steps_per_iteration": 256,
    "learning_rate": 3e-3,
    "anneal": False,
    "gamma": 0.5,
    "hidden": (32,),
    "initial_log_std": -1.0,
}
TINY: dict[str, Any] = {
    "num_envs": 4,
    "steps_per_iteration": 128,
    "minibatch_size": 32,
    "epochs": 3,
    "learning_rate": 0.01,
    "epsilon": 0.05,
    "hidden": (8,),
}


def learner_of(
    env: str | Callable[[], gym.Env], *, seed: int = 0, total_steps: int = 100_000, **settings: Any
) -> PPO:
    config = PPOConfig(**settings)
    return PPO(config, make(env, config.num_envs), seed=seed, total_steps=total_steps)


def same_bits(ours: Any, theirs: Any) -> bool:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("space", "show"),
    [
        (spaces.Box(-1, 1, (2,)), "vector"),
        (spaces.Discrete(4, start=-1), "vector"),
        (spaces.MultiBinary(3), "vector"),
        (spaces.MultiDiscrete([3, 2]), "dict"),
        (spaces.Discrete(4), "image"),
    ],
    ids=["Box", "Discrete", "MultiBinary", "MultiDiscrete-dict", "Discrete-image"],
)
def test_every_space_is_solved_and_every_first_ratio_is_one(space: spaces.Space, show: str) -> None:
    learner = learner_of(functools.partial(Copy, space, show), **QUICK, total_steps=10_000)
    step = compiled(learner.config, learner.spec)
    for _ in range(8 if show == "image" else 15):
        metrics = learner.iterate()
        assert metrics["policy/first_ratio"] == 1.0
        assert metrics["optimizer/learning_rate"] == pytest.approx(3e-3)
    # 16 steps to an episode, each worth at most 1. Whoever does not look gets half at best.
    world = make(functools.partial(Copy, space, show), 4)
    score = evaluate(learner.policy, world, episodes=8).returns.mean() / 16
    assert score >= (0.95 if isinstance(space, spaces.Box) else 0.97)

    # With a step size of zero the policy stays where it was when it acted: in the very kernel that
    # trains, every ratio of an epoch is then 1 to the last bit.
    data = batch(learner.collector.collect(32))
    order = np.random.default_rng(0).permutation(256).astype(np.int32).reshape(1, -1, 64)
    old, _ = step.old_log_prob(learner.actor, data, np.tile(order, (10, 1, 1))[0])
    moments, advantage = step.optimizer.init(learner.actor), np.arange(256, dtype=np.float32)
    after, _, metrics = step.actor_epoch(
        learner.actor, moments, data, old, advantage, order[0], np.float32(0)
    )
    assert float(metrics["policy/approx_kl"]) == 0.0
    assert float(metrics["policy/clip_fraction"]) == 0.0
    assert same_bits(after, learner.actor)
    # What the learner calls old log-probabilities are those of the distribution that acted.
    acted = learner.policy.distribution(np.asarray(data.observation)).log_prob(
        np.asarray(data.action)
    )
    np.testing.assert_allclose(old, acted, rtol=1e-4, atol=1e-4)


def test_cartpole_is_solved_within_60_000_steps() -> None:
    learner = learner_of("CartPole-v1", total_steps=60_000)
    while learner.steps + 2048 <= 60_000:
        learner.iterate()
    result = evaluate(learner.policy, make("CartPole-v1", 10), episodes=10)
    assert result.returns.mean() >= 475


def iterations(learner: OnPolicyLearner, count: int) -> list[dict[str, float]]:
    return [dict(learner.iterate()) for _ in range(count)]


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v5"])
def test_twice_is_the_same_and_another_seed_is_not(env: str) -> None:
    first, second, other = (learner_of(env, seed=seed, **TINY) for seed in (1, 1, 2))
    ours, theirs, others = (iterations(learner, 4) for learner in (first, second, other))
    assert ours == theirs
    assert ours != others
    assert_equal_states(first.state(), second.state())
    assert not same_bits(first.actor.network, other.actor.network)


def cut_short() -> gym.Env:
    """CartPole whose time limit cuts more episodes in a rollout than there are slots for."""
    return gym.make("CartPole-v1", max_episode_steps=4)


# One learner takes up the state as it was made, the other in the middle of a training of its own.
@pytest.mark.parametrize(
    ("env", "iterated"), [("CartPole-v1", 1), ("HalfCheetah-v5", 1), (cut_short, 0)]
)
def test_a_checkpoint_continues_bit_for_bit(
    env: str | Callable[[], gym.Env], iterated: int, tmp_path: Path
) -> None:
    straight = learner_of(env, seed=1, **TINY)
    iterations(straight, 3)
    save_checkpoint(tmp_path / "state.safetensors", straight.state(), {})
    state, _ = load_checkpoint(tmp_path / "state.safetensors")
    resumed = learner_of(env, seed=9, **TINY)
    iterations(resumed, iterated)
    resumed.restore(state)
    assert_equal_states(resumed.state(), state)
    assert iterations(resumed, 4) == iterations(straight, 4)
    assert_equal_states(resumed.state(), straight.state())


def test_state_changes_nothing_and_keeps_its_numbers() -> None:
    watched, left_alone = (learner_of("CartPole-v1", seed=1, **TINY) for _ in range(2))
    before = watched.state()
    kept = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, before)
    for _ in range(3):
        assert watched.iterate() == left_alone.iterate()
        watched.state()
    assert_equal_states(before, kept)


@pytest.mark.parametrize("recompute", [True, False])
def test_the_threads_do_what_the_written_order_says(recompute: bool) -> None:
    settings = {**TINY, "recompute_advantage": recompute}
    threaded, plain = (learner_of("CartPole-v1", seed=1, **settings) for _ in range(2))
    step = compiled(plain.config, plain.spec)
    for _ in range(2):
        threaded.iterate()
        rate = np.float32(0.01 * (1 - plain.steps / 100_000))
        data = batch(plain.collector.collect(32))
        orders = [
            np.int32([plain.rng.permutation(128) for _ in range(3)]).reshape(3, 4, 32)
            for _ in range(2)
        ]
        old, _ = step.old_log_prob(plain.actor, data, orders[0][0])
        once = step.estimate(plain.critic, data)
        for actor_order, critic_order in zip(*orders, strict=True):
            estimate = step.estimate(plain.critic, data) if recompute else once
            plain.actor, plain._actor_moments, _ = step.actor_epoch(
                plain.actor, plain._actor_moments, data, old, estimate.advantage, actor_order, rate
            )
            plain.critic, plain._critic_moments, _ = step.critic_epoch(
                plain.critic, plain._critic_moments, data, estimate, critic_order, rate
            )
        plain.policy.parameters = plain.actor
        assert same_bits(threaded.actor, plain.actor)
        assert same_bits(threaded.critic, plain.critic)
        assert same_bits(threaded.policy.parameters, plain.actor)


def test_no_epsilon_is_the_unclipped_objective() -> None:
    # A range so wide that no ratio leaves it clips nothing; a narrow one does.
    none, wide, narrow = (
        learner_of("CartPole-v1", seed=1, **{**TINY, "epsilon": epsilon})
        for epsilon in (None, 1e6, TINY["epsilon"])
    )
    ours, theirs, clipped = (iterations(learner, 2)[-1] for learner in (none, wide, narrow))
    for name in ("policy/objective", "policy/entropy", "policy/approx_kl", "value/loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert clipped["policy/clip_fraction"] > 0.1
    assert clipped["policy/objective"] < 0.9 * ours["policy/objective"]


def test_the_step_size_falls_from_all_of_it_towards_zero() -> None:
    metrics = iterations(learner_of("CartPole-v1", total_steps=512, **TINY), 4)
    rates = [row["optimizer/learning_rate"] for row in metrics]
    np.testing.assert_allclose(rates, [0.01, 0.0075, 0.005, 0.0025], rtol=1e-6)


def test_a_target_ends_the_policys_epochs_and_none_leaves_every_bit() -> None:
    """With a target just above and just below what the epochs measure, they go on and they end."""
    settings = {**TINY, "epochs": 6, "anneal": False, "epsilon": None, "recompute_advantage": False}

    def one_update(**more: Any) -> tuple[PPO, dict[str, float]]:
        learner = learner_of("CartPole-v1", **settings, **more)
        learner.iterate()
        metrics = learner.iterate()
        learner.close()
        return learner, dict(metrics)

    free, measured = one_update()
    assert "policy/epochs" not in measured
    never, metrics = one_update(target_kl=1e6)
    assert metrics.pop("policy/epochs") == 6
    assert metrics == measured
    assert same_bits(never.policy.parameters, free.policy.parameters)

    # What each epoch measures, from updates of one epoch, two epochs ... of the same numbers.
    def divergence(epochs: int) -> float:
        learner = learner_of("CartPole-v1", **{**settings, "epochs": epochs})
        return float(learner.iterate()["policy/approx_kl"])

    by_epoch = [divergence(epochs) for epochs in (1, 2, 3)]
    assert by_epoch[0] < by_epoch[1] < by_epoch[2]
    for epochs, between in ((2, by_epoch[:2]), (3, by_epoch[1:])):
        target = sum(between) / 2 / 1.5
        stopped = learner_of("CartPole-v1", **settings, target_kl=target)
        metrics = dict(stopped.iterate())
        assert metrics["policy/epochs"] == epochs
        assert metrics["policy/approx_kl"] > 1.5 * target
        short = learner_of("CartPole-v1", **{**settings, "epochs": epochs})
        short.iterate()
        assert same_bits(stopped.policy.parameters, short.policy.parameters)
        # The critic has a loss of its own, and all of its epochs.
        whole = learner_of("CartPole-v1", **settings)
        whole.iterate()
        assert same_bits(stopped.critic, whole.critic)
