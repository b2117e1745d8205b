"""The MuJoCo backend against Gymnasium itself, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import tether
from tether.control.envs import BATCHED_TASKS, make
from tether.control.envs.gymnasium_vector import GymnasiumVectorEnv
from tether.control.envs.mujoco_batch import (
    _TASKS,
    MujocoVectorEnv,
    _generator,
    _generator_words,
    task_of,
)
from tether.errors import UserError

# Bodies in space cost ten times what the others do: 2,000 steps in all, not of each.
HEAVY = ("Ant-v5", "Humanoid-v5", "HumanoidStandup-v5")

# Every weight and option away from its default, with short limits so that both kinds of end occur.
VARIANTS = {
    "HalfCheetah-v5": {
        "forward_reward_weight": 0.7,
        "ctrl_cost_weight": np.float64(0.3),
        "reset_noise_scale": 0.2,
        "exclude_current_positions_from_observation": False,
        "frame_skip": 3,
        "max_episode_steps": 17,
    },
    "Hopper-v5": {
        "forward_reward_weight": 1.3,
        "ctrl_cost_weight": 0.01,
        "healthy_reward": 0.3,
        "healthy_state_range": (-5.0, 5.0),
        "healthy_z_range": (0.5, 1.3),
        "healthy_angle_range": (-0.3, 0.3),
        "reset_noise_scale": 0.02,
        "exclude_current_positions_from_observation": False,
        "max_episode_steps": 17,
    },
    "Walker2d-v5": {
        "terminate_when_unhealthy": False,
        "healthy_reward": 0.4,
        "healthy_z_range": (1.0, 1.3),
        "healthy_angle_range": (-0.2, 0.1),
        "max_episode_steps": 29,
    },
    "Swimmer-v5": {
        "ctrl_cost_weight": 0.1,
        "exclude_current_positions_from_observation": False,
        "max_episode_steps": 11,
    },
    "Reacher-v5": {
        "reward_dist_weight": 2,
        "reward_control_weight": 0.3,
        "max_episode_steps": -1,
    },
    "InvertedPendulum-v5": {"reset_noise_scale": 0.1, "max_episode_steps": 6},
    "InvertedDoublePendulum-v5": {"healthy_reward": 3, "max_episode_steps": 5},
    "Ant-v5": {
        "include_cfrc_ext_in_observation": False,
        "contact_force_range": (-0.5, 2.0),
        "contact_cost_weight": 0.1,
        "main_body": "torso",
        "healthy_z_range": (0.4, 0.8),
        "exclude_current_positions_from_observation": False,
        "max_episode_steps": 40,
    },
    "Humanoid-v5": {
        "include_cinert_in_observation": False,
        "include_qfrc_actuator_in_observation": False,
        "contact_cost_weight": 1e-3,
        "contact_cost_range": (0.1, 5.0),
        "terminate_when_unhealthy": False,
        "max_episode_steps": 30,
    },
    "HumanoidStandup-v5": {
        "include_cvel_in_observation": False,
        "impact_cost_weight": 1e-3,
        "impact_cost_range": (0.2, 5.0),
        "uph_cost_weight": 2.0,
        "max_episode_steps": 30,
    },
    "Pusher-v5": {
        "reward_near_weight": 0.9,
        "reward_dist_weight": 1.7,
        "reward_control_weight": 0.2,
        "max_episode_steps": 13,
    },
}


def random_actions(space, steps, count, seed=0):
    generator = np.random.default_rng(seed)
    shape = (steps, count, *space.shape)
    return generator.uniform(space.low, space.high, shape).astype(np.float32)


def play_both(env_id, count, steps, seed, **kwargs):
    """Step both; assert every bit equal; return how often episodes were terminated and cut."""
    env = make(env_id, count, **kwargs)
    assert isinstance(env, MujocoVectorEnv)
    singles = [gym.make(env_id, **kwargs) for _ in range(count)]
    first = np.stack([one.reset(seed=seed + i)[0] for i, one in enumerate(singles)])
    assert env.reset(seed).tobytes() == first.tobytes()
    ends = [0, 0]
    for t, action in enumerate(random_actions(env.action_space, steps, count)):
        step = env.step(action)
        for i, one in enumerate(singles):
            where = f"{env_id}, step {t}, environment {i}"
            observation, reward, terminated, truncated, _ = one.step(action[i])
            assert step.final_observation[i].tobytes() == observation.tobytes(), where
            assert step.reward[i].tobytes() == np.float64(reward).tobytes(), where
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated), where
            ends[0] += terminated
            ends[1] += truncated
            if terminated or truncated:
                observation, _ = one.reset()
            assert step.observation[i].tobytes() == observation.tobytes(), where
    return ends


@pytest.mark.parametrize("env_id", BATCHED_TASKS)
def test_thousands_of_steps_equal_gymnasium_bit_for_bit(env_id):
    count, steps = (2, 1000) if env_id in HEAVY else (3, 2000)
    terminated, truncated = play_both(env_id, count, steps, seed=7)
    assert terminated + truncated >= 2


@pytest.mark.parametrize("env_id", BATCHED_TASKS)
def test_keyword_arguments_are_honoured(env_id):
    terminated, truncated = play_both(env_id, 2, 200, seed=3, **VARIANTS[env_id])
    if VARIANTS[env_id]["max_episode_steps"] == -1:
        assert truncated == 0
    else:
        assert truncated >= 1
    if env_id in ("Hopper-v5", "Ant-v5", "InvertedPendulum-v5"):
        assert terminated >= 1


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "InvertedDoublePendulum-v5"])
def test_velocities_are_clipped_on_both_sides(env_id):
    kwargs = {"reset_noise_scale": 20.0, "max_episode_steps": 2}
    first = make(env_id, 3, **kwargs).reset(0)
    assert (first == 10).any() and (first == -10).any()
    play_both(env_id, 3, 6, seed=0, **kwargs)


def test_generators_keep_the_half_drawn_number():
    generator = np.random.default_rng(5)
    generator.integers(100, dtype=np.uint32)
    assert generator.bit_generator.state["has_uint32"] == 1
    copy = _generator(_generator_words(generator))
    assert copy.bit_generator.state == generator.bit_generator.state


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_environments(count):
    play_both("InvertedDoublePendulum-v5", count, 200, seed=0)
    play_both("Humanoid-v5", count, 20, seed=0)


def test_batched_tasks_are_all_the_v5_tasks():
    every = {i for i, s in gym.registry.items() if "envs.mujoco." in str(s.entry_point)}
    assert set(BATCHED_TASKS) == {i for i in every if i.endswith("-v5")}
    # And three of tether's own.
    assert len(_TASKS) == len(BATCHED_TASKS) + 3


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5"])
def test_results_do_not_depend_on_threads(env_id):
    one, two = make(env_id, 5, threads=1), make(env_id, 5, threads=2)
    assert one.reset(1).tobytes() == two.reset(1).tobytes()
    for action in random_actions(one.action_space, 150, 5):
        for a, b in zip(one.step(action)[:6], two.step(action)[:6], strict=True):
            assert a.tobytes() == b.tobytes()
    two.close()


@pytest.mark.parametrize("env_id", BATCHED_TASKS)
def test_a_state_continues_bit_for_bit_in_a_fresh_object(env_id):
    limit = {"max_episode_steps": 40}
    env, fresh = make(env_id, 3, **limit), make(env_id, 3, threads=2, **limit)
    actions = random_actions(env.action_space, 100, 3)
    env.reset(5)
    for action in actions[:33]:
        current = env.step(action).observation
    current, state = current.copy(), env.state()
    followed = [[part.copy() for part in env.step(action)[:6]] for action in actions[33:]]
    assert any((step[2] | step[3]).any() for step in followed)
    fresh.reset(99)
    for resumed in (env, fresh):
        assert resumed.restore(state).tobytes() == current.tobytes()
        for action, expected in zip(actions[33:], followed, strict=True):
            for got, part in zip(resumed.step(action)[:6], expected, strict=True):
                assert got.tobytes() == part.tobytes()
    fresh.close()


def test_states_of_others_are_refused():
    env = make("Hopper-v5", 2)
    with pytest.raises(UserError, match="no state to save before reset"):
        env.state()
    with pytest.raises(UserError, match=r"call reset\(seed\) before step"):
        env.step(np.zeros((2, 3), np.float32))
    env.reset(0)
    other = make("Walker2d-v5", 2)
    with pytest.raises(UserError, match="has id 'Hopper-v5', not 'Walker2d-v5'"):
        other.restore(env.state())
    with pytest.raises(UserError, match="physics of shape"):
        make("Hopper-v5", 3).restore(env.state())
    with pytest.raises(UserError, match="seed is an integer from 0"):
        env.reset(-1)


def test_only_untouched_tasks_take_the_door():
    class Doubled(gym.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    plain = gym.make("Hopper-v5")
    assert task_of(plain) is not None
    assert task_of(Doubled(plain)) is None
    assert task_of(gym.make("Hopper-v4")) is None

    class Heavier(type(plain.unwrapped)):
        pass

    assert task_of(Heavier()) is None
    with pytest.raises(UserError, match="none of the MuJoCo v5 tasks"):
        make("CartPole-v1", 2, backend="mujoco")
    assert isinstance(make("Hopper-v5", 1, backend="gymnasium"), GymnasiumVectorEnv)
    # What a function did to the environment is unknown, so only the user can vouch for it.
    assert isinstance(make(lambda: gym.make("Hopper-v5"), 1), GymnasiumVectorEnv)
    assert isinstance(make(lambda: gym.make("Hopper-v5"), 1, backend="mujoco"), MujocoVectorEnv)


def test_both_doors_give_the_same_first_episode():
    batched, single = (
        make("Walker2d-v5", 2, backend=backend) for backend in ("mujoco", "gymnasium")
    )
    assert batched.observation_space == single.observation_space
    assert batched.reset(4).tobytes() == single.reset(4).tobytes()
    running = np.ones(2, bool)
    for action in random_actions(batched.action_space, 90, 2):
        a, b = batched.step(action), single.step(action)
        assert a.final_observation[running].tobytes() == b.final_observation[running].tobytes()
        assert a.reward[running].tobytes() == b.reward[running].tobytes()
        running &= ~(a.terminated | a.truncated)
    assert not running.any()


def test_doubles_are_cast_to_the_actions_own_precision():
    env = make("HalfCheetah-v5", 2)
    actions = random_actions(env.action_space, 20, 2)
    env.reset(0)
    expected = [env.step(action).reward.copy() for action in actions]
    env.reset(0)
    for action, reward in zip(actions, expected, strict=True):
        assert env.step(action.astype(np.float64)).reward.tobytes() == reward.tobytes()


def test_needs_no_display_and_leaves_no_litter(tmp_path):
    keep = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    keep["PYTHONPATH"] = str(Path(tether.__file__).parents[1])
    code = (
        "import numpy as np; from tether.control.envs import make\n"
        "env = make('HalfCheetah-v5', 2); env.reset(0)\n"
        "env.step(np.zeros((2, 6), np.float32)); env.close(); print('stepped')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=keep,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "stepped\n", done.stderr
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
