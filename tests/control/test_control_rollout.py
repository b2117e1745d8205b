"""What a rollout says of episodes, held against the environments' own diaries."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics
from toy_environments import Faulty, Script

import tether
from tether.control.envs import make
from tether.control.methods.ppo import PPO, PPOConfig, batch, compiled
from tether.errors import BadEnvironmentError

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "steps_per_iteration": 32,
    "minibatch_size": 32,
    "epochs": 1,
    "hidden": (8,),
}


def learner_of(make_env: Callable[[], gym.Env], **settings: Any) -> PPO:
    config = PPOConfig(**{**SMALL, **settings})
    return PPO(config, make(make_env, config.num_envs), seed=3, total_steps=1000)


def values(learner: PPO, observation: np.ndarray) -> np.ndarray:
    """V by the learner's own critic, its layers multiplied out in float64: (..., D) -> (...)."""
    x = observation.astype(np.float64)
    for i, (weight, bias) in enumerate(learner.critic.dense):
        x = x @ np.asarray(weight, np.float64) + np.asarray(bias)
        x = np.tanh(x) if i < len(learner.critic.dense) - 1 else x
    return x[..., 0]


def plain_gae(
    steps: list[tuple], value: Callable[[np.ndarray], float], gamma: float, lam: float
) -> list[float]:
    """GAE of one environment's (observation, reward, terminated, truncated, next observation)."""
    advantages, following = [], 0.0
    for observation, reward, terminated, truncated, true_next in reversed(steps):
        after = 0.0 if terminated else value(true_next)
        delta = reward + gamma * after - value(observation)
        following = delta + (0.0 if terminated or truncated else gamma * lam * following)
        advantages.append(following)
    return advantages[::-1]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("endings", [("terminated", "truncated", "both"), ("truncated",)])
def test_advantages_are_those_of_the_true_transitions(
    endings: tuple[str, ...], normalize: bool
) -> None:
    made: list[Script] = []

    def make_env() -> gym.Env:
        made.append(Script(endings))
        return made[-1]

    learner = learner_of(
        make_env, normalize_observation=normalize, normalize_reward=normalize, gamma=0.9, lam=0.8
    )
    estimate, horizon, cuts = compiled(learner.config, learner.spec).estimate, 16, 0
    for round_ in range(3):
        normalizer = copy.deepcopy(learner.policy.normalizer)
        rollout = learner.collector.collect(horizon)
        ours = estimate(learner.critic, batch(rollout))
        rows = range(round_ * horizon, (round_ + 1) * horizon)
        expected, expected_value = np.empty((2, horizon, 2))
        for n, env in enumerate(made):
            diary = [env.diary[t] for t in rows]
            if not normalize:
                np.testing.assert_array_equal(
                    rollout.reward[:, n], np.float32([d[1] for d in diary])
                )
            shown = [(normalizer or np.float32)(np.array(d[0])) for d in diary]
            np.testing.assert_array_equal(rollout.observation[:, n], shown)
            see = lambda o: values(learner, (normalizer or np.float32)(o))  # noqa: B023, E731
            # Rewards as learning sees them; their scaling is another test's affair.
            steps = [(d[0], r, *d[2:]) for d, r in zip(diary, rollout.reward[:, n], strict=True)]
            expected[:, n] = plain_gae(steps, see, 0.9, 0.8)
            expected_value[:, n] = [see(d[0]) for d in diary]
            cuts += sum(d[3] and not d[2] for d in diary)
        np.testing.assert_allclose(ours.value, expected_value.ravel(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.advantage, expected.ravel(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            ours.target, (expected + expected_value).ravel(), rtol=1e-4, atol=1e-4
        )
        used = rollout.cut_index[rollout.cut_index < 32]
        flat = (rollout.truncated & ~rollout.terminated).ravel()
        np.testing.assert_array_equal(np.sort(used), np.flatnonzero(flat))
    if endings == ("truncated",):
        # More episodes were cut in one rollout than there were slots to begin with.
        assert cuts > 3 * 2
        assert len(rollout.cut_index) > 2


def test_a_time_limit_of_gymnasium_bootstraps_and_a_termination_does_not() -> None:
    class Still(gym.Env):
        """Pays 1 for ever; what it shows does not change."""

        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.Discrete(2)

        def __init__(self, ends_at: int) -> None:
            self.ends_at = ends_at

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return np.ones(1, np.float32), {}

        def step(self, action):
            self.time += 1
            return np.ones(1, np.float32), 1.0, self.time == self.ends_at, False, {}

    one_step = {"gamma": 0.5, "lam": 0.0, "normalize_observation": False, "normalize_reward": False}
    limited = learner_of(lambda: gym.wrappers.TimeLimit(Still(100), 4), **one_step)
    ended = learner_of(lambda: Still(4), **one_step)
    ended.critic = limited.critic
    value = float(values(limited, np.ones(1)))
    assert abs(value) > 0.01
    for learner, last in ((limited, 1 + 0.5 * value), (ended, 1.0)):
        data = batch(learner.collector.collect(16))
        target = compiled(learner.config, learner.spec).estimate(learner.critic, data).target
        expected = np.tile([1 + 0.5 * value] * 3 + [last], 4).repeat(2)
        np.testing.assert_allclose(target, expected, rtol=1e-5)


@pytest.mark.parametrize("env", ["script", "CartPole-v1"])
def test_episodes_are_counted_as_gymnasium_counts_them(env: str) -> None:
    made: list[RecordEpisodeStatistics] = []

    def make_env() -> gym.Env:
        world = Script() if env == "script" else gym.make(env, max_episode_steps=20)
        made.append(RecordEpisodeStatistics(world, buffer_length=1000))
        return made[-1]

    learner = learner_of(make_env)
    ours: list[tuple[float, int]] = []
    for horizon in (16, 1, 50, 7):
        rollout = learner.collector.collect(horizon)
        ours += zip(rollout.episode_returns, rollout.episode_lengths, strict=True)
    theirs = [
        episode
        for world in made
        for episode in zip(world.return_queue, world.length_queue, strict=True)
    ]
    assert len(ours) == len(theirs) > 4
    np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=1e-6, atol=1e-6)


def test_episodes_cut_short_to_stagger_are_not_counted() -> None:
    settings = {"num_envs": 4, "steps_per_iteration": 80, "minibatch_size": 80}
    limit = {"max_episode_steps": 10}
    for stagger, lengths in ((True, [10] * 5), (False, [10] * 8)):
        config = PPOConfig(**{**SMALL, **settings, "stagger": stagger})
        env = make("Reacher-v5", 4, **limit)
        rollout = PPO(config, env, seed=3, total_steps=1000).collector.collect(20)
        # Truncated after 3, 5, 8 and 10 steps, and every 10 from there: 4 + 4, or 3 fewer to tell.
        assert rollout.truncated.sum() == 8
        assert rollout.episode_lengths.tolist() == lengths


# Two environments and eight steps to a rollout: steps 8 and 16 are the last of theirs, and the
# episode of ten steps is cut at step 10, so its observation is seen by no policy.
@pytest.mark.parametrize("at", [1, 8, 10, 13])
@pytest.mark.parametrize("fault", ["reward", "observation"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity_are_told_with_place_and_time(fault: str, at: int, value: float) -> None:
    count = itertools.count()
    learner = learner_of(lambda: Faulty(fault, value, at if next(count) == 1 else -1))
    for _ in range((at - 1) // 8):
        learner.collector.collect(8)
    with pytest.raises(BadEnvironmentError) as caught:
        learner.collector.collect(8)
    step = 2 * (at - 1) + 1
    assert str(caught.value).startswith(
        f"Faulty returned {value} in its {fault} at step {step} (environment 1);"
    )


def test_a_bad_reset_is_told_too() -> None:
    class Born(Faulty):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0] * np.float32(np.nan), {}

    with pytest.raises(
        BadEnvironmentError, match=r"nan in its observation at step 0 \(environment 0"
    ):
        learner_of(Born).collector.collect(8)


@pytest.mark.parametrize("fault", ["reward", "observation"])
def test_a_run_that_meets_nan_keeps_its_last_checkpoint(tmp_path: Path, fault: str) -> None:
    make_env = lambda: Faulty(fault, at=70)  # noqa: E731
    quiet: dict[str, Any] = {"progress": False, "sinks": ()}
    out = tmp_path / "run"
    good = tether.train("ppo", env=make_env, total_steps=64, out=out, **quiet, **SMALL)
    with pytest.raises(BadEnvironmentError, match=f"Faulty returned nan in its {fault} at step"):
        tether.resume(out, env=make_env, total_steps=1000, **quiet)
    policy = tether.load(out)
    for ours, theirs in zip(
        policy.parameters.network.dense, good.policy.parameters.network.dense, strict=True
    ):
        np.testing.assert_array_equal(ours.weight, theirs.weight)
    assert policy.normalizer is not None
    assert np.isfinite(policy.normalizer.moments.mean).all()
    again = tether.resume(out, env=lambda: Faulty(at=-1), total_steps=128, **quiet)
    assert again.steps == 128
