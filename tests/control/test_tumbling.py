"""The hopper that may turn over: Hopper-v5, but for its angle and its ends."""

import warnings

import gymnasium
import numpy as np
import pytest
from both_backends import equal_steps
from gymnasium.utils.env_checker import check_env

from tether.control import tumbling
from tether.control.envs import check_vector_env, make


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT where Gymnasium loads its models."""
    monkeypatch.chdir(tmp_path)


def test_gymnasium_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*infinity.*")
        check_env(gymnasium.make(tumbling.ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("hidden", [True, False])
def test_the_mujoco_backend_gives_the_same_bits_as_gymnasium(hidden) -> None:
    fields = ("final_observation", "reward", "terminated", "truncated")
    for ours, _ in equal_steps(
        tumbling.ID, 250, fields, exclude_current_positions_from_observation=hidden
    ):
        assert not ours.terminated.any()
    assert ours.truncated.all()


def test_a_whole_turn_changes_nothing_that_it_observes() -> None:
    assert check_vector_env(make(tumbling.ID, 2, max_episode_steps=20), 30) == 2
    env = gymnasium.make(tumbling.ID).unwrapped
    env.reset(seed=0)
    positions, velocities = env.data.qpos.copy(), env.data.qvel.copy()
    upright = env._get_obs()
    positions[2] -= 2 * np.pi
    env.set_state(positions, velocities)
    np.testing.assert_allclose(env._get_obs(), upright, atol=1e-12)
    positions[2] += np.pi + 0.1
    env.set_state(positions, velocities)
    # Upside down and a little: pi + 0.1 is the direction -pi + 0.1.
    assert env._get_obs()[1] == pytest.approx(-np.pi + 0.1, abs=0.01)
