"""A network of the user's own, and the activations of the built-in one."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import own_networks
import pytest
import torch
from short_runs import TINY
from toy_environments import CopyDict

import tether
from tether.cli import main
from tether.control.networks import forward, init_network
from tether.control.policy import Policy
from tether.errors import UserError

OWN: dict[str, Any] = {k: v for k, v in TINY.items() if k != "hidden"}


def test_activations_are_those_of_torch_in_numpy_and_in_jax() -> None:
    network = init_network(np.random.default_rng(0), (5,), (16,), 3, output_gain=1.0)
    (w, b), (v, c) = ([torch.tensor(a) for a in layer] for layer in network.dense)
    x = np.random.default_rng(1).standard_normal((50, 5)).astype(np.float32) * 3
    functional = torch.nn.functional
    bends: dict[Any, Any] = {
        "tanh": torch.tanh,
        "relu": functional.relu,
        "leaky_relu": functional.leaky_relu,
        "elu": functional.elu,
        "silu": functional.silu,
        "gelu": lambda y: functional.gelu(y, approximate="tanh"),
    }
    for name, bend in bends.items():
        expected = (bend(torch.tensor(x) @ w + b) @ v + c).numpy()
        here = forward(network, x, name)
        assert here.dtype == np.float32
        np.testing.assert_allclose(here, expected, atol=1e-5, err_msg=name)
        there = jax.jit(lambda x, name=name: forward(network, x, name))(x)
        np.testing.assert_allclose(there, expected, atol=1e-5, err_msg=name)


def test_the_activation_is_kept_with_the_policy(tmp_path: Path) -> None:
    trained = tether.train(
        "ppo", "CartPole-v1", total_steps=256, activation="relu", out=tmp_path / "r", **TINY
    )
    policy = tether.load(trained.run)
    network = policy.parameters.network
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    seen = policy.normalize(x)
    (w, b), (v, c) = network.dense
    np.testing.assert_allclose(
        policy.distribution(seen).logits, np.maximum(seen @ w + b, 0) @ v + c, atol=1e-6
    )
    with pytest.raises(UserError, match="activation is 'swish'"):
        tether.train("ppo", "CartPole-v1", activation="swish", out=tmp_path / "s", **TINY)


@pytest.mark.parametrize("network", [own_networks.wide, own_networks.JaxOnly])
def test_a_network_of_ones_own_trains_resumes_and_loads(network: Any, tmp_path: Path) -> None:
    def train(steps: int, out: str) -> Any:
        return tether.train(
            "ppo", "CartPole-v1", total_steps=steps, network=network, anneal=False,
            out=tmp_path / out, **OWN,
        )  # fmt: skip

    whole, part = train(512, "whole"), train(256, "part")
    assert set(part.policy.parameters.network) == {"inner", "outer"}
    part = tether.resume(part.run, network=network, total_steps=512, progress=False)
    assert part.policy.fingerprint() == whole.policy.fingerprint()
    policy = tether.load(part.run, network=network)
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    np.testing.assert_array_equal(policy.predict(x), whole.policy.predict(x))
    parameters = policy.parameters.network
    seen = policy.normalize(x)
    np.testing.assert_allclose(
        policy.distribution(seen).logits,
        (seen + abs(seen @ parameters["inner"])) @ parameters["outer"],
        rtol=1e-5,
        atol=1e-6,
    )
    assert len(tether.evaluate_run(part.run, network=network, episodes=2).returns) == 2
    for call in (tether.load, tether.resume, tether.evaluate_run):
        with pytest.raises(UserError, match=r"has its own network, own_networks:.*network="):
            call(part.run)
    saved = policy.save(tmp_path / "policy.safetensors")
    again = Policy.load(saved, network=network)
    assert again.fingerprint() == policy.fingerprint()
    with pytest.raises(UserError, match="own network"):
        tether.load(saved)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("a2c", {}),
        ("a2c-tr", {}),
        ("ppo-kl", OWN),
        ("trpo", {"num_envs": 4, "steps_per_iteration": 64}),
        ("vpg", {"num_envs": 4, "steps_per_iteration": 64}),
        ("reinforce", {"num_envs": 4, "steps_per_iteration": 64, "weight": "baseline"}),
        ("actor-critic", {"steps_per_iteration": 50}),
        ("cem", {"population": 6}),
    ],
)
def test_every_method_takes_it(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    given = {"progress": False, "sinks": (), **settings}
    trained = tether.train(
        method, CopyDict, total_steps=100, network=own_networks.wide, out=tmp_path / "r", **given
    )
    before = tether.load(trained.run, network=own_networks.wide).fingerprint()
    resumed = tether.resume(
        trained.run, env=CopyDict, network=own_networks.wide, total_steps=trained.steps + 50,
        progress=False,
    )  # fmt: skip
    assert resumed.steps > trained.steps
    assert resumed.policy.fingerprint() != before


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("Flat", r"outputs of shape \(3,\) for 3 observations of shape \(4,\); expected \(3, 2\)"),
        ("Endless", "not finite"),
        ("NumpyOnly", "apply, given JAX arrays, raised TracerArrayConversionError"),
        ("Failing", r"init\(\(4,\), outputs=2\) raised KeyError: 'no such width'"),
        ("Integers", "an array of int64; expected finite float arrays"),
        ("Nothing", r"has no method init; expected init\(rng, observation_shape"),
    ],
)
def test_a_bad_network_is_told_in_one_line_and_leaves_no_folder(
    network: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        tether.train(
            "ppo", "CartPole-v1", network=getattr(own_networks, network), out=tmp_path / "r", **OWN
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_settings_of_the_built_in_network_are_refused_beside_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hidden describes the built-in network"):
        tether.train("ppo", "CartPole-v1", network=own_networks.wide, out=tmp_path / "r", **TINY)


def test_the_command_line_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "r")
    small = ["--steps-per-iteration", "128", "--num-envs", "4", "--minibatch-size", "32", "--quiet"]
    train = ["train", "ppo", "--env", "CartPole-v1", "--total-steps", "128", "--out", run, *small]
    assert main([*train, "--network", "own_networks:Residual"]) == 0
    assert main(["evaluate", run, "--episodes", "1"]) == 2
    assert "--network module:object" in capsys.readouterr().err
    assert main(["evaluate", run, "--episodes", "1", "--network", "own_networks:Residual"]) == 0
    for name, words in (
        ("Residual", "expected module:object"),
        ("no_such_networks:A", "which is neither installed nor in the current folder"),
        ("own_networks:Wider", "the module own_networks has no Wider"),
    ):
        assert main([*train, "--network", name]) == 2
        assert words in capsys.readouterr().err
