"""Trainings of different seeds have nothing random in common, those of one seed everything."""

from typing import Any

import numpy as np
import pytest

from tether.control.envs import make
from tether.control.evaluation import EVALUATION_SEED
from tether.control.methods import METHODS
from tether.control.policy_learner import training_seeds
from tether.learning.methods import find_method

COUNT = 32


def learner_of(method: str, env: str, seed: int, **settings: Any) -> Any:
    kind = find_method(METHODS, method)
    config = kind.config_class.load(settings)
    return kind(config, make(env, kind.environments(config)), seed=seed, total_steps=10_000)


def first_states(method: str, env: str, seed: int) -> np.ndarray:
    learner = learner_of(method, env, seed, num_envs=COUNT, hidden=(8,))
    held: np.ndarray = learner.collector.collect(1).observation[0]
    return held


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "CartPole-v1"])
def test_trainings_of_neighbouring_seeds_share_no_first_state(env: str) -> None:
    zero, one, again = (first_states("ppo", env, seed) for seed in (0, 1, 0))
    assert zero.tobytes() == again.tobytes()
    rows = {row.tobytes() for states in (zero, one) for row in states}
    assert len(rows) == 2 * COUNT


def test_environment_seeds_are_those_numpy_spawns() -> None:
    environments = np.random.SeedSequence(7).spawn(4)[3].spawn(5)
    words = [int(child.generate_state(1, np.uint64)[0]) for child in environments]
    assert training_seeds(7, 5) == [word >> 1 for word in words]


def test_no_two_trainings_share_an_environment() -> None:
    seeds = [s for run in [*range(300), *range(1000, 1100)] for s in training_seeds(run, COUNT)]
    assert len(set(seeds)) == 400 * COUNT
    assert min(seeds) > EVALUATION_SEED + 10_000
    assert max(seeds) < 2**63
    # More environments are the same ones and some others.
    assert training_seeds(3, 64)[:COUNT] == training_seeds(3, COUNT)


def test_no_generation_of_the_cross_entropy_method_repeats_an_environment() -> None:
    drawn: list[int] = []
    for seed in (0, 1):
        learner = learner_of("cem", "CartPole-v1", seed, population=8, hidden=())
        reset = learner.env.reset

        def note(seeds: Any, reset: Any = reset, **kwargs: Any) -> Any:
            drawn.extend(np.atleast_1d(seeds).tolist())
            return reset(seeds, **kwargs)

        learner.env.reset = note
        for _ in range(3):
            learner.iterate()
    assert len(set(drawn)) == len(drawn) == 2 * 3 * 8
    assert np.abs(np.diff(np.sort(np.array(drawn, np.int64)))).min() > 1
