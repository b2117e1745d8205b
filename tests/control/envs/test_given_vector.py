"""Vector environments of the user's own: Gymnasium's, in every autoreset mode, and tether's."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import tether
from tether.control.envs import check_vector_env, make
from tether.errors import BadEnvironmentError, UserError

SMALL: dict[str, Any] = {
    "steps_per_iteration": 96,
    "minibatch_size": 32,
    "epochs": 2,
    "anneal": False,
    "progress": False,
    "sinks": (),
}


class Nested(gym.Env[Any, Any]):
    """A Dict observation with noise in it; episodes of 7 steps that terminate or are cut."""

    observation_space = spaces.Dict(
        {"count": spaces.Discrete(8), "noise": spaces.Box(-np.inf, np.inf, (2,), np.float64)}
    )
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count, self.cut = 0, bool(self.np_random.integers(2))
        return self.see(), {}

    def see(self) -> Any:
        return {"count": self.count, "noise": self.np_random.normal(size=2)}

    def step(self, action: Any) -> Any:
        self.count += 1
        over = self.count == 7
        return self.see(), float(action[0]), over and not self.cut, over and self.cut, {}


def sync(env: Any, count: int, mode: AutoresetMode) -> SyncVectorEnv:
    make_one = (lambda: gym.make(env)) if isinstance(env, str) else env
    return SyncVectorEnv([make_one] * count, autoreset_mode=mode)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env", ["CartPole-v1", Nested])
@pytest.mark.parametrize("count", [1, 3])
def test_every_autoreset_mode_keeps_the_contract(mode: Any, env: Any, count: int) -> None:
    world = make(sync(env, count, mode), count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_vector_env(world, steps=100) >= 5


@pytest.mark.parametrize("mode", AutoresetMode)
def test_it_gives_the_numbers_of_the_same_environments_made_by_id(mode: Any) -> None:
    ours, theirs = make("CartPole-v1", 3), make(sync("CartPole-v1", 3, mode), 3)
    np.testing.assert_array_equal(
        ours.reset(seed=5, stagger=True), theirs.reset(seed=5, stagger=True)
    )
    rng = np.random.default_rng(0)
    for _ in range(150):
        action = rng.integers(2, size=3)
        for one, other in zip(ours.step(action), theirs.step(action), strict=True):
            np.testing.assert_array_equal(one, other)


def test_training_in_it_is_training_by_id_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def world() -> SyncVectorEnv:
        return sync("CartPole-v1", 6, AutoresetMode.NEXT_STEP)

    by_id = tether.train(
        "ppo", "CartPole-v1", total_steps=384, num_envs=6, out=tmp_path / "a", **SMALL
    )
    whole = tether.train("ppo", world(), total_steps=384, out=tmp_path / "b", **SMALL)
    assert whole.policy.fingerprint() == by_id.policy.fingerprint()
    part = tether.train("ppo", world(), total_steps=192, out=tmp_path / "c", **SMALL)
    with pytest.raises(UserError, match="pass the same function"):
        tether.resume(part.run)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = tether.resume(part.run, env=world(), total_steps=384, progress=False)
    assert again.policy.fingerprint() == whole.policy.fingerprint()
    result = tether.evaluate_run(part.run, env=world(), episodes=6)
    own = tether.evaluate_run(by_id.run, episodes=6, env="CartPole-v1")
    np.testing.assert_array_equal(result.returns, own.returns)


class Stubborn(SyncVectorEnv):
    """Resets everything whatever the mask says, as environments made of one array do."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if isinstance(seed, list):
            raise TypeError("expected an int")
        return super().reset(seed=seed)


def test_one_that_cannot_reset_some_begins_new_episodes_and_says_so(tmp_path: Path) -> None:
    def world(mode: AutoresetMode = AutoresetMode.SAME_STEP) -> Stubborn:
        return Stubborn([lambda: gym.make("CartPole-v1")] * 4, autoreset_mode=mode)

    checked = make(world(), 4)
    checked.reset(seed=0)
    step = checked.step(np.zeros(4, int))
    while not (step.terminated | step.truncated).any():
        step = checked.step(np.zeros(4, int))
    ended = step.terminated
    # Left of -12 degrees or beyond: where an episode of CartPole ends, not where one begins.
    assert (np.abs(step.final_observation[ended, 2]) > 0.2).all()
    assert (np.abs(step.observation[ended]) <= 0.05).all()

    # The episodes that stand in for those a resume could not continue are no whole ones.
    with pytest.warns(UserWarning, match="cannot save its state"):
        checked.restore(checked.state())
    step = checked.step(np.zeros(4, int))
    while not (step.terminated | step.truncated).any():
        step = checked.step(np.zeros(4, int))
    np.testing.assert_array_equal(step.shortened, step.terminated)
    checked.close()

    part = tether.train("ppo", world(), total_steps=96, out=tmp_path / "r", **SMALL, num_envs=4)
    with pytest.warns(UserWarning, match="cannot save its state, so this resume begins new"):
        again = tether.resume(part.run, env=world(), total_steps=192, progress=False)
    assert again.steps == 192
    with pytest.raises(BadEnvironmentError, match="NEXT_STEP and cannot reset single"):
        make(world(AutoresetMode.NEXT_STEP), 4).reset(seed=0)


def test_the_number_of_environments_is_taken_from_it_or_must_agree(tmp_path: Path) -> None:
    world = sync("CartPole-v1", 3, AutoresetMode.SAME_STEP)
    trained = tether.train("ppo", world, total_steps=96, out=tmp_path / "r", **SMALL)
    from tether.learning.run import Run

    assert Run.open(trained.run).config["num_envs"] == 3
    with pytest.raises(UserError, match="has 3 environments, and the settings ask for 8"):
        tether.train("ppo", world, total_steps=96, num_envs=8, out=tmp_path / "s", **SMALL)
    assert not (tmp_path / "s").exists()
    # It stays its maker's: neither closed nor taken.
    world.reset(seed=0)
    first = make(world, 3)
    with pytest.raises(UserError, match="is stepped by a training already"):
        make(world, 3)
    first.close()
    make(world, 3).close()


def test_tethers_own_vector_environment_is_stepped_itself_and_left_open(tmp_path: Path) -> None:
    world = make("Hopper-v5", 3)
    trained = tether.train("ppo", world, total_steps=96, out=tmp_path / "r", **SMALL)
    by_id = tether.train(
        "ppo", "Hopper-v5", total_steps=96, num_envs=3, out=tmp_path / "s", **SMALL
    )
    assert trained.policy.fingerprint() == by_id.policy.fingerprint()
    assert world.reset(seed=0).shape == (3, 11)
    assert len(tether.evaluate_run(trained.run, env=world, episodes=3).returns) == 3


def test_an_error_inside_it_is_one_line() -> None:
    class Falls(Nested):
        def step(self, action: Any) -> Any:
            raise RuntimeError("the robot fell off the table")

    world = make(sync(Falls, 1, AutoresetMode.DISABLED), 1)
    world.reset(seed=0)
    with pytest.raises(
        BadEnvironmentError,
        match=r"Falls: step raised RuntimeError: the robot fell .*test_given_vector\.py:\d+",
    ):
        world.step(np.zeros((1, 2), int))
