"""A policy on its own: its file, what it may be asked, and Stable-Baselines3's tools on it."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from short_runs import TINY
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import tether
from tether.control.policy import Policy, PolicySpec
from tether.control.training import TrainedPolicy as Trained
from tether.errors import RunError, UserError


def random_policy(source: spaces.Space[Any], action: spaces.Space[Any]) -> Policy:
    spec = PolicySpec.of(source, action, (8,), False)
    return Policy(spec, spec.init(np.random.default_rng(3), 0.0), None)


def test_a_saved_policy_acts_as_before(cheetah: Trained, tmp_path: Path) -> None:
    policy = cheetah.policy
    path = policy.save(tmp_path / "cheetah.safetensors")
    x = np.random.default_rng(0).standard_normal((20, 17)) * 3
    for again in (Policy.load(path), tether.load(path), tether.Policy.load(str(path))):
        np.testing.assert_array_equal(again.predict(x), policy.predict(x))
        samples = [p.predict(x, deterministic=False, rng=np.random.default_rng(1))
                   for p in (again, policy)]  # fmt: skip
        np.testing.assert_array_equal(*samples)
    assert again.spec == policy.spec


def test_bad_files_are_told_in_one_line(cheetah: Trained, tmp_path: Path) -> None:
    good = cheetah.policy.save(tmp_path / "good")
    content = good.read_bytes()
    (tmp_path / "cut").write_bytes(content[:-5])
    (tmp_path / "text").write_text("not a policy")
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (tmp_path / "flipped").write_bytes(flipped)
    cases = {
        tmp_path / "cut": "damaged",
        tmp_path / "text": "damaged",
        tmp_path / "flipped": "damaged",
        tmp_path / "missing": "cannot read",
        next((cheetah.run / "checkpoints").iterdir()): "give the run's folder",
    }
    for path, words in cases.items():
        with pytest.raises(RunError, match=words) as caught:
            Policy.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="is a folder"):
        cheetah.policy.save(tmp_path)
    with pytest.raises(RunError, match="cannot write"):
        cheetah.policy.save(tmp_path / "no" / "where")
    assert Policy.load(good).spec == cheetah.policy.spec


def test_what_is_not_finite_is_refused_by_its_place() -> None:
    policy = random_policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    with pytest.raises(UserError, match=r"holds nan at index \[1\]"):
        policy.predict([0.0, np.nan, 0.0])
    with pytest.raises(UserError, match=r"holds -inf at index \[2, 0\]"):
        policy.predict([[0, 0, 0], [0, 0, 0], [-np.inf, 0, 0]])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(-1, 1, (1,)),
        spaces.Box(0, 255, (9, 9, 1), np.uint8),
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(3),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}),
        spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Dict({"c": spaces.MultiBinary(2)})]),
    ],
    ids=str,
)
def test_a_batch_is_the_same_as_one_after_another(space: Any) -> None:
    policy = random_policy(space, spaces.Box(-9, 9, (2,)))
    space.seed(0)
    some = [space.sample() for _ in range(4)]
    singles = np.stack([policy.predict(one) for one in some])
    assert singles.shape == (4, 2)
    batched = gym.vector.utils.batch_space(space, 4)
    together = gym.vector.utils.concatenate(
        space, some, gym.vector.utils.create_empty_array(space, 4)
    )
    for batch in (together, some):
        np.testing.assert_allclose(policy.predict(batch), singles, atol=1e-6)
    if isinstance(space, spaces.Box):
        np.testing.assert_allclose(policy.predict(some[0].tolist()), singles[0], atol=1e-6)
        np.testing.assert_allclose(policy.predict(together.tolist()), singles, atol=1e-6)
    assert batched is not None
    for wrong in ({"x": 1}, np.zeros((2, 7)), "left", [], [[1.0], [2.0, 3.0]]):
        with pytest.raises(UserError) as caught:
            policy.predict(wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "CopyDict-v0"])
def test_stable_baselines_evaluates_a_policy_as_tether_does(env: str, tmp_path: Path) -> None:
    import toy_environments  # noqa: F401

    trained = tether.train("ppo", env, total_steps=512, out=tmp_path / "r", **TINY)
    ours = tether.evaluate_run(trained.run, episodes=5, seed=77)
    world = DummyVecEnv([lambda: gym.make(env)] * 5)
    world.seed(77)
    returns, lengths = evaluate_policy(
        tether.as_sb3(trained.policy), world, 5, return_episode_rewards=True, warn=False
    )
    by_episode = sorted(zip(ours.lengths.tolist(), ours.returns.tolist(), strict=True))
    theirs = sorted(zip(lengths, returns, strict=True))
    # Its vector environment keeps rewards in float32.
    np.testing.assert_allclose(theirs, by_episode, rtol=1e-4)


def test_the_view_has_the_signature_of_a_model_of_stable_baselines() -> None:
    policy = random_policy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    model = tether.as_sb3(policy, seed=4)
    x = np.ones((5, 3), np.float32)
    action, state = model.predict(x, state=None, episode_start=np.ones(5, bool), deterministic=True)
    np.testing.assert_array_equal(action, policy.predict(x))
    assert state is None
    samples = [model.predict(x)[0] for _ in range(2)]
    assert not np.array_equal(*samples)
    np.testing.assert_array_equal(tether.as_sb3(policy, seed=4).predict(x)[0], samples[0])
    assert model.predict(x[0])[0].shape == (2,)
