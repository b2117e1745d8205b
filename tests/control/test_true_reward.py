"""The true reward: summed over episodes, written, and never learned from."""

import gymnasium as gym
import numpy as np
import pytest
from comparisons import assert_equal_states
from gymnasium import spaces

import tether
from tether.control.envs import make
from tether.control.envs.given_vector import GivenVectorEnv
from tether.control.evaluation import evaluate
from tether.control.methods import METHODS
from tether.control.recent_episodes import RecentEpisodes
from tether.control.training import configure
from tether.errors import BadEnvironmentError
from tether.learning.methods import find_method
from tether.learning.output.metrics import read_metrics


class TwoLedgers(gym.Env):
    """Five steps; pays 1 for action 1, and what was meant is 10 t for action 0 at step t."""

    observation_space = spaces.Box(0, 5, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reports=True, says=True):
        self.reports, self.says = reports, says

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.ones = 0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        self.ones += int(action)
        info = {}
        if self.reports and (self.reports is True or self.t < self.reports):
            info["true_reward"] = 10.0 * self.t * (1 - int(action))
        if self.says:
            info["statistics"] = {"ones": self.ones}
        observation = np.full(1, self.t, np.float32)
        return observation, float(action), self.t == 5, False, info


def learner_of(method, env, total_steps=10_000, **settings):
    kind, config = find_method(METHODS, method), configure(method, settings=settings)
    world = make(env, kind.environments(config))
    return kind(config, world, seed=0, total_steps=total_steps)


SMALL = {"num_envs": 4, "steps_per_iteration": 128, "hidden": (8,)}


def test_the_returns_of_a_rollout_are_the_sums_of_each_episode() -> None:
    learner = learner_of("ppo", TwoLedgers, **SMALL, minibatch_size=32)
    carried = []
    for horizon in (7, 32, 3):
        rollout = learner.collector.collect(horizon)
        carried.append(rollout)
    action = np.concatenate([r.action[..., 0] if r.action.ndim == 3 else r.action for r in carried])
    expected, ones = [], []
    for end in range(4, len(action), 5):
        for n in range(4):
            episode = action[end - 4 : end + 1, n]
            expected.append(sum(10 * (t + 1) * (1 - a) for t, a in enumerate(episode)))
            ones.append(episode.sum())
    truths = np.concatenate([r.episode_true_returns for r in carried])
    np.testing.assert_array_equal(truths, expected)
    np.testing.assert_array_equal(np.concatenate([r.episode_returns for r in carried]), ones)
    said = [numbers["ones"] for r in carried for numbers in r.episode_statistics]
    np.testing.assert_array_equal(said, ones)


@pytest.mark.parametrize("method", ["ppo", "reinforce", "actor-critic", "cem"])
def test_methods_write_it_and_learn_the_same_without_it(method) -> None:
    settings = {
        "ppo": {**SMALL, "minibatch_size": 32},
        "reinforce": SMALL,
        "actor-critic": {"num_envs": 4, "steps_per_iteration": 100, "hidden": (8,)},
        "cem": {"population": 8},
    }[method]
    learners = [
        learner_of(method, lambda reports=reports: TwoLedgers(reports), **settings)
        for reports in (True, False)
    ]
    (with_truth, without) = ([dict(one.iterate()) for _ in range(3)][-1] for one in learners)
    assert 0.0 <= with_truth["true_return/min"] <= with_truth["true_return/mean"] <= 150.0
    assert not any(name.startswith("true_return") for name in without)
    assert with_truth["episode/ones"] == with_truth["return/mean"]
    shared = without.keys()
    assert {name: with_truth[name] for name in shared} == without
    states = [one.policy.state() for one in learners]
    assert_equal_states(*states)


def test_the_correlation_is_that_of_the_window() -> None:
    rng = np.random.default_rng(0)
    proxies, truths = rng.normal(size=(2, 130))
    episodes = RecentEpisodes()
    episodes.extend(proxies[:70].tolist(), [5] * 70, truths[:70].tolist())
    episodes.extend(proxies[70:].tolist(), [5] * 60, truths[70:].tolist())
    metrics = episodes.metrics()
    assert metrics["true_return/mean"] == pytest.approx(truths[30:].mean())
    expected = np.corrcoef(proxies[30:], truths[30:])[0, 1]
    assert metrics["true_return/correlation"] == pytest.approx(expected)
    again = RecentEpisodes()
    again.restore(episodes.state())
    assert again.metrics() == metrics


def test_a_resumed_run_writes_the_same_true_returns(tmp_path) -> None:
    given = {"seed": 1, "progress": False, "sinks": (), "threads": 1}
    given |= {**SMALL, "minibatch_size": 32}
    env = "tether/BoatRace-v0"
    kwargs = {"env": env, "env_kwargs": {"max_episode_steps": 20}}
    whole = tether.train("ppo", total_steps=1024, out=tmp_path / "whole", **kwargs, **given)
    half = tether.train(
        "ppo",
        total_steps=1024,
        out=tmp_path / "half",
        **kwargs,
        **given,
        callbacks=[tether.StopOnReturn(-1e9, "true_return/mean")],
    )
    assert half.steps < 1024
    tether.resume(half.run, progress=False, sinks=())
    lines = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(run)]
        for run in (whole.run, half.run)
    ]
    assert lines[0] == lines[1]
    assert "true_return/mean" in lines[0][-1]
    assert whole.summary()["true_return_mean"] == whole.metrics["true_return/mean"]


def test_evaluation_reports_both() -> None:
    learner = learner_of("ppo", TwoLedgers, **SMALL, minibatch_size=32)
    result = evaluate(learner.policy, make(TwoLedgers, 3), episodes=7, deterministic=False)
    assert result.true_returns.shape == (7,)
    np.testing.assert_array_equal(result.statistics["ones"], result.returns)
    summary = result.summary()
    assert summary["true_return_mean"] == pytest.approx(result.true_returns.mean())
    plain = evaluate(learner.policy, make(lambda: TwoLedgers(False, False), 3), episodes=4)
    assert plain.true_returns is None
    assert "true_return_mean" not in plain.summary()


def test_an_environment_has_to_go_on_reporting() -> None:
    env = make(lambda: TwoLedgers(reports=3), 2)
    env.reset(0)
    env.step(np.zeros(2, int))
    env.step(np.zeros(2, int))
    with pytest.raises(BadEnvironmentError, match=r"true_reward.*not at step 3"):
        env.step(np.zeros(2, int))


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
def test_gymnasiums_vector_environments_report_it_too(mode) -> None:
    vector = gym.vector.SyncVectorEnv([TwoLedgers] * 2, autoreset_mode=mode)
    env = GivenVectorEnv(vector)
    env.reset(0)
    for t in range(1, 12):
        step = env.step(np.array([0, 1]))
        np.testing.assert_array_equal(step.true_reward, [10.0 * ((t - 1) % 5 + 1), 0.0])
