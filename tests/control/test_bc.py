"""Behaviour cloning against known frequencies and least squares, and from every kind of folder."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from chain_environment import BEST, Chain
from comparisons import assert_equal_runs, assert_equal_states
from demonstrators import balancer, chain_folder, damage, record, write
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from toy_environments import Copy

import tether
from tether import cli
from tether.control.demonstrations import EPISODES, FACTS, Recorder, load_demonstrations
from tether.control.distributions import action_head
from tether.control.envs import make
from tether.control.evaluation import evaluate
from tether.control.methods.bc import BCConfig, BehaviourCloning
from tether.errors import UserError
from tether.learning import Run, load_checkpoint, read_metrics, save_checkpoint

QUIET: dict[str, Any] = {"progress": False, "sinks": ()}


def learner_of(env: Any, path: Path | None, *, seed: int = 0, **settings: Any) -> BehaviourCloning:
    config = BCConfig(demonstrations=path, **{"evaluation_episodes": 0, **settings})
    world = make(env, BehaviourCloning.environments(config))
    return BehaviourCloning(config, world, seed=seed, total_steps=10**6)


def test_choices_are_learnt_as_often_as_they_were_made(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    often = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    states = rng.integers(0, 5, (40, 50))
    choices = (rng.random((40, 50)) < often[states]).astype(np.int64)
    folder = write(
        tmp_path / "d",
        Chain.observation_space,
        Chain.action_space,
        [(np.eye(5, dtype=np.float32)[s], a) for s, a in zip(states, choices, strict=True)],
    )
    # Linear in one-hot states, so the best model has the frequencies themselves. All 2000 pairs are
    # one minibatch, so nothing is left to chance; the 48 that fill it up must not count.
    learner = learner_of(
        Chain, folder, hidden=(), held_out=0, learning_rate=0.05, minibatch_size=2048
    )
    for _ in range(300):
        metrics = learner.iterate()
    truth = np.array([choices[states == s].mean() for s in range(5)])
    seen = learner.policy.normalize(np.eye(5, dtype=np.float32))
    chosen = np.asarray(learner.policy.distribution(seen).log_prob(np.ones((5, 1), np.int32)))
    np.testing.assert_allclose(np.exp(chosen), truth, atol=1e-3)
    entropy = -(truth * np.log(truth) + (1 - truth) * np.log(1 - truth))[states].mean()
    assert metrics["imitation/loss"] == pytest.approx(entropy, abs=1e-4)
    assert learner.steps == 300 * 2000


def test_a_gaussian_is_fitted_as_by_least_squares(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    observation = rng.normal(2.0, 3.0, (20, 60, 2)).astype(np.float32)
    truth = np.array([[0.2, -0.1], [0.1, 0.15]])
    action = (observation @ truth + 0.3 + rng.normal(size=(20, 60, 2)) * [0.1, 0.4]).astype("f4")
    env = functools.partial(Copy, spaces.Box(-9, 9, (2,)))
    space = env().observation_space
    folder = write(tmp_path / "d", space, env().action_space, list(zip(observation, action)))  # noqa: B905
    learner = learner_of(
        env, folder, hidden=(), held_out=0, learning_rate=0.01, scale_actions=False
    )
    for _ in range(30):
        learner.iterate()
    x = np.column_stack([observation.reshape(-1, 2), np.ones(1200)])
    best, *_ = np.linalg.lstsq(x, action.reshape(-1, 2), rcond=None)
    policy = learner.policy
    np.testing.assert_allclose(
        policy.predict(observation[0]), observation[0] @ best[:2] + best[2], atol=0.05
    )
    residual = action.reshape(-1, 2) - x @ best
    np.testing.assert_allclose(np.exp(policy.parameters.log_std), residual.std(0), rtol=0.05)
    # A demonstrator without noise is met at the floor.
    exact = (observation @ truth).astype(np.float32)
    folder = write(tmp_path / "e", space, env().action_space, list(zip(observation, exact)))  # noqa: B905
    floored = learner_of(env, folder, hidden=(), held_out=0, learning_rate=0.02, min_log_std=-1.5)
    for _ in range(12):
        floored.iterate()
    np.testing.assert_array_equal(floored.policy.parameters.log_std, np.float32([-1.5, -1.5]))


class Flip(Copy):
    """Two numbers and three choices."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(3))
        self.observation_space = spaces.Box(-99, 99, (2,), np.float32)


def test_whole_episodes_are_held_out_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    # Dice: whatever is learnt of them is noise, and the held-out loss soon says so. The first
    # number of an observation is the episode's.
    given = []
    for n in range(9):
        observation = np.stack([np.full(30, n), rng.normal(size=30)], axis=1).astype(np.float32)
        given.append((observation, rng.integers(0, 3, 30)))
    folder = write(tmp_path / "d", Flip().observation_space, Flip().action_space, given)
    learner = learner_of(
        Flip, folder, held_out=0.3, patience=4, learning_rate=0.02, normalize_observation=False
    )
    kept, learnt = (
        np.unique(np.asarray(pairs.observation[:, 0]), return_counts=True)
        for pairs in (learner._held_out, learner._learnt)
    )
    assert sorted([*kept[0], *learnt[0]]) == list(range(9))
    assert len(kept[0]) == 3
    assert {*kept[1], *learnt[1]} == {30}

    losses = []
    while not learner.finished:
        losses.append(learner.iterate()["imitation/held_out_loss"])
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4
    pi = learner.policy.distribution(np.asarray(learner._held_out.observation))
    loss = -pi.log_prob(np.asarray(learner._held_out.action)).mean()
    assert loss == pytest.approx(losses[best], rel=1e-5)
    assert losses[-1] > losses[best]


def test_early_stopping_ends_a_run_for_good(tmp_path: Path) -> None:
    folder = chain_folder(tmp_path / "d", mistakes=0.3)
    settings: dict[str, Any] = {"demonstrations": folder, "learning_rate": 0.1, "patience": 2}
    settings |= {"hidden": (8,), "evaluate_every": 1000, "evaluation_episodes": 3}
    trained = tether.train("bc", Chain, out=tmp_path / "r", **settings, **QUIET)
    rows = read_metrics(tmp_path / "r")
    assert trained.steps == rows[-1]["step"] < 1_000_000
    # Only the last epoch was evaluated.
    assert ["return/mean" in row for row in rows] == [False] * (len(rows) - 1) + [True]
    again = tether.resume(tmp_path / "r", env=Chain, **QUIET)
    assert again.steps_here == 0
    assert again.summary()["return_mean"] == trained.summary()["return_mean"]
    assert read_metrics(tmp_path / "r") == rows


def test_the_best_policy_is_cloned_from_a_few_episodes(tmp_path: Path) -> None:
    learner = learner_of(Chain, chain_folder(tmp_path / "d"), learning_rate=0.01, minibatch_size=8)
    while learner.epochs < 30:
        learner.iterate()
    returns = evaluate(learner.policy, make(Chain, 2), episodes=4).returns
    np.testing.assert_allclose(returns, BEST)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2,)),
    ],
    ids=lambda space: type(space).__name__,
)
def test_who_always_copied_is_cloned_in_every_action_space(
    space: spaces.Space, tmp_path: Path
) -> None:
    env = functools.partial(Copy, space)
    space.seed(5)
    episodes = []
    for _ in range(40):
        targets = [space.sample() for _ in range(16)]
        seen = [np.asarray(spaces.flatten(space, target), np.float32) for target in targets]
        episodes.append((np.stack(seen), np.stack(targets)))
    folder = write(tmp_path / "d", env().observation_space, space, episodes)
    learner = learner_of(env, folder, learning_rate=0.01, minibatch_size=32)
    while learner.epochs < 20 and not learner.finished:
        learner.iterate()
    score = evaluate(learner.policy, make(env, 4), episodes=8).returns.mean() / 16
    assert score >= 0.95


def test_from_record_to_a_clone_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    returns = record(balancer(make("CartPole-v1", 1)), make("CartPole-v1", 4), Path("expert"), 8)
    assert returns.mean() == 500
    clone = ["train", "bc", "--env", "CartPole-v1", "--demonstrations", "expert", "--out", "clone"]
    assert cli.main([*clone, "--total-steps", "20000", "--quiet", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trained["return_mean"] >= 475
    assert trained["episodes"] == 10

    evaluate_ = ["evaluate", "clone", "--episodes", "3", "--record", "again", "--json"]
    assert cli.main(evaluate_) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["demonstrations"] == "again"
    assert sorted(p.name for p in Path("again").iterdir()) == [FACTS, EPISODES]
    facts = json.loads(Path("again", FACTS).read_text())
    assert facts["env"] == "CartPole-v1"
    assert (facts["episodes"], facts["steps"]) == (3, told["length_mean"] * 3)
    # What was recorded is what the policy saw and did.
    policy = tether.load("clone")
    pairs = load_demonstrations("again", policy.spec.source_space, policy.spec.head)
    np.testing.assert_array_equal(policy.predict(pairs.observation), pairs.action[:, 0])
    state: Any = load_checkpoint(Path("again", EPISODES))[0]
    ends = np.cumsum(state["length"])
    starts = np.r_[0, ends[:-1]]
    assert [state["reward"][a:b].sum() for a, b in zip(starts, ends, strict=True)] == list(
        tether.evaluate_run("clone", episodes=3).returns
    )
    assert cli.main(["evaluate", "clone", "--record", "again"]) == 2
    assert "--record again is not empty; expected a new or empty" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*tmp"))


def test_demonstrations_of_something_else_or_none_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_folder(tmp_path / "chain")
    one = chain_folder(tmp_path / "one", episodes=1)
    torque, other = spaces.Box(-2, 2), spaces.Box(-1, 1)
    arm = functools.partial(Copy, other)
    seen = arm().observation_space
    pushed = write(tmp_path / "arm", seen, torque, [(np.zeros((3, 1), "f4"), np.zeros((3, 1)))])
    (tmp_path / "file").touch()
    cases: list[tuple[Any, Path | None, str]] = [
        ("CartPole-v1", chain, r"have the observation space Discrete\(5\), the environment Box\("),
        (arm, pushed, r"have the action space Box\(-2.0, 2.0.*the environment Box\(-1.0, 1.0"),
        (Chain, one, r"are 1 episode, and held_out=0.1 needs at least 2"),
        (Chain, tmp_path / "nowhere", r"no demonstrations at .*nowhere: no such folder"),
        (Chain, tmp_path, r"no demonstrations at .*: expected a folder written by `tether eval"),
        (Chain, tmp_path / "file", r"no demonstrations at .*file: expected a folder"),
        (Chain, None, r"was given none; give --demonstrations PATH"),
    ]
    for env, path, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            learner_of(env, path)
        assert "\n" not in str(caught.value)
    learner_of(Chain, one, held_out=0).iterate()
    assert cli.main(["train", "bc", "--env", "CartPole-v1", "--out", str(tmp_path / "r")]) == 2
    assert "give --demonstrations PATH" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--record .*file is a file; expected a new or empty"):
        Recorder(tmp_path / "file")


def test_twice_is_the_same_and_a_checkpoint_continues_bit_for_bit(tmp_path: Path) -> None:
    folder = chain_folder(tmp_path / "d", mistakes=0.2)
    tiny: dict[str, Any] = {"hidden": (8,), "minibatch_size": 16, "evaluation_episodes": 2}
    tiny |= {"evaluate_every": 2}
    first, second, other, resumed = (
        learner_of(Chain, folder, seed=seed, **tiny) for seed in (1, 1, 2, 1)
    )
    assert [first.iterate() for _ in range(3)] == [second.iterate() for _ in range(3)]
    assert_equal_states(first.state(), second.state())
    other.iterate()
    assert not np.array_equal(
        *(jax.tree.leaves(one.policy.parameters)[0] for one in (first, other))
    )
    save_checkpoint(tmp_path / "state.safetensors", first.state(), {})
    resumed.iterate()
    resumed.restore(load_checkpoint(tmp_path / "state.safetensors")[0])
    assert [resumed.iterate() for _ in range(3)] == [second.iterate() for _ in range(3)]
    assert_equal_states(resumed.state(), second.state())


def test_a_clone_that_began_with_a_policy_continues_bit_for_bit(tmp_path: Path) -> None:
    # The policy's statistics are far from those of the demonstrations.
    folder = chain_folder(tmp_path / "expert")
    first = learner_of(Chain, folder, normalize_observation=True)
    first.iterate()
    initial = first.policy
    assert initial.normalizer is not None
    initial.normalizer.update(np.full((50, 5), 9.0))
    config = first.config
    straight = BehaviourCloning(config, make(Chain, 4), seed=0, total_steps=9999, initial=initial)
    straight.iterate()
    stopped = BehaviourCloning(config, make(Chain, 4), seed=0, total_steps=9999)
    stopped.restore(straight.state())
    assert straight.iterate() == stopped.iterate()
    assert_equal_states(straight.state(), stopped.state())


def test_a_stopped_run_goes_on_with_its_own_demonstrations(tmp_path: Path) -> None:
    folder = chain_folder(tmp_path / "d", mistakes=0.2)
    settings: dict[str, Any] = {"demonstrations": folder, "hidden": (8,), "held_out": 0.2}
    settings |= {"evaluation_episodes": 0, **QUIET}
    tether.train("bc", Chain, total_steps=400, out=tmp_path / "straight", **settings)
    tether.train("bc", Chain, total_steps=200, out=tmp_path / "stopped", **settings)
    tether.resume(tmp_path / "stopped", env=Chain, total_steps=400, **QUIET)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "straight")
    assert Run.open(tmp_path / "stopped").config["demonstrations"] == str(folder)
    damage(folder, "empty episode")
    with pytest.raises(UserError, match="episode 10 is empty"):
        tether.resume(tmp_path / "stopped", env=Chain, total_steps=600, **QUIET)
    folder.rename(tmp_path / "old")
    chain_folder(folder, mistakes=0.5)
    with pytest.raises(UserError, match="are not those this run began with"):
        tether.resume(tmp_path / "stopped", env=Chain, total_steps=600, **QUIET)


def test_the_expert_that_comes_with_tether_is_cloned_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "train bc --env CartPole-v1 --demonstrations cartpole-expert --total-steps 45000"
    assert cli.main([*command.split(), "--out", "clone", "--quiet"]) == 0
    # The name is kept, so that another machine can resume the run.
    assert Run.open("clone").config["demonstrations"] == "cartpole-expert"
    assert tether.evaluate("clone", episodes=10).summary()["return_mean"] >= 475
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tether.resume("../clone", total_steps=50_000, progress=False).steps == 54_000


def test_the_expert_balanced_a_real_cart_pole() -> None:
    env = CartPoleEnv()
    pairs = load_demonstrations(
        "cartpole-expert", env.observation_space, action_head(env.action_space)
    )
    assert pairs.length.tolist() == [500] * 10
    env.reset(seed=0)
    ends = np.cumsum(pairs.length) - 1
    for row in set(range(0, 5000, 7)) - set(ends.tolist()):
        env.state = pairs.observation[row].astype(np.float64)
        follows, _, terminated, *_ = env.step(int(pairs.action[row, 0]))
        assert not terminated
        np.testing.assert_allclose(follows, pairs.observation[row + 1], rtol=1e-4, atol=1e-5)


def test_a_folder_of_the_users_goes_before_an_expert_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chain_folder(tmp_path / "cartpole-expert")
    config = BCConfig(demonstrations=Path("cartpole-expert"))
    assert config.demonstrations == tmp_path / "cartpole-expert"
    with pytest.raises(UserError, match=r"no such folder; give a folder, or .* cartpole-expert"):
        learner_of(Chain, Path("cartpole-experts"))
