"""Finished runs that many tests look at and none changes."""

import pytest
from short_runs import SHORT, TINY

import tether
from tether.control.training import TrainedPolicy as Trained


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A HalfCheetah whose episodes have 25 steps."""
    out = tmp_path_factory.mktemp("runs") / "cheetah"
    return tether.train("ppo", "HalfCheetah-v5", total_steps=512, seed=3, out=out, **SHORT, **TINY)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A policy of nested observations, for an environment that cannot be drawn."""
    out = tmp_path_factory.mktemp("runs") / "pairs"
    env = "toy_environments:CopyDict-v0"
    return tether.train("ppo", env, total_steps=512, seed=3, out=out, **TINY)
