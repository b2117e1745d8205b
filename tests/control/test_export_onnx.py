"""ONNX files: onnxruntime does what NumPy does, for every kind of space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
from gymnasium import spaces

from tether.control.envs.spaces import space_from_json
from tether.control.export.onnx import to_onnx
from tether.control.export.onnx_check import largest_difference
from tether.control.networks import Activation, Layer, Network
from tether.control.normalization import ObservationNormalizer
from tether.control.policy import Policy, PolicyParameters, PolicySpec
from tether.errors import UserError

OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "vector": spaces.Box(-5.0, np.inf, (7,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (3, 2), np.float64),
    "discrete": spaces.Discrete(6, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi-binary": spaces.MultiBinary(5),
    "dict": spaces.Dict(
        {"where": spaces.Box(-1, 1, (2, 2), np.float64), "what": spaces.Discrete(3)}
    ),
    "image": spaces.Box(0, 255, (12, 9, 3), np.uint8),
    "grey image": spaces.Box(0, 255, (40, 44), np.uint8),
}
ACTIONS: dict[str, gym.Space[Any]] = {
    "box": spaces.Box(np.array([[-1.0, 0.0]] * 2), np.array([[0.5, np.inf]] * 2), (2, 2)),
    "float64 box": spaces.Box(-0.3, 0.7, (3,), np.float64),
    "discrete": spaces.Discrete(4, start=3),
    "multi-discrete": spaces.MultiDiscrete([[2, 5], [3, 1]], start=[[0, -1], [7, 2]]),
    "multi-binary": spaces.MultiBinary((2, 3)),
}


def random_policy(
    source: gym.Space[Any], action: gym.Space[Any], *, normalize: bool = True, **more: Any
) -> Policy:
    """A policy whose outputs are wide enough to meet bounds and to choose everything."""
    rng = np.random.default_rng(5)
    spec = PolicySpec.of(source, action, (16, 8), normalize, **more)
    network, log_std = spec.init(rng, -0.5)
    *hidden, (weight, bias) = network.dense
    bias = rng.normal(size=bias.shape).astype(np.float32) * 0.2
    convolutions = tuple(
        Layer(w, rng.normal(size=b.shape).astype(np.float32) * 0.1) for w, b in network.convolutions
    )
    network = Network(convolutions, (*hidden, Layer(weight * 100, bias)))
    log_std = log_std + rng.normal(size=log_std.shape).astype(np.float32)
    normalizer = None
    if spec.normalize:
        normalizer = ObservationNormalizer(spec.observation_space.shape)
        shape = spec.observation_space.shape
        normalizer.update(rng.normal(0.3, 0.5, (500, *shape)) + 0.2 * rng.normal(size=shape))
    return Policy(spec, PolicyParameters(network, log_std), normalizer)


def session_of(policy: Policy) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        to_onnx(policy).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def flat(space: gym.Space[Any], observation: Any) -> np.ndarray:
    """As the documentation tells a user who has no tether."""
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return np.asarray(observation).reshape(*space.shape[:2], -1)
    return np.asarray(spaces.flatten(space, observation))


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_and_actions_in_units_of_the_bounds(activation: Activation) -> None:
    source = OBSERVATIONS["vector"]
    target = spaces.Box(np.array([0.0, -5.0, -1.0]), np.array([1.0, 10.0, np.inf]))
    policy = random_policy(source, target, activation=activation, scale_actions=True)
    assert policy.spec.head.units is not None
    batch = np.random.default_rng(2).normal(size=(500, *source.shape)).astype(np.float32)
    found = session_of(policy).run(["action"], {"observation": batch})[0]
    expected = policy.predict(batch)
    assert np.ptp(expected, axis=0).min() > 0.1
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)


# What becomes an action does not depend on what was seen, so one kind meets every action.
PAIRS = [
    (seen, done)
    for seen in OBSERVATIONS
    for done in ACTIONS
    if seen == "vector" or done in ("box", "discrete")
]


@pytest.mark.parametrize(("observation", "action"), PAIRS)
def test_onnxruntime_acts_as_the_policy_does(observation: str, action: str) -> None:
    source, target = OBSERVATIONS[observation], ACTIONS[action]
    policy = random_policy(source, target)
    source.seed(1)
    count = 1000
    seen = [source.sample() for _ in range(count)]
    session = session_of(policy)
    kind = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
    batch = np.stack([flat(source, o) for o in seen]).astype(kind[session.get_inputs()[0].type])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"observation": batch}), strict=True))
    if isinstance(source, spaces.Dict):
        expected = np.stack([policy.predict(o) for o in seen])
    else:
        expected = policy.predict(np.stack(seen))
    assert found["action"].shape == (count, *(target.shape or ()))
    assert found["action"].dtype == target.dtype
    assert all(target.contains(one) for one in found["action"])
    distribution: Any = policy.distribution(policy.normalize(batch))
    if isinstance(target, spaces.Box):
        np.testing.assert_allclose(found["action"], expected, atol=2e-5)
        np.testing.assert_allclose(found["mean"], distribution.mean, atol=2e-5)
        for row in found["log_std"]:
            np.testing.assert_array_equal(row, policy.parameters.log_std)
        inside = np.isfinite(target.low) & (expected > target.low)
        assert 0 < inside.mean() < 1  # bounds are met, and not always
    else:
        np.testing.assert_array_equal(found["action"], expected)
        np.testing.assert_allclose(found["logits"], distribution.logits, atol=2e-5)
        assert len(np.unique(expected.reshape(count, -1), axis=0)) > 1
    assert largest_difference(policy, _saved(policy), count=50) < 2e-5


def test_an_observation_far_from_the_mean_is_clipped_and_nothing_is_lost_to_float32() -> None:
    policy = random_policy(OBSERVATIONS["float64"], ACTIONS["box"])
    assert policy.normalizer is not None
    # A clock in seconds since 1970: in float32 its steps of 1/8 second would vanish.
    policy.normalizer.moments.mean = np.full(6, 1.7e9)
    policy.normalizer.restore(policy.normalizer.state())
    rng = np.random.default_rng(0)
    batch = np.concatenate([1.7e9 + rng.normal(size=(50, 6)), rng.normal(size=(50, 6)) * 1e12])
    (mean,) = session_of(policy).run(["mean"], {"observation": batch})
    expected: Any = policy.distribution(policy.normalize(batch))
    np.testing.assert_allclose(mean, expected.mean, atol=2e-5)
    assert np.ptp(expected.mean[:50], axis=0).min() > 0.01


def test_without_normalization_observations_go_in_as_they_are() -> None:
    policy = random_policy(OBSERVATIONS["vector"], ACTIONS["discrete"], normalize=False)
    batch = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    (action,) = session_of(policy).run(["action"], {"observation": batch})
    np.testing.assert_array_equal(action, policy.predict(batch))


def test_the_file_says_what_it_is_and_is_the_same_every_time() -> None:
    policy = random_policy(OBSERVATIONS["dict"], ACTIONS["multi-discrete"])
    model = to_onnx(policy, {"method": "ppo", "env": "Some-v0"})
    assert (
        model.SerializeToString()
        == to_onnx(policy, {"method": "ppo", "env": "Some-v0"}).SerializeToString()
    )
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["method"], facts["env"]) == ("ppo", "Some-v0")
    assert space_from_json(json.loads(facts["observation_space"])) == OBSERVATIONS["dict"]
    assert space_from_json(json.loads(facts["action_space"])) == ACTIONS["multi-discrete"]
    # Old enough for runtimes of the last years.
    assert model.opset_import[0].version <= 17
    assert model.ir_version <= 8


def test_the_check_notices_a_policy_that_differs() -> None:
    policy = random_policy(OBSERVATIONS["vector"], ACTIONS["box"])
    file = _saved(policy)
    assert policy.normalizer is not None
    policy.normalizer.moments.mean = policy.normalizer.moments.mean + 0.1
    policy.normalizer.restore(policy.normalizer.state())
    with pytest.raises(RuntimeError, match="mean differs by"):
        largest_difference(policy, file, count=10)


def test_a_network_of_the_user_is_refused() -> None:
    policy = random_policy(OBSERVATIONS["vector"], ACTIONS["box"])
    policy._parameters = PolicyParameters({"weights": 1}, policy.parameters.log_std)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not one of tether's"):
        to_onnx(policy)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _saved(policy: Policy) -> Path:
    path = Path("policy.onnx")
    path.write_bytes(to_onnx(policy).SerializeToString())
    return path
