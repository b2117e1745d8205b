"""Finished runs: loaded anywhere, evaluated and drawn; several seeds side by side."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparisons import assert_equal_runs
from short_runs import SHORT, TINY
from toy_environments import Script

import tether
from tether import cli
from tether.control import evaluation, training
from tether.control.envs import make
from tether.control.envs.gymnasium_vector import episode_seed
from tether.control.evaluation import evaluate
from tether.control.policy import Policy, PolicySpec
from tether.control.training import TrainedPolicy as Trained
from tether.errors import UserError
from tether.learning import read_metrics
from tether.learning.reports import plots
from tether.learning.reports.plots import learning_curves
from tether.learning.seeds import parse_seeds


def test_predict_is_the_network_over_normalized_observations(cheetah: Trained) -> None:
    policy = tether.load(cheetah.run)
    assert policy.normalizer is not None
    moments = policy.normalizer.moments
    # It has seen every observation of the run, and observations are far from standardized.
    assert moments.count == 512
    assert np.abs(moments.variance - 1).max() > 0.5
    observation = moments.mean + 3 * np.random.default_rng(0).normal(size=(5, 17))
    x = np.clip((observation - moments.mean) / np.sqrt(moments.variance + 1e-8), -10, 10)
    first, last = policy.parameters.network.dense
    expected = np.tanh(x @ first.weight + first.bias) @ last.weight + last.bias
    batch = policy.predict(observation)
    np.testing.assert_allclose(batch, np.clip(expected, -1, 1), rtol=1e-4, atol=1e-6)
    for one, row in zip(observation, batch, strict=True):
        np.testing.assert_allclose(policy.predict(one), row, rtol=1e-5, atol=1e-7)
        assert policy.predict(one).shape == (6,)
    sample = np.array(
        [
            policy.predict(observation[0], deterministic=False, rng=np.random.default_rng(i))
            for i in range(400)
        ]
    )
    # The share of samples below the mean is a half, wherever clipping has cut them off.
    assert np.abs((sample < batch[0]).mean(0) - 0.5).max() < 0.1
    assert np.abs(sample).max() == 1.0


@pytest.mark.parametrize(
    "observation", [np.zeros(16), np.zeros((2, 3, 17)), np.zeros((4, 5)), "forward", {"a": 1}]
)
def test_an_observation_that_does_not_fit_is_told(cheetah: Trained, observation: Any) -> None:
    with pytest.raises(UserError, match="observation") as caught:
        tether.load(cheetah.run).predict(observation)
    assert "\n" not in str(caught.value)
    assert "(17,)" in str(caught.value)


def test_a_sample_needs_a_generator(cheetah: Trained) -> None:
    with pytest.raises(UserError, match=r"needs rng=numpy\.random\.default_rng"):
        tether.load(cheetah.run).predict(np.zeros(17), deterministic=False)


def test_a_policy_needs_neither_jax_nor_mujoco_nor_its_environment(
    cheetah: Trained, pairs: Trained, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = 2 * rng.normal(size=(6, 17))
    noise = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
    target = rng.uniform(-1, 1, (6, 5)).astype(np.float32)
    np.savez(tmp_path / "in.npz", rows=rows, noise=noise, target=target)
    script = textwrap.dedent("""
        import sys
        for name in ("jax", "jaxlib", "mujoco", "optax", "torch"):
            sys.modules[name] = None
        import gymnasium, numpy as np
        del gymnasium.registry["HalfCheetah-v5"]
        assert "CopyDict-v0" not in gymnasium.registry
        import tether
        cheetah, pairs, folder = sys.argv[1:]
        given = np.load(folder + "/in.npz")
        policy = tether.load(cheetah)
        single = [policy.predict(row) for row in given["rows"]]
        sampled = policy.predict(
            given["rows"], deterministic=False, rng=np.random.default_rng(1)
        )
        of_dicts = [
            tether.load(pairs).predict({"noise": noise, "target": target})
            for noise, target in zip(given["noise"], given["target"], strict=True)
        ]
        np.savez(folder + "/out.npz", single=single, batch=policy.predict(given["rows"]),
                 sampled=sampled, of_dicts=of_dicts)
    """)
    command = [sys.executable, "-c", script, str(cheetah.run), str(pairs.run), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "out.npz")
    ours = cheetah.policy
    np.testing.assert_array_equal(theirs["batch"], ours.predict(rows))
    np.testing.assert_array_equal(theirs["single"], [ours.predict(row) for row in rows])
    sampled = ours.predict(rows, deterministic=False, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(theirs["sampled"], sampled)
    expected = [
        pairs.policy.predict({"noise": a, "target": b}) for a, b in zip(noise, target, strict=True)
    ]
    np.testing.assert_array_equal(theirs["of_dicts"], expected)
    assert len(np.unique(expected, axis=0)) > 1


def test_a_run_from_a_function_says_what_it_needs(tmp_path: Path) -> None:
    from toy_environments import CopyDict

    out = tmp_path / "run"
    tether.train("ppo", CopyDict, total_steps=128, out=out, **TINY)
    for attempt in (tether.resume, tether.evaluate_run):
        with pytest.raises(
            UserError, match=r"made from a function.*pass the same function as env="
        ):
            attempt(out)
    assert tether.resume(out, env=CopyDict, total_steps=256, progress=False).steps == 256
    assert len(tether.evaluate_run(out, env=CopyDict, episodes=3).returns) == 3


def test_a_finished_run_still_has_its_last_measurements(cheetah: Trained) -> None:
    again = tether.resume(cheetah.run, progress=False)
    assert again.steps_here == 0
    for name in ("return_mean", "return_std", "episodes", "steps"):
        assert again.summary()[name] == cheetah.summary()[name]
    assert again.summary()["return_mean"] is not None


def test_evaluation_is_what_a_plain_loop_gives(pairs: Trained) -> None:
    # Two environments share five episodes: three and two.
    env_id, seed = "toy_environments:CopyDict-v0", 40
    policy = pairs.policy
    expected = {}
    for n, share in enumerate((3, 2)):
        world = gym.make(env_id)
        for episode in range(share):
            observation, _ = world.reset(seed=episode_seed(seed + n, episode))
            total, length, over = 0.0, 0, False
            while not over:
                observation, reward, terminated, truncated, _ = world.step(
                    policy.predict(observation)
                )
                total, length, over = total + float(reward), length + 1, terminated or truncated
            expected[episode, n] = total, length
    result = evaluate(policy, make(env_id, 2), episodes=5, seed=seed)
    returns, lengths = zip(*(expected[key] for key in sorted(expected)), strict=True)
    np.testing.assert_allclose(result.returns, returns, rtol=1e-6)
    np.testing.assert_array_equal(result.lengths, lengths)
    assert len(set(returns)) > 1
    summary = result.summary()
    assert summary["return_mean"] == pytest.approx(np.mean(returns))
    assert summary["return_std"] == pytest.approx(np.std(returns))
    assert (summary["return_min"], summary["return_max"]) == (min(returns), max(returns))


def test_evaluation_repeats_itself(cheetah: Trained) -> None:
    for deterministic in (True, False):
        first, again = (
            tether.evaluate_run(cheetah.run, episodes=3, deterministic=deterministic)
            for _ in range(2)
        )
        np.testing.assert_array_equal(first.returns, again.returns)
        np.testing.assert_array_equal(first.lengths, [25] * 3)
        other = tether.evaluate_run(cheetah.run, episodes=3, deterministic=deterministic, seed=7)
        assert (first.returns != other.returns).all()
    mode = tether.evaluate_run(cheetah.run, episodes=3)
    assert (mode.returns != first.returns).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hidden", "-3"], "hidden"),
        (["--hidden", "0"], "hidden"),
        (["--checkpoint-every", "0"], "checkpoint_every is 0, expected at least 1 step"),
    ],
)
def test_bad_trainings_are_told_and_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    command = ["train", "ppo", "--env", "CartPole-v1", "--out", str(tmp_path / "run")]
    assert cli.main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("argument", "value"), [("episodes", 0), ("seed", -1)])
def test_bad_evaluations_are_told(cheetah: Trained, argument: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{argument} is {value}; expected"):
        tether.evaluate_run(cheetah.run, **{argument: value})


def test_an_episode_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 40)
    env = make(lambda: Script(endings=("",)), 2)
    spec = PolicySpec.of(env.observation_space, env.action_space, (4,), False)
    policy = Policy(spec, spec.init(np.random.default_rng(0), 0.0), None)
    with pytest.raises(UserError, match=r"not ended after 40 steps; .*max_episode_steps"):
        evaluate(policy, env, episodes=2)
    short = make(lambda: Script(longest=40), 2)
    assert len(evaluate(policy, short, episodes=2).returns) == 2


@pytest.mark.parametrize("begun", [(), ("tensorboard",)])
def test_metrics_go_on_to_where_they_went(tmp_path: Path, begun: tuple[str, ...]) -> None:
    settings = {**TINY, "sinks": begun}
    run = tether.train("ppo", "CartPole-v1", total_steps=128, out=tmp_path / "run", **settings).run
    curves = run / "tensorboard"
    files = len(list(curves.iterdir())) if begun else 0
    assert files == len(begun)
    tether.resume(run, total_steps=256, progress=False)
    assert curves.exists() == bool(begun)
    assert not begun or len(list(curves.iterdir())) == 2
    assert cli.main(["resume", str(run), "--total-steps", "384", "--quiet", "--sinks"]) == 0
    assert not begun or len(list(curves.iterdir())) == 2


def test_seeds_side_by_side_take_the_threads_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    train = training.ENGINE.train

    def noting(*arguments: Any, **settings: Any) -> Trained:
        seen.append(settings["threads"])
        return train(*arguments, **settings)

    monkeypatch.setattr(training.ENGINE, "train", noting)
    arguments = "train vpg --env CartPole-v1 --seeds 1,2 --total-steps 1024 --threads 3 --quiet"
    assert cli.main([*arguments.split(), "--sinks", "--out", str(tmp_path / "run")]) == 0
    assert seen == [3, 3]


def test_seeds_side_by_side_are_the_seeds_alone(tmp_path: Path, cheetah: Trained) -> None:
    together = tether.train(
        "ppo", "HalfCheetah-v5", seeds=[2, 3, 4], total_steps=512, out=tmp_path, **SHORT, **TINY
    )
    # Trainings shorten it, and whichever ends last puts Python's own back.
    assert sys.getswitchinterval() == pytest.approx(0.005)
    assert [run.run for run in together.runs] == [tmp_path / f"seed-{k}" for k in (2, 3, 4)]
    assert_equal_runs(tmp_path / "seed-3", cheetah.run)
    means = [run.metrics["return/mean"] for run in together.runs]
    assert len(set(means)) == 3
    summary = together.summary()
    assert summary["return_mean"] == pytest.approx(np.mean(means))
    assert summary["steps"] == 3 * 512


def test_seeds_may_make_their_environments_at_the_same_moment(tmp_path: Path) -> None:
    # In a process of its own: where MuJoCo's listener is changed by two threads at once it aborts.
    script = textwrap.dedent("""
        import threading
        from tether.control.envs import make

        def work():
            for _ in range(25):
                make("HalfCheetah-v5", 1).close()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        import mujoco
        assert mujoco.get_mju_user_warning() is None
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


class Failing(tether.BaseCallback):
    """Fails in the run of one seed."""

    def on_iteration(self, run: Any, learner: Any, metrics: Any) -> None:
        if run.path.name == "seed-1":
            raise UserError("seed 1 fails")


def test_one_seed_that_fails_stops_the_others(tmp_path: Path) -> None:
    settings = {"total_steps": 200_000, "out": tmp_path, **TINY}
    with pytest.raises(UserError, match="seed 1 fails"):
        tether.train("ppo", "CartPole-v1", seeds=[0, 1], callbacks=[Failing()], **settings)
    # The other one was stopped after its iteration, with a checkpoint.
    assert tether.load(tmp_path / "seed-0").predict(np.zeros(4)) in (0, 1)
    assert 0 < read_metrics(tmp_path / "seed-0")[-1]["step"] < 100_000
    with pytest.raises(UserError, match=r"seeds are \[1, 1\]; expected distinct"):
        tether.train("ppo", "CartPole-v1", seeds=[1, 1], out=tmp_path, **TINY)
    with pytest.raises(UserError, match=r"not empty.*continue it: tether resume"):
        tether.train("ppo", "CartPole-v1", seeds=[1, 2], out=tmp_path, **TINY)


def test_a_folder_of_seeds_is_resumed_as_a_whole(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out, steps in ((whole, 256), (cut, 128)):
        tether.train("ppo", "CartPole-v1", seeds=[5, 6, 7], total_steps=steps, out=out, **TINY)
    # As after an interruption before this seed had begun.
    shutil.rmtree(cut / "seed-7")
    resumed = tether.resume(cut, total_steps=256, progress=False)
    assert [run.steps for run in resumed.runs] == [256] * 3
    for seed in (5, 6, 7):
        assert_equal_runs(cut / f"seed-{seed}", whole / f"seed-{seed}")
    assert cli.main(["plot", str(cut), "--out", str(tmp_path / "curves.png")]) == 0
    assert cli.main(["report", str(cut), "--out", str(tmp_path / "report.html")]) == 0
    assert cli.main(["resume", str(cut), "--quiet"]) == 0


def test_seeds_are_lists_and_ranges() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    for text, hint in (("5", "0-4 for 5 seeds"), ("1,1", "distinct"), ("a", "such as 0,1,2")):
        with pytest.raises(UserError, match=hint):
            parse_seeds(text)


def test_a_learning_curve_is_drawn(cheetah: Trained, pairs: Trained, tmp_path: Path) -> None:
    from matplotlib import image

    runs = [cheetah.run, pairs.run]
    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)

    def coloured(runs: list[Path]) -> list[int]:
        """How many points of the picture have the first and the second run's colour."""
        path = learning_curves(runs, tmp_path / "new folder" / "curve.png")
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        pixels = image.imread(path)[..., :3]
        assert pixels.shape[0] > 300
        return [
            int((np.abs(pixels - np.array(c) / 255).max(-1) < 0.02).sum()) for c in (blue, orange)
        ]

    alone, together = coloured(runs[:1]), coloured(runs)
    # A single curve has no legend, whose short strokes would pass for it.
    assert alone[0] > 1000
    assert alone[1] == 0
    assert min(together) > 1000
    text = learning_curves(runs, tmp_path / "curve.svg", metric="policy/entropy", by="env")
    assert b"<svg" in text.read_bytes()


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("folder", ["first (mean and range of 2 runs)", "second"]),
        ("env", ["HalfCheetah-v5 (mean and range of 2 runs)", "CopyDict-v0"]),
        ("method", ["ppo (mean and range of 3 runs)"]),
    ],
)
def test_runs_are_grouped(
    cheetah: Trained,
    pairs: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    labels: list[str],
) -> None:
    from matplotlib.axes import Axes

    places = [tmp_path / "first/seed-0", tmp_path / "first/seed-1", tmp_path / "second/seed-0"]
    for run, place in zip((cheetah.run, cheetah.run, pairs.run), places, strict=True):
        shutil.copytree(run, place)
    drawn: list[str] = []
    plot = Axes.plot

    def spy(axes: Axes, *args: Any, **kwargs: Any) -> Any:
        drawn.append(kwargs["label"])
        return plot(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy)
    learning_curves(places, tmp_path / "curve.png", by=by)
    assert drawn == labels


def test_bands_are_what_they_say() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (16, 5))
    low, high = plots._band(values, "deviation")
    assert low == pytest.approx(values.mean(0) - values.std(0))
    low, high = plots._band(values, "interval")
    # The normal approximation of the mean's 95 % interval, which 16 values come near to.
    half = 1.96 * values.std(0) / 4
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    steps, smoothed = plots._smoothed(np.arange(5.0), np.array([0.0, 3.0, 0.0, 3.0, 0.0]), 3)
    assert smoothed.tolist() == [1.5, 1.0, 2.0, 1.0, 1.5] and len(steps) == 5


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("x.png", {"metric": "return/men"}, "no values of 'return/men'; it has: "),
        ("x.png", {"by": "seed"}, "by is 'seed'; expected env, method, folder or nothing"),
        ("plain", {}, "the picture is .*plain; expected a name that ends in .png"),
        ("x.png", {"band": "wide"}, "band is 'wide'; expected range, deviation, interval"),
        ("x.png", {"smooth": 0}, "smooth is 0; expected at least 1 point"),
        ("x.xyz", {}, "cannot write .*x.xyz: .*not supported"),
        ("file/x.png", {}, "cannot write .*file/x.png: "),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_told(
    cheetah: Trained, tmp_path: Path, file: str, options: dict[str, str], words: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words) as caught:
        learning_curves([cheetah.run], tmp_path / file, **options)
    assert "\n" not in str(caught.value)
