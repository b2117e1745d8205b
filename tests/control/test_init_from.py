"""A run that begins with another run's policy: the jump start, and what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain_environment import Chain
from comparisons import assert_equal_states
from demonstrators import balancer, record

import tether
from tether import cli
from tether.control.envs import make
from tether.control.methods import METHODS
from tether.control.policy_learner import PolicyLearner
from tether.control.training import configure
from tether.errors import UserError
from tether.learning import Run, read_metrics
from tether.learning.methods import find_method

QUIET: dict[str, Any] = {"progress": False, "sinks": ()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Behaviour cloned from a CartPole controller that never falls, in networks PPO has too."""
    folder = tmp_path_factory.mktemp("clone")
    env = make("CartPole-v1", 4)
    record(balancer(env), env, folder / "expert", 8)
    run = folder / "run"
    tether.train(
        "bc", "CartPole-v1", total_steps=12_000, demonstrations=folder / "expert",
        evaluation_episodes=4, out=run, **QUIET,
    )  # fmt: skip
    assert read_metrics(run)[-1]["return/mean"] >= 450
    return run


PPO: dict[str, Any] = {"num_envs": 8, "learning_rate": 1e-5}
SHORT: dict[str, Any] = {"steps_per_iteration": 256, "epochs": 1, **PPO, **QUIET}


def test_ppo_starts_where_behaviour_cloning_ended(clone: Path, tmp_path: Path) -> None:
    returns = {}
    for name, start in (("jump", clone), ("scratch", None)):
        run = tmp_path / name
        tether.train(
            "ppo", "CartPole-v1", total_steps=6144, init_from=start, out=run, **PPO, **QUIET
        )
        # Episodes that ended while the first three batches were collected.
        returns[name] = read_metrics(run)[-1]["return/mean"]
    # Its actions are sampled, as PPO's are in training.
    sampled = tether.evaluate_run(clone, episodes=10, deterministic=False).returns.mean()
    assert returns["scratch"] < 50
    assert returns["jump"] > 5 * returns["scratch"]
    assert returns["jump"] > 0.6 * sampled
    spec = Run.open(tmp_path / "jump").spec
    assert spec["init_from"]["run"] == str(clone)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"bc", "prefer"}))
def test_every_method_can_begin_with_it(method: str, clone: Path) -> None:
    policy = tether.load(clone)
    config = configure(method, settings={"hidden": (64, 64), "normalize_observation": True})
    kind = find_method(METHODS, method)
    env = make("CartPole-v1", kind.environments(config))
    learner: PolicyLearner = kind(config, env, seed=3, total_steps=10**6, initial=policy)
    given = policy.state()
    given["normalizer"]["fixed"] = True
    assert_equal_states(learner.policy.state(), given)
    rows = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(learner.policy.predict(rows), policy.predict(rows))
    before = policy.state()
    learner.iterate()
    assert_equal_states(policy.state(), before)
    # What it normalizes by is part of what the policy does, and stays, from checkpoint on as well.
    assert_equal_states(learner.policy.state()["normalizer"], given["normalizer"])
    resumed: PolicyLearner = kind(config, env, seed=4, total_steps=10**6)
    resumed.restore(learner.state())
    resumed.iterate()
    assert_equal_states(resumed.policy.state()["normalizer"], given["normalizer"])
    learner.close()


def test_what_does_not_fit_is_told_in_one_line(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[str, list[str], str]] = [
        ("Acrobot-v1", [], "has the observation space Box("),
        ("CartPole-v1", ["--hidden", "8"], "has hidden layers (64, 64), this training (8,)"),
        ("CartPole-v1", ["--no-normalize-observation"], "give --normalize-observation"),
        ("CartPole-v1", ["--init-from", "nowhere"], "there is no run folder nowhere"),
    ]
    for env, arguments, words in cases:
        start = [] if "--init-from" in arguments else ["--init-from", str(clone)]
        out = tmp_path / "run"
        assert cli.main(["train", "ppo", "--env", env, *arguments, *start, "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("tether: ")
        assert words in line
        assert not out.exists()
    with pytest.raises(UserError, match=r"observation space Box.*this environment Discrete\(5\)"):
        tether.train("ppo", Chain, init_from=clone, out=tmp_path / "run", **QUIET)


def test_a_run_killed_before_its_first_checkpoint_begins_with_it_again(
    clone: Path, tmp_path: Path
) -> None:
    kwargs: dict[str, Any] = {"total_steps": 512, "init_from": clone, **SHORT}
    tether.train("ppo", "CartPole-v1", out=tmp_path / "straight", **kwargs)
    tether.train("ppo", "CartPole-v1", out=tmp_path / "killed", **kwargs)
    for file in (tmp_path / "killed" / "checkpoints").iterdir():
        file.unlink()
    tether.resume(tmp_path / "killed", **QUIET)
    states = [Run.open(tmp_path / name).load() for name in ("straight", "killed")]
    assert_equal_states(*states)
    # Unless the other run has gone on since.
    other = tmp_path / "other"
    tether.train("ppo", "CartPole-v1", out=other, total_steps=256, **SHORT)
    kwargs["init_from"] = other
    tether.train("ppo", "CartPole-v1", out=tmp_path / "second", **kwargs)
    for file in (tmp_path / "second" / "checkpoints").iterdir():
        file.unlink()
    tether.resume(other, total_steps=512, **QUIET)
    with pytest.raises(UserError, match="has learnt since; start it again"):
        tether.resume(tmp_path / "second", **QUIET)
