"""The on-policy methods: each learns, repeats itself and resumes."""

import functools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparisons import assert_equal_states
from gymnasium import spaces
from toy_environments import Copy

from tether.control.envs import make
from tether.control.evaluation import evaluate
from tether.control.learner import OnPolicyLearner
from tether.control.methods import METHODS
from tether.control.training import configure
from tether.errors import UserError
from tether.learning import load_checkpoint, save_checkpoint
from tether.learning.methods import find_method


class Chain(gym.Env):
    """Five states, twenty steps. Right leads on and pays 1 in the last state; left pays 0.05.

    Left also leads back to the first state, where every episode begins. The best is to go right:
    four steps for nothing, then 16. Who looks at the next reward alone goes left and gets 1.
    """

    observation_space = spaces.Box(0, 1, (5,), np.float32)
    action_space = spaces.Discrete(2)
    optimum = 16.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.left = 0, 20
        return self.see(), {}

    def see(self):
        return np.eye(5, dtype=np.float32)[self.state]

    def step(self, action):
        reward = 0.05 if action == 0 else float(self.state == 4)
        self.state = 0 if action == 0 else min(self.state + 1, 4)
        self.left -= 1
        return self.see(), reward, self.left == 0, False, {}


def learner_of(method: str, env: Any, *, seed: int = 0, **settings: Any) -> OnPolicyLearner:
    config = configure(method, settings=settings)
    world = make(env, find_method(METHODS, method).environments(config))
    return find_method(METHODS, method)(config, world, seed=seed, total_steps=60_000)


def iterations(learner: OnPolicyLearner, count: int) -> list[dict[str, float]]:
    return [dict(learner.iterate()) for _ in range(count)]


SMALL: dict[str, Any] = {"num_envs": 8, "steps_per_iteration": 256, "hidden": (32,)}
QUICK: dict[str, dict[str, Any]] = {
    "reinforce": {**SMALL, "learning_rate": 0.02, "anneal": False},
    "vpg": {**SMALL, "learning_rate": 0.02, "kl_target": 0.03},
    "a2c": {**SMALL, "steps_per_iteration": 128, "learning_rate": 5e-3, "anneal": False},
    "a2c-tr": {**SMALL, "steps_per_iteration": 128, "learning_rate": 5e-3, "anneal": False},
    "trpo": {**SMALL, "max_kl": 0.05},
    "ppo-kl": {**SMALL, "learning_rate": 3e-3, "anneal": False, "kl_target": 0.03},
}
# Its own file has the rest of its tests, and all other action spaces.
PPO: dict[str, Any] = {**SMALL, "learning_rate": 3e-3, "anneal": False}
SPACES: dict[str, spaces.Space] = {
    "Box": spaces.Box(-1, 1, (2,)),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("method", QUICK)
def test_every_action_space_is_solved(method: str, kind: str) -> None:
    env = functools.partial(Copy, SPACES[kind])
    learner = learner_of(method, env, **{**QUICK[method], "gamma": 0.5})
    while learner.steps < 10_000:
        learner.iterate()
    # 16 steps to an episode, each worth at most 1. Whoever does not look gets half at best.
    score = evaluate(learner.policy, make(env, 4), episodes=8).returns.mean() / 16
    assert score >= (0.85 if kind == "Box" else 0.95)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("reinforce", {"learning_rate": 0.01, "steps_per_iteration": 2048}),
        (
            "vpg",
            {"steps_per_iteration": 512, "kl_target": 0.02, "learning_rate": 0.01, "gamma": 0.99},
        ),
        ("a2c", {"num_envs": 8, "learning_rate": 3e-3}),
        ("a2c-tr", {"num_envs": 8, "learning_rate": 3e-3}),
        ("trpo", {"num_envs": 8, "max_kl": 0.03}),
        ("ppo-kl", {"num_envs": 8, "kl_target": 0.03, "learning_rate": 1e-3}),
    ],
)
def test_cartpole_is_solved_within_60_000_steps(method: str, settings: dict[str, Any]) -> None:
    learner = learner_of(method, "CartPole-v1", **settings)
    while learner.steps + learner.config.steps_per_iteration <= 60_000:
        learner.iterate()
    # An untrained policy keeps the pole up for some 20 steps of 500; 475 is what solved means.
    result = evaluate(learner.policy, make("CartPole-v1", 10), episodes=10)
    assert result.returns.mean() >= 475


def on_chain(method: str, *, seed: int = 1, **settings: Any) -> OnPolicyLearner:
    """A learner on the chain; those of equal settings share what is compiled."""
    usual = {**QUICK.get(method, PPO), "gamma": 0.95, "normalize_observation": False}
    return learner_of(method, Chain, seed=seed, **{**usual, **settings})


CHAIN: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in QUICK),
    *(("reinforce", {"weight": weight}) for weight in ("return", "baseline")),
    ("ppo", {}),
]


@pytest.mark.parametrize(("method", "settings"), CHAIN)
def test_the_chain_is_solved_repeated_and_resumed_bit_for_bit(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    first, second, other = (on_chain(method, seed=seed, **settings) for seed in (1, 1, 2))
    ours, theirs, others = (iterations(learner, 3) for learner in (first, second, other))
    assert ours == theirs
    assert ours != others
    assert_equal_states(first.state(), second.state())

    save_checkpoint(tmp_path / "state.safetensors", second.state(), {})
    state, _ = load_checkpoint(tmp_path / "state.safetensors")
    # One learner takes up the state in the middle of a training of its own.
    other.restore(state)
    assert_equal_states(other.state(), state)
    assert iterations(other, 3) == iterations(first, 3)
    assert_equal_states(other.state(), first.state())

    while first.steps < 12_000:
        first.iterate()
    score = evaluate(first.policy, make(Chain, 2), episodes=2).returns
    np.testing.assert_allclose(score, Chain.optimum)


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("vpg", {"kl_target": 0.0}, "kl_target is 0.0; expected greater than 0"),
        ("vpg", {"critic_minibatch_size": 60}, "critic_minibatch_size=60 does not divide"),
        ("vpg", {"steps_per_iteration": 32, "num_envs": 8}, "critic_minibatch_size=64 does not"),
        ("trpo", {"max_kl": -0.01}, "max_kl is -0.01; expected greater than 0"),
        ("trpo", {"shrink": 1.0}, "shrink is 1.0; expected less than 1"),
        ("trpo", {"backtracks": 0}, "backtracks is 0; expected greater than or equal to 1"),
        ("ppo-kl", {"kl_target": -1}, "kl_target is -1; expected greater than 0"),
        ("ppo-kl", {"minibatch_size": 60}, "minibatch_size=60 does not divide"),
        ("ppo-kl", {"epsilon": 0.2}, "unknown key 'epsilon'"),
        ("a2c", {"optimizer": "sgd"}, "optimizer is 'sgd'; expected 'rmsprop' or 'adam'"),
        ("a2c", {"steps_per_iteration": 40}, "steps_per_iteration=40 is not a multiple of"),
        ("a2c-tr", {"max_slope": 0}, "max_slope is 0; expected greater than 0"),
        ("reinforce", {"lam": 0.95}, "lam is 0.95; expected greater than or equal to 1"),
        ("reinforce", {"weight": "Q"}, "weight is 'Q'; expected 'return', 'reward-to-go' or"),
        ("reinforce", {"critic_epochs": 9}, "choose weight baseline"),
        ("cem", {"initial_log_std": 0.0}, "which this method does not use; leave it out"),
        ("a2c", {"optimizer": "adam", "rmsprop_decay": 0.9}, "choose optimizer rmsprop"),
        ("ppo-kl", {"fixed_beta": True, "kl_target": 0.1}, "choose fixed_beta False"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    method: str, setting: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        configure(method, settings=setting)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["vpg", "a2c", "a2c-tr", "trpo", "ppo", "ppo-kl"])
def test_the_paper_preset_names_every_field(method: str) -> None:
    learner = find_method(METHODS, method)
    assert learner.presets["paper"].keys() == learner.config_class.model_fields.keys()
    configure(method, "paper")
