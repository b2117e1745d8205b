"""The contract test passes on honest environments of both backends and fails on broken ones."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from sample_environments import Camera, Countdown, Scripted, Unseeded

import tether
from tether.control.envs import (
    BATCHED_TASKS,
    Step,
    VectorEnv,
    check_vector_env,
    list_environments,
    make,
)
from tether.control.envs.gymnasium_vector import GymnasiumVectorEnv
from tether.control.envs.mujoco_physics import PooledPhysics
from tether.errors import BadEnvironmentError


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("FrozenLake-v1", {}),
        ("Blackjack-v1", {}),
        ("MountainCarContinuous-v0", {"max_episode_steps": 50}),
        ("sample_environments:Countdown-v0", {}),
        (Countdown, {}),
        (Camera, {}),
        (lambda: Camera((4, 4)), {}),
        ("Hopper-v5", {}),
        ("Hopper-v5", {"backend": "gymnasium"}),
        ("HalfCheetah-v5", {"max_episode_steps": 60}),
        ("Ant-v5", {"max_episode_steps": 60}),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_contract_holds(source, settings, count):
    env = make(source, count, **settings)
    assert isinstance(env, VectorEnv)
    steps = 450 if source == "Pendulum-v1" else 200
    assert check_vector_env(env, steps=steps, seed=3) > 0
    env.close()


class Broken(GymnasiumVectorEnv):
    """An honest vector environment to be broken in one place."""

    def __init__(self):
        super().__init__([Scripted(Countdown().observation_space) for _ in range(3)], "Broken")


def swap(step, **changes):
    return step._replace(**changes)


def forgets_the_end(self, action):
    step = GymnasiumVectorEnv.step(self, action)
    return swap(step, final_observation=step.observation)


def always_copies(self, action):
    step = GymnasiumVectorEnv.step(self, action)
    return swap(step, final_observation=step.final_observation.copy())


def counts_in_float32(self, action):
    step = GymnasiumVectorEnv.step(self, action)
    return swap(step, reward=step.reward.astype(np.float32))


def shuffles_seeds(self, seed, *, stagger=False):
    observation = GymnasiumVectorEnv.reset(self, seed, stagger=stagger)
    self._seeds.reverse()
    for i in range(self.num_envs):
        self._begin(i)
    return observation


def lends_its_state(self):
    return {**GymnasiumVectorEnv.state(self), "returns": self._returns}


def forgets_the_actions(self):
    state = GymnasiumVectorEnv.state(self)
    return {**state, "lengths": 0 * state["lengths"], "actions": state["actions"][:0]}


def saves_floats(self):
    return {**GymnasiumVectorEnv.state(self), "extra": [1.0]}


def spoils_running_rows(self, action):
    step = GymnasiumVectorEnv.step(self, action)
    if step.final_observation is step.observation:
        return step
    return swap(step, final_observation=step.final_observation + 1)


@pytest.mark.filterwarnings("ignore:.*not deterministic")
@pytest.mark.parametrize(
    ("method", "fault", "message"),
    [
        ("step", forgets_the_end, "same array as observation exactly when"),
        ("step", always_copies, "same array as observation exactly when"),
        ("step", spoils_running_rows, "an episode goes on, but"),
        ("step", counts_in_float32, "reward of step 0 has shape .* float32"),
        ("reset", shuffles_seeds, "seed"),
        ("state", lends_its_state, "state changed while"),
        ("state", saves_floats, "holds a list"),
        ("state", forgets_the_actions, "restore did not return|after restore"),
    ],
)
def test_the_contract_test_finds_faults(monkeypatch, method, fault, message):
    check_vector_env(Broken())
    monkeypatch.setattr(Broken, method, fault, raising=False)
    with pytest.raises(BadEnvironmentError, match=f"Broken: .*{message}"):
        check_vector_env(Broken())


def test_the_contract_test_finds_ignored_seeds():
    with pytest.raises(BadEnvironmentError, match="two resets with one seed differ"):
        check_vector_env(make(Unseeded, 2))


def test_two_groups_on_two_threads_equal_one_after_the_other():
    def play(env, seed, out):
        env.reset(seed)
        actions = np.random.default_rng(seed).uniform(-1, 1, (200, 4, 3)).astype(np.float32)
        out.extend(Step(*(part.copy() for part in env.step(a)[:6])) for a in actions)

    alone, together = [[], []], [[], []]
    for g in range(2):
        play(make("Hopper-v5", 4), 10 + 4 * g, alone[g])
    groups = [make("Hopper-v5", 4) for _ in range(2)]
    threads = [
        threading.Thread(target=play, args=(groups[g], 10 + 4 * g, together[g])) for g in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone[0] + alone[1], together[0] + together[1], strict=True):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a[:6], b[:6], strict=True))


def test_list_environments():
    entries = {entry.id: entry for entry in list_environments()}
    assert tuple(entries)[: len(BATCHED_TASKS)] == BATCHED_TASKS
    ours = ("tether/GateCheetah-v0", "tether/SleepingWalker-v0", "tether/TumblingHopper-v0")
    fast = {entry.id for entry in entries.values() if entry.backend == "mujoco"}
    assert fast == {*BATCHED_TASKS, *ours}
    unbatched = {e.id for e in entries.values() if "one MjData" in e.note}
    assert unbatched == {t for t in BATCHED_TASKS if make(t, 1)._task.stepper is PooledPhysics}
    assert entries["CartPole-v1"] == ("CartPole-v1", "gymnasium", "")
    assert "superseded by Hopper-v5" in entries["Hopper-v4"].note
    assert "Hopper-v3" not in entries
    assert "GymV21Environment-v0" not in entries
    for entry in entries.values():
        if entry.note == "" and "/" not in entry.id:
            env = make(entry.id, 1)
            assert env.reset(0).shape == (1, *env.observation_space.shape)
            env.close()


def test_other_environments_load_neither_mujoco_nor_jax():
    code = (
        "import sys; from tether.control.envs import make; make('CartPole-v1', 2).reset(0); "
        "print([m for m in ('mujoco', 'jax', 'torch') if m in sys.modules])"
    )
    path = {"PYTHONPATH": str(Path(tether.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
