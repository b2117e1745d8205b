"""The Gymnasium backend: episodes, resets, resume, and environments that do not keep their word."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sample_environments import Camera, Countdown, Liar, Scribbler, Scripted, Unseeded

from tether.control.envs import make
from tether.control.envs.gymnasium_vector import episode_seed
from tether.errors import BadEnvironmentError, UserError

OBSERVATIONS = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(-5, 5, (4,), np.int64),
    spaces.Discrete(4, start=-2),
    spaces.MultiBinary([2, 3]),
    spaces.MultiDiscrete([2, 3], start=[1, -1]),
    spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Tuple([spaces.Box(0, 1, (2,))] * 2)}),
    spaces.Box(0, 255, (4, 3, 2), np.uint8),
]
ACTIONS = [
    spaces.Box(-2, 2, (2,)),
    spaces.Box(-2, 2, (2, 3), np.float64),
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3], start=[0, 5]),
    spaces.MultiBinary(4),
]


def sample(env, steps, seed=0):
    env.action_space.seed(seed)
    return [
        np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(steps)
    ]


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
@pytest.mark.parametrize("observation_space", OBSERVATIONS, ids=lambda s: type(s).__name__)
def test_steps_equal_the_environments_own(observation_space, action_space):
    """Each environment alone, reset with the documented seeds and flattened by Gymnasium."""
    env = make(lambda: Scripted(observation_space, action_space), 3)
    singles = [Scripted(observation_space, action_space) for _ in range(3)]
    image = observation_space.dtype == np.uint8

    def flat(observation):
        return observation if image else spaces.flatten(observation_space, observation)

    first = np.stack([flat(one.reset(seed=11 + i)[0]) for i, one in enumerate(singles)])
    np.testing.assert_array_equal(env.reset(11), first)
    episodes = [0, 0, 0]
    for action in sample(env, 40):
        step = env.step(action)
        assert (step.final_observation is step.observation) == (not step.terminated.any())
        for i, one in enumerate(singles):
            observation, reward, terminated, truncated, _ = one.step(action[i])
            np.testing.assert_array_equal(step.final_observation[i], flat(observation))
            assert step.reward[i] == reward
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            if terminated:
                episodes[i] += 1
                observation, _ = one.reset(seed=episode_seed(11 + i, episodes[i]))
            np.testing.assert_array_equal(step.observation[i], flat(observation))
    assert min(episodes) >= 2


def test_a_reset_is_no_step_and_the_final_observation_is_true():
    env = make("sample_environments:Countdown-v0", 2, start=2)
    np.testing.assert_array_equal(env.reset(0)[:, 0], [1.0, 1.0])
    action = np.array([3, 4])
    left = lambda array: np.argmax(array[:, 1:], axis=1)  # noqa: E731
    rewards = 0.0
    for t in range(1, 7):
        step = env.step(action)
        rewards += step.reward[0]
        ends = t % 2 == 0
        assert step.terminated.tolist() == [ends, ends]
        assert left(step.observation).tolist() == [2 if ends else 1] * 2
        assert left(step.final_observation).tolist() == [0 if ends else 1] * 2
    assert rewards == 6.0


def test_time_limits_truncate():
    env = make("sample_environments:Countdown-v0", 1, start=9)
    env.reset(0)
    flags = [(bool(s.terminated[0]), bool(s.truncated[0])) for s in map(env.step, [[3]] * 6)]
    assert flags == [(False, False), (False, False), (False, True)] * 2
    env = make("sample_environments:Countdown-v0", 1, start=9, max_episode_steps=9)
    env.reset(0)
    ends = [env.step([3]) for _ in range(9)][-1]
    assert ends.terminated[0] and ends.truncated[0]


def test_episode_seeds_differ_and_fit_31_bits():
    seeds = [episode_seed(s, k) for s in range(20) for k in range(1, 50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert episode_seed(2**32 - 1, 0) == 2**32 - 1
    # numpy.random.seed and C libraries take no more than 32 bits.
    long = [episode_seed(2**40 + s, 0) for s in range(20)]
    assert len(set(long)) == 20
    assert all(0 <= seed < 2**31 for seed in long)


@pytest.mark.parametrize(
    "source",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "FrozenLake-v1",
        "HalfCheetah-v5",
        Camera,
        Scribbler,
        lambda: Scripted(OBSERVATIONS[6], ACTIONS[4]),
    ],
)
def test_a_state_continues_bit_for_bit_in_a_fresh_object(source):
    env, fresh = (make(source, 3, backend="gymnasium") for _ in range(2))
    env.reset(2)
    actions = sample(env, 60)
    for action in actions[:25]:
        current = env.step(action).observation
    current, state = current.copy(), env.state()
    assert state["actions"].dtype == env.action_space.dtype
    followed = [[part.copy() for part in env.step(action)[:6]] for action in actions[25:]]
    for resumed in (env, fresh):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert resumed.restore(state).tobytes() == current.tobytes()
        for action, expected in zip(actions[25:], followed, strict=True):
            for got, part in zip(resumed.step(action)[:6], expected, strict=True):
                assert got.tobytes() == part.tobytes()


def test_resume_of_a_nondeterministic_environment_warns():
    env = make(Unseeded, 2)
    env.reset(0)
    env.step(np.array([0, 1]))
    with pytest.warns(UserWarning, match=r"Unseeded is not deterministic.*\[0, 1\].*bit-exact"):
        env.restore(env.state())


def test_states_of_others_are_refused():
    env = make("CartPole-v1", 2)
    with pytest.raises(UserError, match="no state to save before reset"):
        env.state()
    with pytest.raises(UserError, match=r"call reset\(seed\) before step"):
        env.step(np.zeros(2, int))
    env.reset(0)
    state = env.state()
    with pytest.raises(UserError, match="has id 'CartPole-v1', not 'Acrobot-v1'"):
        make("Acrobot-v1", 2).restore(state)
    with pytest.raises(UserError, match="seeds of shape"):
        make("CartPole-v1", 3).restore(state)
    with pytest.raises(UserError, match="has backend 'mujoco'"):
        env.restore({**state, "backend": "mujoco"})
    # As the first version's checkpoints have it.
    named = {("door" if name == "backend" else name): value for name, value in state.items()}
    env.restore(named)
    with pytest.raises(UserError, match="has backend 'mujoco'"):
        env.restore({**named, "door": "mujoco"})
    with pytest.raises(UserError, match="actions of shape"):
        env.restore({**state, "lengths": np.array([1, 5])})
    with pytest.raises(UserError, match="3 seeds for 2 environments; expected one for each"):
        env.reset([1, 2, 3])
    for seed in (-1, 0.5, True, "0", [1, -1], 2**64, 2**64 - 1):
        with pytest.raises(UserError, match="seed is an integer from 0"):
            env.reset(seed)


HONEST = Liar.honest


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"reset": HONEST}, r"reset must return \(observation, info\), got an array of shape"),
        ({"reset": (np.zeros(3), {})}, r"at reset .* shape \(3,\), its space promises \(2,\)"),
        ({"reset": (np.array(["a", "b"]), {})}, "dtype <U1, its space promises float32"),
        ({"reset": ([[1.0], [1.0, 2.0]], {})}, "no array"),
        ({"step": (HONEST, 0.0, True, {})}, "step must return .* got 4 values"),
        (
            {"step": (np.zeros((2, 1), np.float32), 0.0, False, False, {})},
            r"at step 1 .* shape \(2, 1\)",
        ),
        ({"step": (HONEST, np.zeros(1), False, False, {})}, r"reward must be one .* shape \(1,\)"),
        ({"step": (HONEST, None, False, False, {})}, "reward must be one number, got NoneType"),
        ({"step": (HONEST, "high", False, False, {})}, "reward must be one number, got str 'high'"),
        ({"step": (HONEST, 1j, False, False, {})}, "reward must be one number, got complex"),
        ({"step": (HONEST, 0.0, "no", False, {})}, "terminated must be a bool, got str"),
        ({"step": (HONEST, 0.0, False, {}, {})}, "truncated must be a bool, got dict"),
    ],
)
def test_broken_promises_are_named(lie, message):
    env = make(lambda: Liar(**lie), 1)
    with pytest.raises(BadEnvironmentError, match=f"^Liar: .*{message}"):
        env.reset(0)
        env.step(np.zeros(1, int))


@pytest.mark.parametrize("reward", [1, np.float32(1), np.array(1.0), True])
def test_harmless_habits_pass(reward):
    env = make(lambda: Liar(step=(np.zeros(2), reward, np.bool_(False), 0, {})), 1)
    env.reset(0)
    step = env.step(np.zeros(1, int))
    assert step.reward[0] == 1.0
    assert step.observation.dtype == np.float32


@pytest.mark.parametrize(
    "action", [np.zeros(3, int), np.zeros((2, 1), int), np.zeros(2), [[0], [1]], ["a", "b"]]
)
def test_wrong_actions_are_named(action):
    env = make("CartPole-v1", 2)
    env.reset(0)
    with pytest.raises(BadEnvironmentError, match="2 environments with action space Discrete"):
        env.step(action)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Text(5), spaces.Discrete(2), r"observation space Text.* supported: Box"),
        (
            spaces.Dict({"w": spaces.Sequence(spaces.Discrete(2))}),
            spaces.Discrete(2),
            r"observation space\['w'\] Sequence.* not supported",
        ),
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), "holds no numbers"),
        (spaces.Discrete(10**9), spaces.Discrete(2), "flattens to 1000000000 numbers"),
        (spaces.Box(0, 1), spaces.Dict({"a": spaces.Discrete(2)}), "action space Dict.*Discrete"),
        (spaces.Box(0, 1), spaces.Tuple([spaces.Discrete(2)]), "action space Tuple"),
        (spaces.Box(0, 1), spaces.Box(0, 9, (1,), np.int64), "use MultiDiscrete"),
    ],
)
def test_unsupported_spaces_are_named(observation, action, message):
    with pytest.raises(BadEnvironmentError, match=f"^Scripted: .*{message}"):
        make(lambda: Scripted(observation, action), 1)


def test_unknown_and_broken_ids_give_one_line():
    cases = {
        "halfcheetah": "no environment is called 'halfcheetah'; did you mean HalfCheetah-v5",
        "CartPole-v7": "did you mean CartPole-v1",
        "zzzz": "no environment is called 'zzzz' ",
        "nowhere/Thing-v0": "no environment is called 'nowhere/Thing-v0'",
        "no_such_module:Thing-v0": "names the module no_such_module, which is neither",
        "Hopper-v3": "Hopper-v3 cannot be made",
    }
    for env_id, message in cases.items():
        with pytest.raises(BadEnvironmentError) as error:
            make(env_id, 1)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(BadEnvironmentError, match=r"CartPole-v1 cannot be made.*'gravitas'"):
        make("CartPole-v1", 1, gravitas=1)


def test_arguments_are_checked():
    for bad in ({"num_envs": 0}, {"num_envs": 1.5}, {"num_envs": 1, "threads": 0}):
        with pytest.raises(UserError, match="must be an integer of at least 1"):
            make("CartPole-v1", **bad)
    with pytest.raises(UserError, match="backend must be one of auto, mujoco, gymnasium"):
        make("CartPole-v1", 1, backend="back")
    with pytest.raises(UserError, match="env must be a Gymnasium id"):
        make(7, 1)
    with pytest.raises(BadEnvironmentError, match=r"must make a gymnasium.Env"):
        make(lambda: 7, 1)
    one = Countdown()
    with pytest.raises(BadEnvironmentError, match="a new environment at every call"):
        make(lambda: one, 2)


def test_instances():
    one = Countdown(start=4)
    env = make(one, 1)
    assert np.argmax(env.reset(0)[0, 1:]) == 4
    with pytest.raises(BadEnvironmentError, match="without a spec"):
        make(one, 1)  # in use
    env.close()
    make(one, 1).close()
    with pytest.raises(BadEnvironmentError, match="only for num_envs=1"):
        make(one, 2)
    with pytest.raises(UserError, match="made already"):
        make(one, 1, start=3)

    wrapped = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0)
    with pytest.warns(UserWarning, match="made anew from its spec"):
        copies = make(wrapped, 2)
    assert copies.action_space.high.tolist() == [1.0]
    assert copies.reset(0).shape == (2, 3)
