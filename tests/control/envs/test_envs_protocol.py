"""What both doors promise alike."""

import numpy as np
import pytest

from tether.control.envs import VectorEnv, make

BOTH_DOORS = pytest.mark.parametrize("door", ["mujoco", "gymnasium"])


def reacher(door: str, num_envs: int) -> VectorEnv:
    """An arm that nothing but the time limit stops."""
    return make("Reacher-v5", num_envs, door=door, max_episode_steps=10)


def ends(env: VectorEnv, steps: int) -> list[list[int]]:
    """The steps after which each environment's episodes were cut, counted from now."""
    found: list[list[int]] = [[] for _ in range(env.num_envs)]
    action = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    for t in range(steps):
        step = env.step(action)
        assert not step.terminated.any()
        for n in np.flatnonzero(step.truncated):
            found[n].append(t + 1)
    return found


@BOTH_DOORS
def test_staggered_environments_are_cut_apart_once_and_keep_their_distance(door: str) -> None:
    env = reacher(door, 4)
    plain = env.reset(7).copy()
    np.testing.assert_array_equal(env.reset(7, stagger=True), plain)
    assert ends(env, 30) == [[3, 13, 23], [5, 15, 25], [8, 18, 28], [10, 20, 30]]
    env.reset(7)
    assert ends(env, 20) == [[10, 20]] * 4


@BOTH_DOORS
def test_a_staggered_first_episode_resumes(door: str) -> None:
    env, other = reacher(door, 3), reacher(door, 3)
    env.reset(1, stagger=True)
    assert ends(env, 5) == [[4], [], []]
    state = env.state()
    other.reset(2)
    other.restore(state)
    assert ends(other, 20) == ends(env, 20) == [[9, 19], [2, 12], [5, 15]]


@BOTH_DOORS
def test_without_a_time_limit_there_is_nothing_to_stagger(door: str) -> None:
    env = make("HalfCheetah-v5", 3, door=door, max_episode_steps=-1)
    env.reset(0, stagger=True)
    assert ends(env, 30) == [[]] * 3
