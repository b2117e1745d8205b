"""The cross-entropy method: one generation by hand, then what it finds."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from chain_environment import BEST, Chain
from comparisons import assert_equal_states
from gymnasium import spaces
from toy_environments import Copy, Faulty

import tether
from tether.control.envs import make
from tether.control.envs.gymnasium_vector import episode_seed
from tether.control.evaluation import evaluate
from tether.control.methods.cem import CEM, CEMConfig, flatten, unflatten
from tether.control.policy import Policy, PolicyParameters
from tether.errors import BadEnvironmentError
from tether.learning import load_checkpoint, save_checkpoint

Env = str | Callable[[], gym.Env]


def learner_of(env: Env, *, seed: int = 0, **settings: Any) -> CEM:
    config = CEMConfig(**settings)
    return CEM(config, make(env, config.population), seed=seed, total_steps=100_000)


def policy_with(learner: CEM, vector: np.ndarray) -> Policy:
    like = learner.policy.parameters
    network = unflatten(like.network, vector.astype(np.float32))
    return Policy(learner.spec, PolicyParameters(network, like.log_std), learner.policy.normalizer)


@pytest.mark.parametrize(
    ("space", "show"),
    [
        (spaces.Discrete(3), "vector"),
        (spaces.Box(-1, 1, (2,)), "vector"),
        (spaces.Discrete(2), "image"),
    ],
    ids=["Discrete", "Box", "image"],
)
def test_a_generation_is_the_textbook_by_hand(space: spaces.Space, show: str) -> None:
    settings: dict[str, Any] = {
        "population": 6,
        "elite_fraction": 0.34,
        "episodes": 2,
        "initial_std": 0.7,
        "extra_std": 0.3,
        "extra_generations": 4,
        "hidden": (3,),
        "normalize_observation": False,
    }
    env = functools.partial(Copy, space, show)
    learner, twin = learner_of(env, **settings), learner_of(env, **settings)
    start = learner.mean.copy()
    # The same draws as the learner will make.
    members = start + 0.7 * twin.rng.standard_normal((6, len(start)))
    seeds = twin._acting.integers(2**63, size=6).tolist()
    scores = []
    for n, member in enumerate(members):
        policy, total = policy_with(learner, member), 0.0
        for episode in range(2):
            world = env()
            observation, _ = world.reset(seed=episode_seed(seeds[n], episode))
            over = False
            while not over:
                observation, reward, terminated, truncated, _ = world.step(
                    policy.predict(observation)
                )
                total, over = total + float(reward), terminated or truncated
        scores.append(total / 2)
    # Of equals, the first.
    elite = sorted(range(6), key=lambda n: -scores[n])[:2]
    assert len(set(scores)) > 2
    metrics = learner.iterate()
    assert metrics["population/return_mean"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert metrics["population/return_best"] == pytest.approx(max(scores), rel=1e-5)
    assert metrics["return/mean"] == pytest.approx(np.mean(scores), rel=1e-5)
    np.testing.assert_allclose(learner.mean, members[elite].mean(0), atol=1e-6)
    left = 0.3**2 * (1 - 1 / 4)
    np.testing.assert_allclose(learner.variance, members[elite].var(0) + left, atol=1e-6)
    assert learner.steps == 6 * 2 * 16
    assert metrics["episode/count"] == 12
    # The mean is the policy.
    np.testing.assert_array_equal(
        flatten(learner.policy.parameters.network), learner.mean.astype(np.float32)
    )


def test_the_extra_noise_decays_to_none() -> None:
    learner = learner_of(Chain, population=4, elite_fraction=0.25, extra_generations=3)
    extras = []
    for _ in range(4):
        learner.iterate()
        # A single elite has no variance of its own.
        extras.append(float(learner.variance.max()))
        assert learner.variance.min() == learner.variance.max()
    np.testing.assert_allclose(extras, 0.25**2 * np.array([2, 1, 0, 0]) / 3, atol=1e-12)


def test_the_statistics_stand_still_when_the_extra_noise_has_ended() -> None:
    learner = learner_of(Chain, population=4, extra_generations=2, normalize_observation=True)
    counts = []
    for _ in range(4):
        learner.iterate()
        assert learner.policy.normalizer is not None
        counts.append((learner.policy.normalizer.moments.count, learner.steps))
    assert [count for count, _ in counts[:2]] == [steps for _, steps in counts[:2]]
    assert counts[3][0] == counts[2][0] == counts[1][0] < counts[2][1] < counts[3][1]


@pytest.mark.parametrize(
    ("env", "generations", "least"),
    [
        (Chain, 12, BEST),
        (functools.partial(Copy, spaces.Discrete(3)), 15, 0.95 * 16),
        (functools.partial(Copy, spaces.MultiDiscrete([3, 2])), 15, 0.95 * 16),
        (functools.partial(Copy, spaces.MultiBinary(3)), 15, 0.95 * 16),
        (functools.partial(Copy, spaces.Box(-1, 1)), 12, 0.95 * 16),
        ("CartPole-v1", 6, 475),
    ],
    ids=["chain", "Discrete", "MultiDiscrete", "MultiBinary", "Box", "CartPole"],
)
def test_it_is_solved_by_the_mean(env: Env, generations: int, least: float) -> None:
    learner = learner_of(env, population=32, extra_generations=10)
    for _ in range(generations):
        learner.iterate()
    assert evaluate(learner.policy, make(env, 5), episodes=10).returns.mean() >= least - 1e-6


def test_episodes_are_whole_and_an_endless_one_is_cut() -> None:
    # Members end at different times; those that wait run on, and it must not count.
    learner = learner_of("CartPole-v1", population=8, normalize_observation=True)
    for _ in range(2):
        metrics = learner.iterate()
    assert metrics["episode/count"] == 16
    assert metrics["episode/length"] * 16 == pytest.approx(learner.steps)
    assert learner.policy.normalizer is not None
    assert learner.policy.normalizer.moments.count == learner.steps
    endless = learner_of(
        functools.partial(Faulty, at=10**9, length=10**9),
        population=3,
        episodes=2,
        longest_episode=7,
    )
    metrics = endless.iterate()
    assert (metrics["episode/length"], endless.steps, metrics["episode/count"]) == (7, 21, 3)
    assert metrics["population/return_mean"] == 7.0


@pytest.mark.parametrize("env", ["CartPole-v1", "Reacher-v5"])
def test_twice_is_the_same_and_a_checkpoint_continues_bit_for_bit(env: str, tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"population": 4, "elite_fraction": 0.5, "hidden": (3,)}
    first, second, other, resumed = (learner_of(env, seed=seed, **tiny) for seed in (1, 1, 2, 9))
    assert [first.iterate() for _ in range(2)] == [second.iterate() for _ in range(2)]
    assert_equal_states(first.state(), second.state())
    other.iterate()
    assert not np.array_equal(other.mean, first.mean)
    save_checkpoint(tmp_path / "state.safetensors", first.state(), {})
    resumed.iterate()
    resumed.restore(load_checkpoint(tmp_path / "state.safetensors")[0])
    assert [resumed.iterate() for _ in range(3)] == [second.iterate() for _ in range(3)]
    assert_equal_states(resumed.state(), second.state())


def test_a_run_is_saved_loaded_and_resumed(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"progress": False, "sinks": ()}
    out = tmp_path / "run"
    settings: dict[str, Any] = {"population": 4, "total_steps": 100, "preset": "paper"}
    trained = tether.train("cem", Chain, out=out, **settings, **quiet)
    assert trained.steps >= 100
    assert_equal_states(tether.load(out).state(), trained.policy.state())
    again = tether.resume(out, env=Chain, total_steps=trained.steps + 1, **quiet)
    assert again.steps > trained.steps


@pytest.mark.parametrize("fault", ["reward", "observation"])
def test_an_environment_that_gives_nan_is_told(fault: str) -> None:
    learner = learner_of(functools.partial(Faulty, fault, at=4), population=2)
    with pytest.raises(BadEnvironmentError, match=f"Faulty returned nan in its {fault}"):
        learner.iterate()
