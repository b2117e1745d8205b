"""The command line: its words, its exit codes, and runs that are stopped and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tether
from tether import cli
from tether.errors import Interrupted
from tether.learning import Run, load_checkpoint, read_metrics

CONTROL = Path(__file__).parent / "control"
sys.path.insert(0, str(CONTROL))

from comparisons import assert_equal_runs  # noqa: E402

# A background job's SIGINT is ignored, and its children inherit that.
TETHER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tether.cli import main
sys.exit(main())
"""
OFTEN = ["--checkpoint-every", "512"]
CARTPOLE = ["train", "ppo", "--env", "CartPole-v1"]
TINY = ["--num-envs", "4", "--steps-per-iteration", "128", "--minibatch-size", "32"]
TINY += ["--epochs", "2", "--hidden", "8"]


Start = Callable[..., subprocess.Popen[str]]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


@pytest.fixture
def tether_(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Children share what they compile, so that each starts in a second."""
    cache = tmp_path_factory.mktemp("compiled")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join([str(CONTROL), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Starts the command in a process of its own, which does not outlive the test."""
    children: list[subprocess.Popen[str]] = []

    def call(*arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", TETHER, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        children.append(child)
        return child

    yield call
    for child in children:
        child.kill()
        child.communicate()


def wait_until(child: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def learns(*runs: Path) -> Callable[[], bool]:
    """Whether every one of these new runs has written its first measurements."""
    files = [run / "metrics.jsonl" for run in runs]
    return lambda: all(file.exists() and file.stat().st_size > 0 for file in files)


def newest_checkpoint(run: Path) -> int:
    """Steps at which the newest checkpoint was saved."""
    steps: int = load_checkpoint(Run.open(run).checkpoints()[0])[1]["steps"]
    return steps


def test_train_then_everything_else(start: Start, tmp_path: Path, tether_) -> None:
    run = tmp_path / "run"
    child = start(*CARTPOLE, *TINY, "--total-steps", 600, "--out", run, "--json")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    trained = json.loads(out)  # stdout is that line alone
    rows = read_metrics(run)
    # Whole iterations: 600 is rounded up to 640.
    assert trained["run"] == str(run)
    assert trained["steps"] == rows[-1]["step"] == 640
    assert trained["return_mean"] == rows[-1]["return/mean"]
    assert trained["return_std"] == rows[-1]["return/std"]
    assert trained["episodes"] == rows[-1]["episode/count"] > 10
    assert 0 < trained["seconds"] < 60
    assert trained["steps_per_second"] == pytest.approx(640 / trained["seconds"])
    assert "640 steps in " in err
    assert str(run) in err.splitlines()[-1]

    resumed = tether_("resume", run, "--total-steps", 768, "--json", "--quiet")
    assert (resumed.code, resumed.json["steps"]) == (0, 768)

    evaluated = tether_("evaluate", run, "--episodes", 4, "--json")
    truth = tether.evaluate_run(run, episodes=4)
    assert evaluated.code == 0
    assert evaluated.json == {"run": str(run), **truth.summary()}
    assert f"return {truth.returns.mean():.1f} +- {truth.returns.std():.1f} over 4" in evaluated.err
    sampled = tether_("evaluate", run, "--episodes", 4, "--json", "--sampled")
    assert sampled.json["return_mean"] != evaluated.json["return_mean"]

    drawn = tether_("plot", run, "--out", "curve.png", "--json")
    assert drawn.json == {"plot": "curve.png", "runs": [str(run)]}
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_lists(tether_) -> None:
    from tether.control.envs import BATCHED_TASKS
    from tether.engines import ENGINES, methods_of

    known = {n: m.summary for engine in ENGINES for n, m in methods_of(engine).items()}
    methods, envs = tether_("methods", "--json").json, tether_("envs", "--json").json
    assert methods == known and {"ppo", "dpo"} <= set(methods)
    assert {envs[name]["backend"] for name in BATCHED_TASKS} == {"mujoco"}
    assert envs["CartPole-v1"]["backend"] == "gymnasium"
    for name, lines in (("methods", methods), ("envs", envs)):
        table = [line for line in tether_(name).out.splitlines() if not line.endswith(":")]
        assert [line.split()[0] for line in table] == list(lines)
    nothing = tether_()
    assert nothing.code == 2
    assert "usage: tether COMMAND" in nothing.out


def test_a_file_may_hold_options_of_the_run_and_whole_numbers_any_spelling(
    tether_, tmp_path: Path
) -> None:
    text = 'env = "CartPole-v1"\ntotal_steps = 999\nseeds = "3-4"\nout = "r"\nsinks = []\n'
    (tmp_path / "run.toml").write_text(text + "num_envs = 2\nsteps_per_iteration = 64\n")
    command = ["train", "ppo", "--config", "run.toml", "--minibatch-size", 32, "--quiet"]
    done = tether_(*command, "--total-steps", "1.28e2", "--json")
    assert done.code == 0, done.err
    assert [run["steps"] for run in done.json["runs"]] == [128, 128]
    assert (tmp_path / "r" / "seed-4" / "run.json").exists()
    (tmp_path / "run.toml").write_text('total_steps = "many"\n')
    bad = tether_(*command, "--env", "CartPole-v1")
    assert bad.code == 2 and "run.toml: total_steps is 'many'; expected a valid integer" in bad.err


def test_options_win_over_the_file_and_the_file_over_the_preset(tether_, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("epochs = 1\nhidden = [8]\ninitial_log_std = -2.5\nnum_envs = 2\n")
    done = tether_(
        *CARTPOLE, "--preset", "paper", "--config", file, "--num-envs", 4, "--total-steps", 64,
        "--steps-per-iteration", 64, "--epsilon", "none", "--no-normalize-reward", "--quiet",
        "--seed", 5, "--out", "run", "--env-kwargs", '{"max_episode_steps": 7}',
    )  # fmt: skip
    assert (done.code, done.out) == (0, "")
    run = Run.open(tmp_path / "run")
    from_option = {"num_envs": 4, "epsilon": None, "normalize_reward": False}
    from_file = {"epochs": 1, "hidden": [8], "initial_log_std": -2.5}
    from_preset = {"recompute_advantage": False}
    for name, value in {**from_option, **from_file, **from_preset, "minibatch_size": 64}.items():
        assert run.config[name] == value
    assert run.spec["seed"] == 5
    assert run.spec["preset"] == "paper"
    assert read_metrics(run.path)[-1]["episode/length"] <= 7
    assert not list(run.path.glob("*.tmp"))


def test_several_seeds(tether_, tmp_path: Path) -> None:
    done = tether_(*CARTPOLE, *TINY, "--total-steps", 128, "--seeds", "4,6", "--out", "s", "--json")
    assert done.code == 0
    assert [run["run"] for run in done.json["runs"]] == ["s/seed-4", "s/seed-6"]
    assert done.json["steps"] == 256
    assert [Run.open(tmp_path / "s" / f"seed-{k}").spec["seed"] for k in (4, 6)] == [4, 6]


MISTAKES = {
    "no command like it": (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    "no method": (["train"], "no METHOD given"),
    "method": (["train", "pppo", "--env", "X"], "unknown method 'pppo'; did you mean 'ppo'?"),
    "no env": (["train", "ppo"], "--env is required"),
    "env": (["train", "ppo", "--env", "CartPol-v1"], "'CartPol-v1'; did you mean CartPole-v1"),
    "preset": ([*CARTPOLE, "--preset", "papper"], "unknown preset 'papper' of ppo; known: default"),
    "option": (
        [*CARTPOLE, "--epsilonn", "1"],
        "unknown option --epsilonn; did you mean --epsilon?",
    ),
    "not whole": ([*CARTPOLE, "--total-steps", "1.5"], "'1.5' is not a whole number"),
    "commas": ([*CARTPOLE, "--hidden", "64,64"], "separate values by spaces: --hidden 64 64"),
    "number or none": ([*CARTPOLE, "--epsilon", "wide"], "is 'wide'; expected a number or none"),
    "seeds as one": ([*CARTPOLE, "--seeds", "5"], "give 5-5 for the seed 5 alone, or 0-4 for 5"),
    "both seeds": ([*CARTPOLE, "--seed", "3", "--seeds", "0,1"], "are both given; give one"),
    "method as command": (["ppo", "--env", "CartPole-v1"], "give: tether train ppo --env ID"),
    "language method": (["train", "sft"], "give: tether sft --model M --data D"),
    "not a number": ([*CARTPOLE, "--epsilon", "wide"], "--epsilon"),
    "out of range": ([*CARTPOLE, "--epsilon", "-1"], "epsilon is -1.0; expected greater than 0"),
    "nan": ([*CARTPOLE, "--gamma", "nan"], "gamma is nan; expected"),
    "no divisor": ([*CARTPOLE, "--minibatch-size", "63"], "minibatch_size=63 does not divide"),
    "no multiple": ([*CARTPOLE, "--num-envs", "3"], "is not a multiple of num_envs=3"),
    "steps": ([*CARTPOLE, "--total-steps", "0"], "total_steps is 0; expected at least 1"),
    "seed": ([*CARTPOLE, "--seed", "-4"], "seed is -4; expected 0 to"),
    "seeds": (
        [*CARTPOLE, "--seeds", "1,x"],
        "--seeds is '1,x'; expected seeds such as 0,1,2 or 0-9",
    ),
    "kwargs": ([*CARTPOLE, "--env-kwargs", "{"], "--env-kwargs is '{', which is not JSON"),
    "unknown kwarg": ([*CARTPOLE, "--env-kwargs", '{"mass": 1}'], "mass"),
    "config": ([*CARTPOLE, "--config", "no.toml"], "cannot read --config no.toml: No such file"),
    "toml": ([*CARTPOLE, "--config", "bad.toml"], "--config bad.toml is not valid TOML"),
    "key": ([*CARTPOLE, "--config", "key.toml"], "unknown key 'lerning_rate'; did you mean"),
    "value": ([*CARTPOLE, "--config", "value.toml"], "epochs is 0; expected greater than"),
    "out": ([*CARTPOLE, "--out", "full"], "full"),
    "no run": (["resume", "nowhere"], "there is no run folder nowhere"),
    "run": (["evaluate"], "usage: tether evaluate RUN; RUN is missing"),
    "no run to plot": (["plot"], "no runs given; usage: tether plot RUN..."),
    "sinks": ([*CARTPOLE, "--sinks", "paper"], "'paper'"),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(
    tether_, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "bad.toml").write_text("epochs = \n")
    (tmp_path / "key.toml").write_text("lerning_rate = 0.1\n")
    (tmp_path / "value.toml").write_text("epochs = 0\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    done = tether_(*arguments)
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    if arguments == ["train"]:
        assert any(line.split()[0] == "ppo" for line in lines)
        lines = lines[-1:]
    (line,) = lines
    assert line.startswith("tether: ")
    assert words in line
    assert not (tmp_path / "runs").exists()


def test_an_environment_that_gives_nan_or_crashes_is_one_line(
    start: Start, tether_, tmp_path: Path
) -> None:
    faulty = ["train", "ppo", "--env", "toy_environments:Faulty-v0", *TINY, "--quiet"]
    done = tether_(*faulty, "--env-kwargs", '{"at": 40}', "--out", "run")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("tether: Faulty-v0 returned nan in its reward at step 156")
    crash = '{"fault": "crash", "at": 3}'
    child = start(*faulty, "--env-kwargs", crash, "--out", tmp_path / "c")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert "raised RuntimeError: the robot fell off the table at " in line
    assert "TETHER_TRACEBACK=1 shows the whole traceback" in line


@pytest.mark.parametrize("how", [KeyboardInterrupt, Interrupted])
def test_a_stopped_study_tells_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: type[BaseException]
) -> None:
    def stop(arguments: Sequence[str]) -> None:
        raise how("stopped")

    monkeypatch.setattr("tether.studies.commands.find_study", lambda name: stop)
    assert cli.main(["study", "figure3"]) == 130
    told = capsys.readouterr().err
    assert told == "tether: stopped; the same command goes on where this one stopped\n"


def test_interrupted_killed_three_times_and_resumed_equals_never_stopped(
    start: Start, tether_, tmp_path: Path
) -> None:
    run, chance = tmp_path / "killed", random.Random(0)
    settings = [*TINY, "--no-anneal", "--seed", 3, "--quiet"]
    child = start(*CARTPOLE, *settings, "--total-steps", 10**8, "--out", run)
    wait_until(child, learns(run))
    child.send_signal(signal.SIGINT)
    err = child.communicate(timeout=120)[1]
    assert child.returncode == 130, err
    assert err.splitlines()[-1].endswith(f"checkpoint saved; go on with: tether resume {run}")
    saved = read_metrics(run)[-1]["step"]
    assert newest_checkpoint(run) == saved > 0

    newest = saved
    for _ in range(3):
        child = start("resume", run, "--quiet", *OFTEN)
        wait_until(child, lambda before=newest: newest_checkpoint(run) > before)
        time.sleep(chance.uniform(0.0, 0.4))
        assert child.poll() is None
        child.kill()
        child.communicate()
        newest = newest_checkpoint(run)
    steps = int(read_metrics(run)[-1]["step"])
    assert saved < newest <= steps

    total = (steps // 128 + 4) * 128
    done = tether_("resume", run, "--total-steps", total, "--quiet", "--json")
    assert (done.code, done.json["steps"]) == (0, total)
    straight = tmp_path / "straight"
    done = tether_(*CARTPOLE, *settings, "--total-steps", total, "--out", straight)
    assert done.code == 0
    assert_equal_runs(run, straight)


def test_ctrl_c_stops_every_seed_with_a_checkpoint(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    child = start(*CARTPOLE, *TINY, "--quiet", "--seeds", "0,1", "--out", folder,
        "--total-steps", 10**8,
    )  # fmt: skip
    wait_until(child, learns(folder / "seed-0", folder / "seed-1"))
    child.send_signal(signal.SIGINT)
    err = child.communicate(timeout=120)[1]
    assert child.returncode == 130, err
    assert err.splitlines()[-1] == (
        f"interrupted; checkpoints saved; continue with: tether resume {folder}"
    )
    for seed in (0, 1):
        run = folder / f"seed-{seed}"
        assert newest_checkpoint(run) == read_metrics(run)[-1]["step"]
