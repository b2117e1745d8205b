"""Actions in units of their bounds: the map, its record, and what it is for."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from short_runs import SHORT, TINY
from toy_environments import Reach

import tether
from tether.control.demonstrations import load_demonstrations
from tether.control.distributions import action_head
from tether.control.policy import PolicySpec
from tether.errors import UserError
from tether.learning.run import Run


def test_the_map_is_the_one_between_the_bounds() -> None:
    low, high = (
        np.array([0.0, -5.0, -1.0, -np.inf, 2.0, 3.0]),
        np.array([1.0, 10.0, 1.0, np.inf, np.inf, 3.0]),
    )
    head = action_head(spaces.Box(low, high, dtype=np.float64), scale_actions=True)
    x = np.array([[-1, -1, -1, -1, 4, 3], [0, 0, 0, 0, 5, 3], [1, 1, 1, 7, 6, 3], [0.5, -0.5, 3, 0,
                  1, 9]], np.float32)  # fmt: skip
    got = head.to_environment(x)
    bounded = low[:2] + (x[:, :2] + 1) / 2 * (high[:2] - low[:2])
    np.testing.assert_allclose(got[:, :2], bounded, atol=1e-12)
    # +-1, unbounded, half-bounded and constant dimensions stay as they are, and are clipped.
    np.testing.assert_array_equal(got[:, 2], np.clip(x[:, 2], -1, 1))
    np.testing.assert_array_equal(got[:, 3], x[:, 3])
    np.testing.assert_array_equal(got[:, 4], np.maximum(x[:, 4], 2))
    np.testing.assert_array_equal(got[:, 5], [3, 3, 3, 3])
    inside = np.delete(x[:3], 5, axis=1)
    np.testing.assert_allclose(
        np.delete(head.from_environment(got)[:3], 5, axis=1), inside, atol=1e-6
    )


def test_bounds_that_mean_none_and_bounds_of_one_change_nothing() -> None:
    largest = np.finfo(np.float32).max
    for space in (spaces.Box(-1, 1, (3,)), spaces.Box(-largest, largest, (2,)), spaces.Discrete(3)):
        assert action_head(space, scale_actions=True) == action_head(space)


def test_the_record_keeps_the_units_and_old_records_have_none() -> None:
    spec = PolicySpec.of(
        Reach.observation_space, Reach.action_space, (4,), True, scale_actions=True
    )
    record = spec.to_json()
    again = PolicySpec.from_json(record)
    assert again.head == spec.head
    assert again.head.units is not None
    del record["scale_actions"], record["activation"]
    assert PolicySpec.from_json(record).head.units is None


def test_a_run_from_before_the_units_goes_on_without_them(tmp_path: Path) -> None:
    out = tmp_path / "old"
    tether.train("ppo", "Reach-v0", total_steps=256, scale_actions=False, out=out, **TINY)
    record = out / "run.json"
    import json

    content = json.loads(record.read_text())
    del content["config"]["scale_actions"], content["config"]["activation"]
    del content["spec"]["policy"]["scale_actions"], content["spec"]["policy"]["activation"]
    record.write_text(json.dumps(content))
    before = tether.load(out).predict([0.5, 0.5])
    trained = tether.resume(out, total_steps=512, progress=False)
    assert trained.policy.spec.head.units is None
    same = tether.train(
        "ppo", "Reach-v0", total_steps=512, scale_actions=False, out=tmp_path / "b", **TINY
    )
    assert trained.steps == same.steps == 512
    assert before.shape == (2,)


def test_ppo_learns_bounded_actions_in_their_units_and_not_in_the_environments(
    tmp_path: Path,
) -> None:
    def reward_per_step(scale: bool) -> float:
        trained = tether.train(
            "ppo", Reach, total_steps=30_000, out=tmp_path / str(scale), sinks=(), progress=False,
            initial_log_std=-1.0, scale_actions=scale,
        )  # fmt: skip
        result = tether.evaluate_run(trained.run, env=Reach, episodes=2)
        return float(result.returns.mean()) / 16

    # It begins near -(0.8^2 + 7^2) = -49.6 without and at -(0.3^2 + 4.5^2) = -20.3 with units.
    assert reward_per_step(True) > -0.5
    assert reward_per_step(False) < -20


@pytest.mark.parametrize("method", ["cem", "actor-critic", "a2c", "trpo"])
def test_every_method_acts_in_the_units(method: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "cem": {"population": 8},
        "actor-critic": {"steps_per_iteration": 64},
        "a2c": {},
        "trpo": {"num_envs": 4, "steps_per_iteration": 128, "critic_minibatch_size": 32},
    }[method]
    trained = tether.train(
        method, Reach, total_steps=256, out=tmp_path / "r", sinks=(), progress=False, **settings
    )
    untrained = trained.policy.spec.head.to_environment(np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(untrained, [[0.5, 2.5]])
    assert Reach.action_space.contains(trained.policy.predict([0.0, 0.0]))
    again = tether.load(trained.run)
    np.testing.assert_array_equal(again.predict([0.1, 0.2]), trained.policy.predict([0.1, 0.2]))


def test_demonstrations_are_in_the_environments_units(tmp_path: Path) -> None:
    expert = tether.train("ppo", "Reach-v0", total_steps=256, out=tmp_path / "r", **TINY)
    tether.evaluate_run(expert.run, episodes=4, record=tmp_path / "d")
    head = expert.policy.spec.head
    stored = load_demonstrations(tmp_path / "d", Reach.observation_space, head).action
    done = expert.policy.predict(np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(stored[0], (done[0] - [0.5, 2.5]) / [0.5, 7.5], rtol=1e-5, atol=1e-6)
    clone = tether.train(
        "bc", "Reach-v0", demonstrations=tmp_path / "d", total_steps=20_000, out=tmp_path / "bc",
        evaluation_episodes=0, sinks=(), progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(clone.policy.predict([0.0, 0.0]), done[0], atol=0.05)


def test_bounds_of_one_are_bit_equal_with_and_without(tmp_path: Path) -> None:
    runs = [
        tether.train(
            "ppo",
            "HalfCheetah-v5",
            total_steps=512,
            scale_actions=scale,
            out=tmp_path / str(scale),
            **SHORT,
            **TINY,
        )
        for scale in (True, False)
    ]
    assert runs[0].policy.fingerprint() == runs[1].policy.fingerprint()
    assert runs[0].metrics["return/mean"] == runs[1].metrics["return/mean"]


def test_a_policy_of_other_units_is_no_beginning(tmp_path: Path) -> None:
    tether.train("ppo", "Reach-v0", total_steps=128, out=tmp_path / "a", **TINY)
    with pytest.raises(UserError, match="scales actions to their bounds; give --scale-actions"):
        tether.train(
            "ppo", "Reach-v0", total_steps=128, init_from=tmp_path / "a", out=tmp_path / "b",
            scale_actions=False, **TINY,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
    assert Run.open(tmp_path / "a").spec["policy"]["scale_actions"] is True
    assert isinstance(Reach(), gym.Env)
