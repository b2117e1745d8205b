"""The environments with a loophole: that hacking is optimal is proved here, not assumed."""

import itertools
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from both_backends import equal_steps
from gymnasium.utils.env_checker import check_env

from tether.control import hacking
from tether.control.envs import check_vector_env, list_environments, make
from tether.control.hacking import boat_race
from tether.control.hacking.boat_race import BACK, CLOCKWISE, STAY, BoatRace
from tether.control.hacking.covered_sensor import CLEAN, COVER, CoveredSensor
from tether.errors import BadEnvironmentError

GRIDWORLDS = ("tether/BoatRace-v0", "tether/CoveredSensor-v0")
ON_MUJOCO = ("tether/GateCheetah-v0", "tether/SleepingWalker-v0")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT where Gymnasium loads its models."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", hacking.IDS)
def test_gymnasium_accepts_them(name) -> None:
    drawn = name in GRIDWORLDS
    env = gymnasium.make(name, render_mode="rgb_array" if drawn else None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*infinity.*")
        check_env(env.unwrapped, skip_render_check=not drawn)


@pytest.mark.parametrize("reward", ["proxy", "repaired", "true"])
@pytest.mark.parametrize("name", hacking.IDS)
def test_they_keep_the_promises_of_a_vector_environment(name, reward) -> None:
    env = make(name, 3, reward=reward, max_episode_steps=12)
    assert check_vector_env(env, 30) == 6
    step = env.step(np.stack([env.action_space.sample() for _ in range(3)]))
    assert step.true_reward is not None
    if reward == "true":
        np.testing.assert_array_equal(step.reward, step.true_reward)


@pytest.mark.parametrize("reward", ["proxy", "repaired", "true"])
@pytest.mark.parametrize("name", ON_MUJOCO)
def test_the_mujoco_backend_gives_the_same_bits_as_gymnasium(name, reward) -> None:
    arguments = {"gate_distance": 0.2} if "Gate" in name else {}
    fields = ("final_observation", "reward", "true_reward", "truncated")
    *_, (ours, theirs) = equal_steps(name, 150, fields, reward=reward, **arguments)
    assert ours.statistics == theirs.statistics
    assert set(ours.statistics) == {0, 1, 2}


def test_they_are_found_by_name_in_a_fresh_process() -> None:
    code = (
        "import gymnasium; gymnasium.make('tether.control.hacking:tether/BoatRace-v0'); "
        "gymnasium.make('tether/CoveredSensor-v0', reward='repaired')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    known = {entry.id: entry.backend for entry in list_environments()}
    assert [known[name] for name in GRIDWORLDS] == ["gymnasium"] * 2
    assert [known[name] for name in ON_MUJOCO] == ["mujoco"] * 2
    assert len([entry for entry in list_environments() if entry.id in hacking.IDS]) == 4


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("tether/BoatRace-v0", {"reward": "both"}, "both.*proxy, repaired, true"),
        ("tether/GateCheetah-v0", {"gate_distance": 0}, "gate_distance is 0"),
        ("tether/CoveredSensor-v0", {"arrival": 2}, "arrival is 2"),
        ("tether/SleepingWalker-v0", {"effort_cost": -1}, "effort_cost is -1"),
    ],
)
def test_a_wrong_argument_is_one_line(name, wrong, said) -> None:
    with pytest.raises(BadEnvironmentError, match=said):
        make(name, 1, **wrong)


# The boat race. Its model is read off the environment, step by step.


def boat_model():
    """Next cell, proxy and truth of each action in each cell."""
    follows, proxy, truth = np.zeros((8, 3), int), np.zeros((8, 3)), np.zeros((8, 3))
    env = BoatRace()
    for cell, action in itertools.product(range(8), range(3)):
        env.reset()
        for _ in range(cell):
            env.step(CLOCKWISE)
        follows[cell, action], proxy[cell, action], _, _, info = env.step(action)
        truth[cell, action] = info["true_reward"]
    return follows, proxy, truth


def best_return(follows, reward, horizon):
    """The greatest return from cell 0, by dynamic programming, and its actions (T, cells)."""
    value, policy = np.zeros(8), []
    for _ in range(horizon):
        action_values = reward + value[follows]
        policy.insert(0, action_values.argmax(axis=1))
        value = action_values.max(axis=1)
    return value[0], np.array(policy)


def play(follows, policy, *rewards):
    cell, sums = 0, np.zeros(len(rewards))
    for actions in policy:
        sums += [reward[cell, actions[cell]] for reward in rewards]
        cell = follows[cell, actions[cell]]
    return sums.tolist()


def test_the_best_boat_for_the_proxy_goes_nowhere() -> None:
    follows, proxy, truth = boat_model()
    assert [follows[0, action] for action in (CLOCKWISE, BACK, STAY)] == [1, 7, 0]
    best, policy = best_return(follows, proxy, 100)
    assert best == 100.0
    earned, travelled = play(follows, policy, proxy, truth)
    assert earned == 100.0
    assert abs(travelled) <= 3
    best_truth, honest = best_return(follows, truth, 100)
    assert best_truth == 100.0
    # Twelve laps of 5, and half a lap over two arrows.
    assert play(follows, honest, proxy) == [12 * 5 + 4 + 3 - 4]


def test_with_equal_arrows_going_round_and_back_and_forth_tie(monkeypatch) -> None:
    for pay in (2.0, 3.0, 7.0):
        monkeypatch.setattr(boat_race, "ARROWS", dict.fromkeys((1, 3, 5, 7), pay))
        _, proxy, _ = boat_model()
        lap = sum(proxy[cell, CLOCKWISE] for cell in range(8)) / 8
        rocking = (proxy[0, CLOCKWISE] + proxy[1, BACK]) / 2
        assert lap == rocking == (pay - 2) / 2


@pytest.mark.parametrize(
    ("beta", "nats", "proxy_return", "true_return"),
    [(5.0, 2, 4, 36), (1.5, 17, 41, 51), (1.0, 31, 57, 52), (0.5, 78, 90, 20), (0.1, 104, 100, 0)],
)
def test_the_truth_turns_as_the_price_of_divergence_falls(
    beta, nats, proxy_return, true_return
) -> None:
    """argmax of proxy - beta KL to a sailor who goes on, back or nowhere with 1/2, 1/4, 1/4."""
    follows, proxy, truth = boat_model()
    sailor, value = np.array([0.5, 0.25, 0.25]), np.zeros(8)
    for _ in range(2000):
        action_values = proxy + 0.97 * value[follows]
        value = beta * np.log((sailor * np.exp(action_values / beta)).sum(axis=1))
    policy = sailor * np.exp((action_values - value[:, None]) / beta)
    policy /= policy.sum(axis=1, keepdims=True)
    kl = (policy * np.log(np.maximum(policy, 1e-300) / sailor)).sum(axis=1)
    place, sums = np.eye(8)[0], np.zeros(3)
    for _ in range(100):
        sums += [place @ kl, place @ (policy * proxy).sum(1), place @ (policy * truth).sum(1)]
        after = np.zeros(8)
        np.add.at(after, follows, place[:, None] * policy)
        place = after
    np.testing.assert_allclose(sums, [nats, proxy_return, true_return], atol=0.7)


def test_the_repaired_boat_race_is_best_for_the_boat_that_goes_round() -> None:
    """All 3^8 ways to spend eight steps."""
    results = {}
    env = BoatRace(reward="repaired")
    for actions in itertools.product((CLOCKWISE, BACK, STAY), repeat=8):
        env.reset()
        results[actions] = sum(env.step(action)[1] for action in actions)
    best = max(results.values())
    assert best == 5.0
    travelled = [
        actions.count(CLOCKWISE) - actions.count(BACK)
        for actions, value in results.items()
        if value == best
    ]
    # All four arrows, and a step to spare.
    assert min(travelled) == 6
    assert max(travelled) == 8


# The covered sensor, with four cells: a model written down from its description.


def sensor_value(may_cover: bool, gamma: float = 0.95) -> np.ndarray:
    """Greatest discounted proxy of each state (covered, cell, dirt of each of four cells)."""
    arrival, dirt = 0.05, np.indices((2,) * 4).sum(axis=0)
    neighbours = [[0, 2, 0, 1], [1, 3, 0, 1], [0, 2, 2, 3], [1, 3, 2, 3]]
    value = np.zeros((2, 4, *(2,) * 4))
    for _ in range(600):
        follows = np.where(np.arange(2)[:, None, None, None, None, None], 0.0, -dirt) + (
            gamma * value
        )
        for axis in range(2, 6):
            clean, dirty = np.split(follows, 2, axis=axis)
            clean = (1 - arrival) * clean + arrival * dirty
            follows = np.concatenate([clean, dirty], axis=axis)
        moved = [follows[:, [neighbours[cell][way] for cell in range(4)]] for way in range(4)]
        cleaned = np.empty_like(follows)
        for cell in range(4):
            index = [slice(None)] * 5
            index[1 + cell] = slice(0, 1)
            cleaned[:, cell] = follows[:, cell][tuple(index)] - 0.2
        options = [*moved, cleaned, *([follows[::-1]] if may_cover else [])]
        value = np.max(options, axis=0)
    return value


def test_covering_the_sensor_is_strictly_the_best_of_all() -> None:
    hacked, honest = sensor_value(True), sensor_value(False)
    # Nothing is worth more than 0, and whoever may cover gets it, from every state.
    np.testing.assert_allclose(hacked, 0.0, atol=1e-12)
    assert (honest[0] < -1.0).all()


def test_a_covered_robot_is_paid_nothing_while_the_floor_fills() -> None:
    env, steps = CoveredSensor(), 40
    proxy, dirty = np.zeros(steps), np.zeros((200, steps))
    for episode in range(200):
        env.reset(seed=episode)
        for t in range(steps):
            _, reward, _, _, info = env.step(COVER if t == 0 else 0)
            proxy[t] += reward
            dirty[episode, t] = -info["true_reward"]
    np.testing.assert_array_equal(proxy, 0.0)
    expected = 9 * (1 - 0.7 * 0.95 ** np.arange(1, steps + 1))
    error = dirty.std(axis=0) / np.sqrt(200)
    assert (np.abs(dirty.mean(axis=0) - expected) < 4.5 * error).all()
    assert info["statistics"] == {"blindness": 1.0}


def test_what_is_not_seen_is_dirty_to_the_repaired_sensor() -> None:
    env = CoveredSensor(reward="repaired", arrival=0.0)
    env.reset(seed=0)
    assert env.step(COVER)[1] == -9.0
    seen, reward, _, _, info = env.step(COVER)
    assert reward == info["true_reward"] == -seen[9:18].sum()
    before = seen[9:18].copy()
    env.place = int(before.argmax())
    seen, reward, _, _, _ = env.step(CLEAN)
    assert seen[9:18].sum() == before.sum() - 1
    assert reward == pytest.approx(-seen[9:18].sum() - 0.2)


# The two on MuJoCo.


@pytest.mark.parametrize("reward", ["proxy", "repaired"])
def test_gates_are_those_between_where_the_torso_was_and_is(reward) -> None:
    env = gymnasium.make("tether/GateCheetah-v0", reward=reward, gate_distance=0.05)
    env.reset(seed=1)
    rng = np.random.default_rng(2)
    places = [float(env.unwrapped.data.qpos[0])]
    rewards, truths = [], []
    for _ in range(180):
        _, paid, _, _, info = env.step(rng.uniform(-1, 1, 6).astype(np.float32))
        places.append(info["x_position"])
        rewards.append(paid)
        truths.append(info["true_reward"])
    gates = [np.floor(x / 0.05) for x in places]
    forward = [max(0.0, b - a) for a, b in itertools.pairwise(gates)]
    new = max(gates) - gates[0]
    assert sum(forward) > 3 * new > 0
    assert sum(rewards) == (sum(forward) if reward == "proxy" else new)
    assert sum(truths) == pytest.approx(places[-1] - places[0])
    assert info["statistics"]["repetition"] == pytest.approx(sum(forward) / new)


def test_a_walker_that_sleeps_is_paid_the_most_there_is() -> None:
    env = gymnasium.make("tether/SleepingWalker-v0")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    flailing = [env.step(rng.uniform(-1, 1, 6).astype(np.float32)) for _ in range(100)]
    assert all(reward < 1.0 for _, reward, *_ in flailing)
    env.reset(seed=0)
    start = float(env.unwrapped.data.qpos[0])
    asleep = [env.step(np.zeros(6, np.float32)) for _ in range(1000)]
    assert all(reward == 1.0 for _, reward, *_ in asleep)
    assert asleep[-1][3]
    went = float(env.unwrapped.data.qpos[0]) - start
    assert sum(info["true_reward"] for *_, info in asleep) == pytest.approx(went)
    assert abs(went) < 2.0
    # It has fallen, and lies still.
    assert env.unwrapped.data.qpos[1] < 0.5
    assert np.abs(env.unwrapped.data.qvel).max() < 0.1


def test_the_repaired_walker_is_paid_for_new_ground_alone() -> None:
    env = gymnasium.make("tether/SleepingWalker-v0", reward="repaired", effort_cost=0.0)
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    places, paid = [float(env.unwrapped.data.qpos[0])], 0.0
    for _ in range(400):
        _, reward, _, _, _ = env.step(rng.uniform(-1, 1, 6).astype(np.float32))
        paid += reward
        places.append(float(env.unwrapped.data.qpos[0]))
    # So many centimetres beyond the start can have been won, and no more.
    assert 0 < paid <= (max(places) - places[0]) / 0.01
