"""Learning a policy from comparisons: the loop, its teachers, and how it is stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

import tether
from tether.cli import main
from tether.control.envs import GoesOn, make
from tether.control.policy import Policy, PolicySpec
from tether.control.preferences.config import PreferConfig
from tether.control.preferences.inputs import RewardInputs
from tether.control.preferences.learner import Prefer
from tether.control.preferences.segments import segment_length
from tether.control.rollout import Collector, Experience
from tether.control.training import configure
from tether.errors import UserError
from tether.learning import load_checkpoint, save_checkpoint
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run
from tether.preferences.items import Segment
from tether.preferences.records import Answer
from tether.preferences.store import Store

TINY: dict[str, Any] = {
    "labels": 16,
    "first_labels": 0.25,
    "label_decay_steps": 2_000_000,
    "segment_steps": 10,
    "random_steps": 256,
    "refits": 3,
    "first_fit_steps": 10,
    "refit_steps": 10,
    "reward_hidden": (8,),
    "num_envs": 4,
    "steps_per_iteration": 128,
    "minibatch_size": 32,
    "epochs": 2,
    "hidden": (8,),
}
QUIET: dict[str, Any] = {"progress": False, "sinks": ()}


def learner_of(teacher: Any = "oracle", *, env: str = "Reacher-v5", **settings: Any) -> Prefer:
    config: Any = configure("prefer", settings={**TINY, **settings})
    assert isinstance(config, PreferConfig)
    world = make(env, config.policy.num_envs, goes_on=Prefer.task(config, env, {}).goes_on)
    return Prefer(config, world, seed=1000, total_steps=2048, teacher=teacher)


def iterated(learner: Prefer, count: int) -> list[dict[str, Any]]:
    return [dict(learner.iterate()) for _ in range(count)]


def without_time(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(path / "metrics.jsonl")
    ]


def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {**TINY, "queries": "disagreement", "reward_dropout": 0.1, "oracle_mistake": 0.2}
    arguments = {"env": "Reacher-v5", "total_steps": 2048, "seed": 1000, "store": True, **settings}
    tether.train("prefer", out=whole, **arguments, **QUIET)
    code = (
        "import json, os, signal, sys, tether, tether.learning\n"
        "class Kill(tether.learning.BaseCallback):\n"
        "    def on_iteration(self, run, learner, metrics):\n"
        "        if learner.steps == 1280: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tether.train('prefer', out=sys.argv[1], callbacks=[Kill()], checkpoint_every=512,\n"
        "             progress=False, sinks=(), **json.loads(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(killed), json.dumps(arguments)], check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert Run.open(killed).checkpoints()
    tether.resume(killed, **QUIET)
    assert without_time(killed) == without_time(whole)
    assert tether.load(killed).fingerprint() == tether.load(whole).fingerprint()
    stores = [Store.open(path / "preferences.sqlite", create=False) for path in (whole, killed)]
    kept = [{answer.uuid: answer.preference for _, answer in s.answers()} for s in stores]
    assert kept[0] == kept[1]
    assert len(kept[0]) == without_time(whole)[-1]["labels/count"]


def test_the_policy_gets_the_learned_reward_and_the_report_the_true_one() -> None:
    learner = learner_of()
    iterated(learner, 2)
    assert learner.model.fits == 0
    rollouts, true = [], []
    update, judge = learner.inner.update, learner.inner.collector.judge

    def watched(rollout: Any) -> Any:
        rollouts.append(rollout)
        return update(rollout)

    def judged(seen: Experience) -> Any:
        true.append(seen.reward)
        return judge(seen)

    learner.inner.update = watched  # type: ignore[method-assign]
    learner.inner.collector.judge = judged
    before = learner.model.output_moments.count
    metrics = iterated(learner, 1)[0]
    assert before == 0
    assert learner.model.fits == 1
    seen = learner.history
    inputs = learner._inputs(seen.observation, seen.action)[-len(true[0]) :]
    learned = learner.model.normalized(learner.model.raw(inputs.reshape(-1, inputs.shape[-1])))
    paid = rollouts[0].reward.ravel()
    assert np.corrcoef(paid, learned)[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(paid, true[0].ravel())[0, 1] == pytest.approx(
        metrics["reward/correlation"], abs=1e-4
    )
    episodes = rollouts[0].episode_returns
    assert len(episodes)
    # Reacher pays less than 0 at every step; learned rewards have a mean of 0.
    assert episodes.max() < 0


def test_rewards_of_the_untrained_policy_are_seen_by_nothing() -> None:
    learner = learner_of()
    before = [array.copy() for array in learner.policy.parameters.network.dense[0]]
    iterated(learner, 2)
    scaler = learner.inner.collector.reward_scaler
    assert scaler is not None
    assert scaler.moments.count == 0
    assert learner.steps == 256 == learner.schedule.begin
    after = learner.policy.parameters.network.dense[0]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    learner.iterate()
    assert scaler.moments.count == 128
    assert not np.array_equal(before[0], learner.policy.parameters.network.dense[0].weight)


def test_experience_is_what_gymnasium_plays(tmp_path: Path) -> None:
    """Each step of a rollout, played again from its coordinates in Gymnasium's own Hopper."""
    world = make("Hopper-v5", 3, max_episode_steps=20)
    spec = PolicySpec.of(world.source_observation_space, world.action_space, (8,), True)
    policy = Policy(spec, spec.init(np.random.default_rng(0), 0.5), None)
    collector = Collector(world, policy, np.random.default_rng(1))
    watched: list[Experience] = []
    collector.judge = lambda seen: watched.append(seen) or seen.reward  # type: ignore[func-returns-value]
    collector.reset(0)
    collector.collect(30)
    seen = watched[0]
    done = seen.terminated | seen.truncated
    assert done.any()
    hopper: Any = gymnasium.make("Hopper-v5").unwrapped
    hopper.reset(seed=0)
    for n in range(3):
        for t in range(30):
            hopper.set_state(*np.split(seen.coordinates[t, n], [hopper.model.nq]))
            observation, reward, terminated, _, _ = hopper.step(seen.action[t, n])
            assert observation == pytest.approx(seen.next_observation[t, n], abs=1e-5)
            assert reward == pytest.approx(seen.reward[t, n], abs=1e-4)
            assert terminated == seen.terminated[t, n]
            if t < 29 and not done[t, n]:
                assert np.array_equal(seen.next_observation[t, n], seen.observation[t + 1, n])


def test_a_task_goes_on_where_it_would_have_ended() -> None:
    """Against Gymnasium's Hopper that does not end: falling pays no more, and cuts at last."""
    world = make("Hopper-v5", 1, goes_on=GoesOn(-2.0, 30))
    plain = gymnasium.make("Hopper-v5", terminate_when_unhealthy=False)
    observation, _ = plain.reset(seed=0)
    assert world.reset(0)[0] == pytest.approx(observation)
    rng, bad = np.random.default_rng(0), 0
    for step in range(1, 400):
        action = rng.uniform(-1, 1, (1, 3)).astype(np.float32)
        observation, reward, _, _, info = plain.step(action[0])
        found = world.step(action)
        unhealthy = info["reward_survive"] == 0
        bad += unhealthy
        assert found.reward[0] == pytest.approx(-2.0 if unhealthy else reward)
        assert not found.terminated[0]
        assert found.truncated[0] == (bad == 30)
        assert found.final_observation[0] == pytest.approx(observation)
        if found.truncated[0]:
            break
        if step == 20:
            again = make("Hopper-v5", 1, goes_on=GoesOn(-2.0, 30))
            again.reset(7)
            again.restore(world.state())
            world = again
    assert bad == 30


def test_segments_hold_what_draws_and_what_pays_them() -> None:
    learner = learner_of(env="InvertedPendulum-v5")
    iterated(learner, 2)
    for query, items in learner.asker.queries(8, learner.steps):
        assert query.items == tuple(item.id for item in items)
        assert query.source == "random-policy"
        for item in items:
            assert len(item) == 10
            assert item.qpos is not None
            assert item.qvel is not None
            # This task shows its coordinates as they are.
            coordinates = np.concatenate([item.qpos, item.qvel], axis=1)
            assert item.observation == pytest.approx(coordinates, abs=1e-6)
            standing = np.abs(item.qpos[1:, 1]) <= 0.2
            assert item.reward is not None
            assert item.reward[:-1] == pytest.approx(np.where(standing, 1.0, 0.0))
            assert item.dt == pytest.approx(0.04)


@pytest.mark.parametrize("queries", ["uniform", "disagreement", "entropy", "coverage"])
def test_every_rule_of_queries_asks_as_many_as_are_due(queries: str) -> None:
    fewer = {} if queries == "uniform" else {"candidates": 3}
    learner = learner_of(queries=queries, **fewer)
    rows = [dict(learner.iterate()) for _ in range(16)]
    assert rows[1]["labels/count"] == 0
    assert rows[2]["labels/count"] == 4
    counts = [row["labels/count"] for row in rows]
    assert counts == sorted(counts)
    assert all(row["labels/count"] <= row["labels/due"] for row in rows)
    assert rows[-1]["labels/count"] >= 12


def test_more_than_two_segments_are_ranked(tmp_path: Path) -> None:
    learner = learner_of(items=3)
    iterated(learner, 3)
    returns = learner.data.returns
    assert returns.shape == (4, 3)
    assert (np.diff(returns, axis=1) < 0).all()


def test_all_labels_of_the_offline_ablation_come_first() -> None:
    learner = learner_of(first_labels=1.0)
    rows = iterated(learner, 6)
    asked = [row["labels/count"] for row in rows if row["labels/count"]]
    assert set(asked) == {16}


@pytest.mark.parametrize("method", ["trpo", "a2c", "vpg"])
def test_any_on_policy_method_learns_from_it(method: str) -> None:
    settings = {
        name: value for name, value in TINY.items() if name not in ("minibatch_size", "epochs")
    }
    config: Any = configure("prefer", settings={**settings, "policy_method": method})
    world = make("Reacher-v5", 4)
    learner = Prefer(config, world, seed=1000, total_steps=2048)
    rows = iterated(learner, 5)
    assert rows[-1]["labels/count"] >= 4
    assert "reward/correlation" in rows[-1]


def test_the_reward_model_sees_what_its_setting_says() -> None:
    size, actions = 11, 3
    for env, kind, width in (
        ("Hopper-v5", "state", size),
        ("Hopper-v5", "state-action", size + actions),
        ("CartPole-v1", "state-action", 4 + 2),
        ("CartPole-v1", "state", 4),
        ("CartPole-v1", "transition", 2 * 4 + 2),
    ):
        world = make(env, 1)
        inputs = RewardInputs(world, kind)
        world.close()
        assert inputs.width == width
        shape = (5,) if env == "CartPole-v1" else (5, actions)
        action = np.ones(shape, np.int64 if env == "CartPole-v1" else np.float32)
        observation = np.ones((5, size if env == "Hopper-v5" else 4))
        seen = inputs(observation, action, observation + 1)
        other = inputs(observation, 1 - action, observation + 1)
        assert seen.shape == (5, width)
        assert np.array_equal(seen, other) == (inputs.kind == "state")


def test_a_run_from_when_the_model_always_saw_actions_keeps_its_inputs() -> None:
    for before, now in ((False, "state-action"), (True, "transition")):
        recorded = PreferConfig().dump()
        del recorded["reward_inputs"]
        config = PreferConfig.load({**recorded, "next_observation": before}, recorded=True)
        assert config.reward_inputs == now
    with pytest.raises(UserError, match="unknown key 'next_observation'"):
        PreferConfig.load({"next_observation": True})


def test_what_followed_can_be_part_of_the_input() -> None:
    learner = learner_of(reward_inputs="transition")
    iterated(learner, 3)
    size = learner.env.observation_space.shape[0]  # type: ignore[index]
    assert learner.data.inputs.shape[2:] == (9, 2 * size + 2)
    inputs = learner.data.inputs[0, 0]
    assert np.array_equal(inputs[:-1, -size:], inputs[1:, :size])


def prefers_low(first: Segment, second: Segment) -> float:
    """Whoever has the lower true sum is better."""
    return float(first.true_return < second.true_return)


def test_a_function_teaches_and_has_to_be_given_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = {"env": "Reacher-v5", "total_steps": 1024, **TINY, **QUIET}
    run = tether.train("prefer", teacher=prefers_low, out=out, **arguments)
    assert run.metrics["reward/correlation"] < 0
    with pytest.raises(UserError, match=r"pass the same one"):
        tether.resume(out, total_steps=1280, **QUIET)
    tether.resume(out, total_steps=1280, teacher=prefers_low, **QUIET)
    record = json.loads((out / "run.json").read_text())
    record["spec"]["teacher"] = "test_prefer:prefers_low"
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="does not decide what is imported"):
        tether.resume(out, total_steps=1536, **QUIET)


def test_comparisons_of_a_store_teach_another_run(tmp_path: Path) -> None:
    arguments = {"env": "Reacher-v5", "total_steps": 1024, **TINY, **QUIET}
    first = tether.train("prefer", store=True, out=tmp_path / "first", **arguments)
    given = tmp_path / "first" / "preferences.sqlite"
    again = tether.train(
        "prefer", teacher=str(given), seed=1001, out=tmp_path / "again", **arguments
    )
    assert again.metrics["labels/count"] == first.metrics["labels/count"]


class WaitingError(Exception):
    """Training waits for people."""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prefer:
    """A learner whose labels people give; instead of waiting it raises."""

    def wait(seconds: float) -> None:
        raise WaitingError

    monkeypatch.setattr("tether.control.preferences.teachers.check_drawable", lambda env: None)
    monkeypatch.setattr("tether.control.preferences.learner.time", SimpleNamespace(sleep=wait))
    learner = learner_of("human")
    learner.open_store(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    return learner


def answer(store: Store, count: int, who: str = "ann") -> list[Answer]:
    """Answers as the page would, by the true rewards."""
    given = []
    for lease in store.claim(who, count=count):
        first, second = (store.item(item) for item in lease.query.items)
        assert isinstance(first, Segment)
        assert isinstance(second, Segment)
        said = float(first.true_return > second.true_return)
        given.append(Answer(query=lease.query.id, preference=said, annotator=who))
        store.answer(given[-1], lease.id)
    return given


def test_people_are_waited_for_only_when_labels_are_missing(
    asked: Prefer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iterated(asked, 2)
    with pytest.raises(WaitingError):
        asked.iterate()
    said = capsys.readouterr().err
    assert said == f"waiting for 4 more answers; compare the clips with: tether label {tmp_path}\n"
    store = Store.open(tmp_path / "preferences.sqlite", create=False)
    # Due are 4 of 16, and the queue holds more, but never more than there are labels to give.
    assert store.counts().open == 16
    assert store.notes()["goal"] == 16
    answer(store, 5)
    rows = iterated(asked, 3)
    assert rows[-1]["labels/count"] == 5
    assert asked.model.fits >= 1
    with pytest.raises(WaitingError):
        iterated(asked, 10)


def test_answers_that_are_taken_back_leave_the_data(asked: Prefer, tmp_path: Path) -> None:
    iterated(asked, 2)
    with pytest.raises(WaitingError):
        asked.iterate()
    store = Store.open(tmp_path / "preferences.sqlite", create=False)
    given = answer(store, 6)
    asked.iterate()
    assert asked.data.keys == [one.uuid for one in given]
    store.undo("ann", str(uuid.uuid4()))
    changed = Answer(query=given[0].query, preference=0.5, annotator="ann")
    store.answer(changed)
    asked.iterate()
    assert set(asked.data.keys) == {changed.uuid, *(one.uuid for one in given[1:-1])}
    assert asked.data.label[asked.data.keys.index(changed.uuid)] == 0.5
    assert asked._people is not None
    assert asked._people.news() == []


def test_either_side_may_be_restarted(asked: Prefer, tmp_path: Path) -> None:
    iterated(asked, 2)
    with pytest.raises(WaitingError):
        asked.iterate()
    path = tmp_path / "preferences.sqlite"
    with Store.open(path, create=False) as store:
        first = answer(store, 5)
    asked.iterate()
    file = tmp_path / "state.safetensors"
    save_checkpoint(file, asked.state(), {})
    with Store.open(path, create=False) as store:
        second = answer(store, 3, "bob")
    # What happened after the checkpoint is lost with the process; the answers are not.
    asked.iterate()
    asked.close_store()
    learner = learner_of("human")
    learner.restore(load_checkpoint(file)[0])
    learner.open_store(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    learner.iterate()
    assert learner.data.keys == [one.uuid for one in [*first, *second]]
    fresh = learner_of("human")
    fresh.open_store(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    iterated(fresh, 3)
    assert fresh.data.keys == learner.data.keys


def test_an_interrupt_ends_the_waiting(asked: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    iterated(asked, 2)
    monkeypatch.setattr("tether.control.preferences.learner.stop_requested", lambda: True)
    steps = asked.steps
    metrics = asked.iterate()
    assert asked.steps == steps
    assert metrics["labels/count"] == 0


def test_ctrl_c_while_waiting_saves_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["prefer", "--env", "Reacher-v5", "--teacher", "human", "--out", str(out), "--labels"]
    words += ["16", "--segment-steps", "10", "--num-envs", "4", "--steps-per-iteration", "128"]
    words += ["--first-labels", "0.25"]
    child = subprocess.Popen(
        [sys.executable, "-m", "tether", *words, "--total-steps", "4096"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MUJOCO_GL": "egl"},
    )
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if "waiting for 4 more answers" in line:
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
    assert child.wait(120) == 130
    assert "checkpoint saved" in lines[-1]
    assert Run.open(out).checkpoints()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": 0}, "labels is 0"),
        ({"teacher": "nobody"}, "unknown teacher 'nobody'"),
        ({"teacher": 3}, "teacher is 3"),
        ({"env": "CartPole-v1"}, "CartPole-v1 pays 1 at every step"),
        ({"env": "CartPole-v1", "teacher": "human"}, "--teacher oracle"),
        ({"env": "CartPole-v1", "termination": "continue"}, "--termination keep"),
        ({"policy_method": "cem"}, "method cem does not learn from rollouts"),
        ({"policy_method": "bogus"}, "unknown method 'bogus'"),
        ({"segment_steps": 51}, "an episode of Reacher-v5 has at most 50 steps"),
        ({"total_steps": 100}, "total_steps is 100"),
        ({"epsilom": 0.1}, "did you mean 'epsilon'"),
        ({"label": 5}, "did you mean 'labels'"),
        ({"minibatch_size": 33}, "minibatch_size=33 does not divide"),
        ({"teacher": "human", "oracle_mistake": 0.1}, "only the teacher oracle"),
        ({"teacher": "missing_module:f"}, "names the module missing_module"),
        ({"segment_steps": 1, "reward_inputs": "transition"}, "expected at least 2"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    out = tmp_path / "run"
    chosen = {"env": "Reacher-v5", "total_steps": 2048, **TINY, **arguments}
    with pytest.raises(UserError, match=said) as caught:
        tether.train("prefer", out=out, **chosen, **QUIET)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_only_prefer_takes_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ppo takes no teacher"):
        tether.train("ppo", "Reacher-v5", teacher="oracle", out=tmp_path / "run")


def test_the_command_and_what_works_on_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["prefer", "--env", "Hopper-v5", "--labels", "8", "--method", "trpo", "--max-kl"]
    words += ["0.02", "--num-envs", "4", "--steps-per-iteration", "256", "--refits", "2"]
    words += ["--critic-minibatch-size", "32", "--total-steps", "2048", "--segment-steps", "20"]
    assert main([*words, "--out", str(out), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["steps"] == 2048
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["policy"]["max_kl"] == 0.02
    assert record["spec"]["goes_on"] == {"reward": 0.0, "steps": 60}
    assert main(["resume", str(out), "--total-steps", "2304", "--quiet"]) == 0
    assert main(["evaluate", str(out), "--episodes", "2", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluated["episodes"] == 2
    assert main(["report", str(out)]) == 0
    assert main(["plot", str(out), "--out", str(tmp_path / "curve.png")]) == 0
    assert main(["train", "prefer", "--env", "Hopper-v5"]) == 2
    # As an earlier version recorded it.
    record["spec"]["goes_on"] = {"penalty": 1.0, "steps": 50}
    (out / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 2
    assert "was trained by an earlier version of tether" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "kwargs", "settings", "steps"),
    [
        ("Hopper-v5", {}, {}, 60),  # 1.5 s are 187 steps, of which 60 are the most.
        ("InvertedDoublePendulum-v5", {}, {}, 30),  # A step has 0.05 s.
        ("InvertedDoublePendulum-v5", {"frame_skip": 10}, {}, 15),  # Twice as long.
        ("Hopper-v5", {}, {"segment_steps": 125}, 125),
        ("Hopper-v5", {}, {"segment_steps": 1}, 60),
        ("Hopper-v5", {}, {"termination_steps": 70}, 70),
    ],
)
def test_an_episode_is_not_cut_before_a_segment_can_lie_on_the_ground(
    env: str, kwargs: dict[str, Any], settings: dict[str, Any], steps: int
) -> None:
    task = Prefer.task(PreferConfig.load(settings), env, kwargs)
    assert task.goes_on is not None
    assert task.goes_on.steps == steps
    world = make(env, 2, **kwargs)
    assert segment_length(world, settings.get("segment_steps")) <= steps
    world.close()


@pytest.mark.parametrize(
    ("settings", "components", "coefficient"),
    [
        ({}, 1, 0.03),
        ({}, 3, 0.03),
        ({}, 6, 0.015),
        ({"policy_method": "vpg"}, 2, 0.03),
        ({"entropy_coefficient": 0.01}, 6, 0.025),
        ({"exploration_bonus": 0.0}, 1, 0.0),
        ({"policy_method": "a2c"}, 1, 0.003),
        ({"policy_method": "trpo"}, 1, None),
    ],
)
def test_exploration_is_paid_where_a_method_has_no_entropy_bonus_of_its_own(
    settings: dict[str, Any], components: int, coefficient: float | None
) -> None:
    config = PreferConfig.load(settings)
    found = getattr(config.exploring(components), "entropy_coefficient", None)
    assert found == (coefficient if coefficient is None else pytest.approx(coefficient))
    assert PreferConfig.load(config.dump(), recorded=True) == config


def test_the_method_beneath_gets_the_exploration_bonus() -> None:
    for env, coefficient in (("Reacher-v5", 0.03), ("HalfCheetah-v5", 0.015)):
        learner = learner_of(env=env)
        assert learner.inner.config.entropy_coefficient == pytest.approx(coefficient)  # type: ignore[attr-defined]
        learner.close()


def test_a_run_from_before_the_exploration_bonus_stays_without() -> None:
    recorded = PreferConfig.load({"entropy_coefficient": 0.01}).dump()
    del recorded["exploration_bonus"], recorded["reward_inputs"]
    config: Any = PreferConfig.load(recorded, recorded=True)
    assert config.exploring(1).entropy_coefficient == 0.01
