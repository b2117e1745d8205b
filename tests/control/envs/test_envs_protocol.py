"""What both backends promise alike."""

import numpy as np
import pytest
from gymnasium import spaces
from sample_environments import Scripted

from tether.control.envs import VectorEnv, make
from tether.errors import UserError

BOTH_BACKENDS = pytest.mark.parametrize("backend", ["mujoco", "gymnasium"])


def reacher(backend: str, num_envs: int) -> VectorEnv:
    """An arm that nothing but the time limit stops."""
    return make("Reacher-v5", num_envs, backend=backend, max_episode_steps=10)


def first_ends(env: VectorEnv, steps: int) -> list[tuple[int, bool]]:
    """Of each environment: after how many steps its first episode ends, and if it was shortened."""
    found: list[tuple[int, bool]] = [(0, False)] * env.num_envs
    rng = np.random.default_rng(0)
    for t in range(1, steps + 1):
        action = rng.integers(2, size=env.num_envs)
        step = env.step(action.astype(env.action_space.dtype))
        for n in np.flatnonzero(step.terminated | step.truncated):
            found[n] = found[n] if found[n][0] else (t, bool(step.shortened[n]))
    return found


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


@BOTH_BACKENDS
def test_staggered_environments_are_cut_apart_once_and_keep_their_distance(backend: str) -> None:
    env = reacher(backend, 4)
    plain = env.reset(7).copy()
    np.testing.assert_array_equal(env.reset(7, stagger=True), plain)
    assert ends(env, 30) == [[3, 13, 23], [5, 15, 25], [8, 18, 28], [10, 20, 30]]
    env.reset(7)
    assert ends(env, 20) == [[10, 20]] * 4


@BOTH_BACKENDS
def test_a_staggered_first_episode_resumes(backend: str) -> None:
    env, other = reacher(backend, 3), reacher(backend, 3)
    env.reset(1, stagger=True)
    assert ends(env, 5) == [[4], [], []]
    state = env.state()
    other.reset(2)
    other.restore(state)
    assert ends(other, 20) == ends(env, 20) == [[9, 19], [2, 12], [5, 15]]


@BOTH_BACKENDS
def test_without_a_time_limit_there_is_nothing_to_stagger(backend: str) -> None:
    env = make("HalfCheetah-v5", 3, backend=backend, max_episode_steps=-1)
    env.reset(0, stagger=True)
    assert ends(env, 30) == [[]] * 3


@BOTH_BACKENDS
def test_states_from_before_there_was_stagger_are_restored(backend: str) -> None:
    env, other = reacher(backend, 2), reacher(backend, 2)
    env.reset(1)
    ends(env, 5)
    state = env.state()
    del state["limits"]
    other.reset(0, stagger=True)
    other.restore(state)
    assert ends(other, 15) == ends(env, 15) == [[5, 15]] * 2


@BOTH_BACKENDS
def test_limits_of_other_environments_are_refused(backend: str) -> None:
    env = reacher(backend, 2)
    env.reset(0)
    state = {**env.state(), "limits": np.zeros(3, np.int64)}
    with pytest.raises(UserError, match=r"time limits of shape \(3,\)"):
        env.restore(state)


@BOTH_BACKENDS
def test_one_environment_and_more_than_there_are_steps(backend: str) -> None:
    alone = reacher(backend, 1)
    alone.reset(0, stagger=True)
    assert ends(alone, 25) == [[10, 20]]
    many = reacher(backend, 20)
    many.reset(0, stagger=True)
    found = ends(many, 10)
    assert [first for first, *_ in found] == [-(-10 * (n + 1) // 20) for n in range(20)]
    many.reset(0, stagger=True)
    shortened = np.zeros(20, bool)
    for _ in range(10):
        shortened |= many.step(np.zeros((20, 2), np.float32)).shortened
    assert shortened.tolist() == [first < 10 for first, *_ in found]


def test_a_shortened_episode_is_told_however_it_ends() -> None:
    # Nobody balances: poles fall after some 10 to 40 of 50 steps.
    env = make("CartPole-v1", 10, max_episode_steps=50)
    env.reset(3)
    natural = [end for end, _ in first_ends(env, 50)]
    assert any(end < 20 for end in natural)
    env.reset(3, stagger=True)
    expected = [(min(end, 5 * (n + 1)), n < 9) for n, end in enumerate(natural)]
    assert first_ends(env, 50) == expected


def test_an_end_that_gymnasium_does_not_tell_is_left_alone() -> None:
    env = make(lambda: Scripted(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)), 4)
    env.reset(0, stagger=True)
    staggered = first_ends(env, 60)
    env.reset(0)
    assert first_ends(env, 60) == staggered
    assert any(end for end, _ in staggered)
    assert not any(shortened for _, shortened in staggered)
