"""Figure 3 and table 1 on small budgets: every trial a run, nothing done twice, honest sums."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tether
from tether.control.methods.ppo import PPO, PPOConfig
from tether.control.training import evaluate_run
from tether.errors import UserError
from tether.learning.output.metrics import read_metrics
from tether.studies import cliff, control_trials, figure3, figure3_report, provenance, table1
from tether.studies.figure3_plots import on_one_grid
from tether.studies.published import PAPER, SOURCES, TABLE_1, task

SMALL = ["--envs", "InvertedPendulum-v5", "--steps", "4096", "--workers", "1", "--json"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("figure3")
    config = figure3.Figure3Config(
        envs=("InvertedPendulum-v5",), methods=("ppo", "cem"), seeds="0-1", steps=4096, episodes=3
    )
    return config, out, figure3.run(config, out, workers=1)


def test_scores_are_those_of_the_runs(study) -> None:
    _, out, found = study
    run = out / "ppo-InvertedPendulum-v5-1" / "run"
    trial = found["trials"]["ppo-InvertedPendulum-v5-1"]
    assert trial["final"] == evaluate_run(run, episodes=3).returns.mean()
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "return/mean" in row]
    assert trial["last_100"] == rows[-1]["return/mean"]
    assert trial["curve"][-1][0] == rows[-1]["step"]
    score = found["scores"]["InvertedPendulum-v5"]["ppo"]
    assert score["final"] == pytest.approx(np.mean(score["finals"]))
    assert len(score["finals"]) == 2
    assert score["summary"]["mean"] == score["final"]
    assert score["summary"]["standard_error"] == pytest.approx(
        abs(score["finals"][0] - score["finals"][1]) / 2
    )
    assert score["summary"]["mean_interval"] == sorted(score["finals"])


def test_methods_are_compared_over_tasks(study) -> None:
    _, out, found = study
    finals = {m: s["finals"] for m, s in found["scores"]["InvertedPendulum-v5"].items()}
    wins = [(x > y) + 0.5 * (x == y) for x in finals["ppo"] for y in finals["cem"]]
    chance = found["improvement"]["over"]["cem"]
    assert found["improvement"]["of"] == "ppo"
    assert chance["probability"] == pytest.approx(np.mean(wins))
    best = max(finals["ppo"] + finals["cem"])
    floor = found["random"]["InvertedPendulum-v5"]
    expected = [(score - floor) / (best - floor) for score in finals["ppo"]]
    assert found["normalized"]["ppo"]["InvertedPendulum-v5"] == pytest.approx(expected)
    assert found["over_tasks"]["ppo"]["mean"] == pytest.approx(np.mean(expected))
    for name in ("figure3.png", "figure3-methods.png"):
        assert (out / name).stat().st_size > 10_000


class TestProtocol:
    def test_the_report_has_ten_seeds_of_ppo_and_trpo_and_five_of_the_others(self) -> None:
        config = figure3.Figure3Config()
        seeds = {
            method: {
                t.settings["seed"] for t in figure3.trials(config) if t.settings["method"] == method
            }
            for method in figure3.METHODS
        }
        assert seeds.pop("ppo") == seeds.pop("trpo") == set(range(10))
        assert all(own == set(range(5)) for own in seeds.values())
        given = figure3.seeds_of(figure3.Figure3Config(seeds="1000-1001"))
        assert set(map(tuple, given.values())) == {(1000, 1001)}
        assert len(table1.trials(table1.Table1Config(rows=("none",)))) == 3 * 7

    def test_a_result_says_which_seeds_and_code_it_has(self, study) -> None:
        _, _, found = study
        said = found["protocol"]
        assert said["seeds"] == {"ppo": [0, 1], "cem": [0, 1]}
        assert (said["kind"], said["one_version"]) == ("report", True)
        assert said["code"] == [provenance.code_version()]

    def test_trials_of_two_versions_are_told(self, study, tmp_path, capsys) -> None:
        config, out, _ = study
        copy = tmp_path / "figure3"
        shutil.copytree(out, copy)
        note = copy / "cem-InvertedPendulum-v5-1" / "provenance.json"
        note.write_text('{"code": ["0.0.9"]}')
        (copy / "cem-InvertedPendulum-v5-0" / "provenance.json").unlink()
        found = figure3.run(config, copy, workers=1)
        assert found["protocol"]["one_version"] is False
        assert found["protocol"]["code"] == sorted(["0.0.9", "unknown", provenance.code_version()])
        lines = provenance.protocol_lines(found["protocol"])
        assert "come from 3 versions of tether's code" in lines[-1]
        assert "seeds 0-1: report seeds" in lines[0]

    @pytest.mark.parametrize("study", [figure3, table1, cliff])
    def test_development_seeds_are_not_reported_among_others(self, tmp_path, study) -> None:
        config = {
            figure3: figure3.Figure3Config,
            table1: table1.Table1Config,
            cliff: cliff.CliffConfig,
        }
        with pytest.raises(UserError, match=r"seeds have 0 and 1000; .* two studies"):
            study.run(config[study](seeds="0-1,1000-1001"), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_kinds_of_seeds(self) -> None:
        assert provenance.kind_of(range(10)) == "report"
        assert provenance.kind_of([1000, 2345]) == "development"
        assert provenance.kind_of([9, 10]) == provenance.kind_of([999]) == "further"

    def test_the_code_is_the_last_commit_that_changed_it(self) -> None:
        package = Path(tether.__file__).parent
        git = ["git", "-C", str(package), "log", "-1", "--format=%H", "--", "."]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        if not done.stdout:
            pytest.skip("tether does not lie in a git checkout")
        provenance.code_version.cache_clear()
        version, _, commit = provenance.code_version().removesuffix(".changed").partition("+")
        assert version == tether.__version__
        assert done.stdout.startswith(commit) and len(commit) == 12


def test_what_is_done_is_not_done_again(study, monkeypatch) -> None:
    config, out, found = study
    monkeypatch.setattr(control_trials, "train", None)
    again = figure3.run(config, out, workers=1)
    assert again == json.loads((out / "figure3.json").read_text()) == found


def test_a_part_of_a_study_is_its_own_and_the_rest_is_added(study, monkeypatch) -> None:
    config, out, _ = study
    monkeypatch.setattr(control_trials, "train", None)
    part = config.model_copy(update={"methods": ("ppo",), "seeds": "0-0"})
    assert set(figure3.run(part, out, workers=1)["trials"]) == {"ppo-InvertedPendulum-v5-0"}


def test_other_settings_are_refused(study) -> None:
    config, out, _ = study
    with pytest.raises(UserError, match="other settings"):
        figure3.run(config.model_copy(update={"steps": 8192}), out, workers=1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"methods": ("ppo", "cme")}, "'cme'.*'cem'"),
        ({"envs": ("Hoper-v5",)}, "Hoper.*Hopper-v5"),
        ({"methods": ("ppo", "bc")}, "bc learns from demonstrations"),
        ({"methods": ()}, r"methods is \(\); expected at least 1"),
    ],
)
def test_a_mistyped_name_is_told_before_anything_is_written(tmp_path, wrong, said) -> None:
    with pytest.raises(UserError, match=said):
        figure3.run(figure3.Figure3Config(**wrong), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_training_that_diverges_is_counted_with_what_it_had(tmp_path) -> None:
    trial = control_trials.training_trial(
        "wild",
        "ppo",
        "InvertedPendulum-v5",
        0,
        steps=40_000,
        episodes=1,
        learning_rate=1e30,
        max_grad_norm=None,
    )
    result = control_trials.learn(trial.settings, tmp_path)
    assert "became" in result["diverged"]
    assert "final" not in result
    assert result["last_100"] is None or math.isfinite(result["last_100"])


def test_a_study_of_no_whole_episode_is_written_all_the_same(tmp_path) -> None:
    # 32 environments take 100 of an episode's 1000 steps.
    config = figure3.Figure3Config(
        envs=("HalfCheetah-v5",), methods=("ppo",), seeds="0-0", steps=2048, episodes=1
    )
    found = figure3.run(config, tmp_path, workers=1)
    assert found["scores"]["HalfCheetah-v5"]["ppo"]["last_tenth"] is None
    figure3_report.show(found)
    never = {"diverged": "at once", "curve": [], "last_100": None, "last_tenth": None}
    score = figure3_report._score([never, never])
    assert (score["final"], score["diverged"]) == (None, 2)
    score = figure3_report._score([never, {**never, "final": -5.0}])
    assert (score["final"], score["final_std"]) == (-5.0, 0.0)


def test_a_changed_default_is_another_study(study, monkeypatch) -> None:
    config, out, _ = study
    changed = PPOConfig.model_fields["gamma"].default - 0.01
    monkeypatch.setitem(PPO.presets["default"], "gamma", changed)
    with pytest.raises(UserError, match="other settings"):
        figure3.run(config, out, workers=1)


def test_a_killed_study_goes_on_in_the_middle_of_a_training(tmp_path) -> None:
    options = ["--envs", "InvertedPendulum-v5", "--methods", "ppo", "--seeds", "0-0", "--steps"]
    options += ["32768", "--episodes", "2", "--workers", "1", "--json"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    figure3.command(["--out", str(whole), *options])
    command = [sys.executable, "-m", "tether", "study", "figure3", "--out", str(broken), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = broken / "ppo-InvertedPendulum-v5-0" / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    rows = metrics.read_bytes().count(b"\n")
    assert rows < 16
    assert not (broken / "figure3.json").exists()
    figure3.command(["--out", str(broken), *options])
    ours, theirs = (
        json.loads((out / "figure3.json").read_text())["trials"]["ppo-InvertedPendulum-v5-0"]
        for out in (broken, whole)
    )
    for name in ("curve", "final", "last_100", "last_tenth"):
        assert ours[name] == theirs[name]


def test_curves_meet_on_one_grid() -> None:
    steps, values = on_one_grid(
        [np.array([[0, 0], [10, 10]]), np.array([[2, 4], [11, 22]])], points=9
    )
    assert (steps[0], steps[-1]) == (2, 10)
    assert values[0] == pytest.approx(steps)
    assert values[1] == pytest.approx(2 * steps)


def test_a_curve_that_broke_off_holds_up_no_other() -> None:
    whole = [np.array([[0, 0], [100, 10 * k]]) for k in (1, 2)]
    steps, values = on_one_grid([*whole, np.array([[0, 5], [40, 5]])], points=11)
    assert steps[-1] == 100
    assert np.nanmean(values, 0)[-1] == 15
    assert (np.isnan(values[2]) == (steps > 40)).all()


def test_every_published_number_has_its_place() -> None:
    assert {task(env) for env in control_trials.MUJOCO} == set(PAPER.scores)
    for source in SOURCES:
        assert set(source.scores) == set(PAPER.scores)
        for scores in source.scores.values():
            assert set(scores) <= set(figure3.METHODS)
    assert set(TABLE_1) == set(table1.VARIANTS) == set(table1.LABELS)


class TestTable1:
    def test_scores_are_scaled_between_random_and_best(self) -> None:
        assert control_trials.normalize(-100.0, -100.0, 900.0) == 0.0
        assert control_trials.normalize(900.0, -100.0, 900.0) == 1.0
        assert control_trials.normalize(-600.0, -100.0, 900.0) == -0.5

    def test_random_actions_earn_what_gymnasium_says(self, tmp_path) -> None:
        import gymnasium as gym

        found = control_trials.random_policy(
            {"env": "InvertedPendulum-v5", "episodes": 200}, tmp_path
        )
        env = gym.make("InvertedPendulum-v5")
        env.action_space.seed(0)
        returns = []
        for seed in range(200):
            env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, over = total + reward, terminated or truncated
            returns.append(total)
        error = np.std(returns) / np.sqrt(200)
        assert abs(found["return"] - np.mean(returns)) < 6 * error

    def test_command(self, tmp_path, capsys) -> None:
        rows = ["none", "clip-0.2", "fixed-3"]
        options = [*SMALL, "--rows", *rows, "--seeds", "0-0", "--random-episodes", "5"]
        table1.command(["--out", str(tmp_path / "table1"), *options])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert list(found["rows"]) == rows
        assert max(row["score"] for row in found["rows"].values()) == 1.0
        settings = found["trials"]["fixed-3-InvertedPendulum-v5-0"]["settings"]
        assert settings["settings"] == {"beta": 3.0, "fixed_beta": True}
        assert (tmp_path / "table1" / "table1.png").stat().st_size > 10_000

    def test_another_study_is_refused_before_anything_is_done(self, tmp_path) -> None:
        config = table1.Table1Config(envs=("InvertedPendulum-v5",), rows=("none",), seeds="0-0")
        place = tmp_path / "none-InvertedPendulum-v5-0"
        place.mkdir()
        (place / "settings.json").write_text("{}")
        with pytest.raises(UserError, match="other settings"):
            table1.run(config, tmp_path)
        assert list(tmp_path.iterdir()) == [place]

    def test_a_training_without_a_score_counts_as_a_random_policy(self) -> None:
        config = table1.Table1Config(envs=("Reacher-v5",), rows=("none", "clip-0.2"), seeds="0-0")
        chosen = table1.trials(config)
        results = {trial.name: {"last_100": -5.0} for trial, _ in chosen}
        results["random-Reacher-v5"] = {"return": -43.0}
        results["none-Reacher-v5-0"] = {"last_100": None, "diverged": "at once"}
        found = table1.gather(config, chosen, results)
        assert [row["score"] for row in found["rows"].values()] == [0.0, 1.0]
        assert found["diverged"] == ["none-Reacher-v5-0"]

    def test_scores_have_the_deviation_of_the_seeds(self) -> None:
        envs, rows = ("Reacher-v5", "Hopper-v5"), ("none", "clip-0.2")
        chosen = table1.trials(table1.Table1Config(envs=envs, rows=rows, seeds="0-1"))
        returns = {"none-R": (-40, -20), "clip-0.2-R": (-5, -10)}
        returns |= {"none-H": (10, 20), "clip-0.2-H": (100, 50)}
        results = {
            trial.name: {"last_100": float(returns[f"{row}-{trial.settings['env'][0]}"][seed])}
            for trial, row in chosen
            for seed in [trial.settings["seed"]]
        }
        results |= {f"random-{e}": {"return": r} for e, r in zip(envs, (-40.0, 0.0), strict=True)}
        config = table1.Table1Config(envs=envs, rows=rows, seeds="0-1")
        found = table1.gather(config, chosen, results)["rows"]
        # Each seed's mean over the two tasks.
        none, clip = ((0 + 0.1) / 2, (20 / 35 + 0.2) / 2), ((1 + 1) / 2, (30 / 35 + 0.5) / 2)
        for row, scores in (("none", none), ("clip-0.2", clip)):
            assert found[row]["score"] == pytest.approx(np.mean(scores))
            assert found[row]["score_std"] == pytest.approx(np.std(scores))

    def test_random_choices_are_drawn_from_any_space(self, tmp_path) -> None:
        found = control_trials.random_policy({"env": "CartPole-v1", "episodes": 50}, tmp_path)
        assert 15 < found["return"] < 30

    def test_an_unknown_row_is_named(self, tmp_path) -> None:
        with pytest.raises(UserError, match=r"clip-0\.5.*known: none"):
            table1.command(["--out", str(tmp_path), "--rows", "clip-0.5"])


def test_what_an_earlier_result_holds_is_not_trained_again(
    study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, found = study
    file = str(tmp_path / "before.json")
    Path(file).write_text(json.dumps(found))
    trained = []
    train = control_trials.train

    def counted(method, *args, **settings):
        trained.append((method, settings["seed"]))
        return train(method, *args, **settings)

    monkeypatch.setattr(control_trials, "train", counted)
    common = ["--envs", "InvertedPendulum-v5", "--steps", "4096", "--episodes", "3"]
    common += ["--methods", "ppo", "cem", "--workers", "1", "--known", file]
    out = tmp_path / "more"
    figure3.command([*common, "--seeds", "0-2", "--out", str(out)])
    assert sorted(trained) == [("cem", 2), ("ppo", 2)]
    again = json.loads((out / "figure3.json").read_text())
    for name, trial in found["trials"].items():
        assert again["trials"][name] == json.loads(json.dumps(trial))
    assert again["protocol"]["code"] == found["protocol"]["code"]
    other = tmp_path / "other"
    with pytest.raises(UserError, match=r"before\.json holds the trial .* with other settings"):
        figure3.command([*common, "--steps", "2048", "--seeds", "0-1", "--out", str(other)])
    assert not other.exists()
    fewer = tmp_path / "fewer"
    figure3.command([*common, "--seeds", "0-0", "--out", str(fewer)])
    names = {path.name for path in fewer.iterdir() if path.is_dir()}
    assert names == {
        "random-InvertedPendulum-v5",
        "ppo-InvertedPendulum-v5-0",
        "cem-InvertedPendulum-v5-0",
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"trials": {"a": {}}, "protocol": {"code": []}}'])
def test_a_file_that_no_study_wrote_is_refused(content: str, tmp_path: Path) -> None:
    file, out = tmp_path / "file.json", tmp_path / "out"
    file.write_text(content)
    with pytest.raises(UserError, match="JSON file of"):
        figure3.command(["--known", str(file), "--out", str(out)])
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_named(study, tmp_path: Path) -> None:
    file, out = tmp_path / "file.json", tmp_path / "file.json" / "out"
    file.write_text(json.dumps(study[2]))
    common = ["--envs", "InvertedPendulum-v5", "--steps", "4096", "--episodes", "3"]
    common += ["--methods", "ppo", "cem", "--seeds", "0-1"]
    with pytest.raises(UserError, match=r"cannot write to .*Not a directory"):
        figure3.command([*common, "--known", str(file), "--out", str(out)])


def test_a_trial_cannot_leave_the_folder_of_the_study(tmp_path: Path) -> None:
    file, out = tmp_path / "file.json", tmp_path / "out"
    trials = {"../elsewhere": {"settings": {}, "final": 1.0}}
    file.write_text(json.dumps({"trials": trials, "protocol": {"code": []}}))
    with pytest.raises(UserError, match="no trials with their settings"):
        figure3.command(["--known", str(file), "--out", str(out)])
    assert not (tmp_path / "elsewhere").exists()
