"""Errors of a user's own code, and what a run folder of a stranger may not do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_runs import TINY
from toy_environments import Copy, Faulty

import tether
from tether.control.run_environment import drawn_seed
from tether.errors import BadEnvironmentError, UserError
from tether.learning.run import Run

MODULE = """
import pathlib
import gymnasium as gym
import numpy as np

pathlib.Path("imported").touch()

class Steps(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, False, self.left == 0, {}

class Breaks(Steps):
    def step(self, action):
        return 1 / (self.left - 5)

gym.register("Steps-v0", entry_point=Steps)
gym.register("Breaks-v0", entry_point=Breaks)
"""
SMALL = ["--steps-per-iteration", "64", "--num-envs", "4", "--minibatch-size", "32", "--quiet"]
SMALL += ["--total-steps", "64"]


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", "from tether.cli import program; program()", *arguments],
        cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of the user's and a run in its environment."""
    place = tmp_path_factory.mktemp("user")
    (place / "stranger_envs.py").write_text(MODULE)
    done = command(place, "train", "ppo", "--env", "stranger_envs:Steps-v0", "--out", "run", *SMALL)
    assert done.returncode == 0, done.stderr
    return place


def test_a_run_does_not_import_what_its_record_names(folder: Path) -> None:
    for words in (["evaluate", "run"], ["resume", "run"], ["evaluate", "run", "--video", "a.mp4"]):
        (folder / "imported").unlink(missing_ok=True)
        done = command(folder, *words)
        assert done.returncode == 2, done.stderr
        assert "name it yourself: --env stranger_envs:Steps-v0" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (folder / "imported").exists()
    allowed = ["--env", "stranger_envs:Steps-v0"]
    done = command(folder, "evaluate", "run", "--episodes", "2", *allowed)
    assert done.returncode == 0, done.stderr
    done = command(folder, "resume", "run", "--total-steps", "128", "--quiet", *allowed)
    assert done.returncode == 0, done.stderr
    (folder / "imported").unlink()
    # Nor does a file that lies about take the place of an installed module.
    (folder / "json_of_mine.py").write_text("")
    (folder / "tyro.py").write_text("raise SystemExit('imported from the current folder')")
    try:
        done = command(folder, "methods")
        assert "ppo-kl" in done.stdout, done.stderr
    finally:
        (folder / "tyro.py").unlink()


def test_an_environment_that_raises_is_one_line_and_its_traceback_on_request(folder: Path) -> None:
    arguments = ["train", "ppo", "--env", "stranger_envs:Breaks-v0", "--out", "broken", *SMALL]
    done = command(folder, *arguments)
    assert done.returncode == 2
    line = 1 + MODULE.splitlines().index("        return 1 / (self.left - 5)")
    assert done.stderr.strip() == (
        "tether: Breaks-v0: step raised ZeroDivisionError: division by zero at "
        f"{folder / 'stranger_envs.py'}:{line}; TETHER_TRACEBACK=1 shows the whole traceback "
        "(no checkpoint had been saved yet)"
    )
    arguments = ["broken2" if word == "broken" else word for word in arguments]
    done = command(folder, *arguments, TETHER_TRACEBACK="1")
    assert "Traceback (most recent call last)" in done.stderr
    assert "return 1 / (self.left - 5)" in done.stderr


def test_a_film_of_what_cannot_be_drawn_is_refused(folder: Path) -> None:
    done = command(folder, "evaluate", "run", "--video", "a.mp4", "--env", "stranger_envs:Steps-v0")
    assert done.returncode == 2
    assert "Steps-v0 cannot be filmed: it does not take render_mode" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_module_that_is_not_there_is_told_with_the_folder(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = command(elsewhere, "train", "ppo", "--env", "stranger_envs:Steps-v0", *SMALL)
    assert done.returncode == 2
    assert f"neither installed nor in the current folder, {elsewhere}" in done.stderr
    assert "go to the folder that holds stranger_envs.py" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_an_error_in_the_environment_keeps_its_cause(tmp_path: Path) -> None:
    with pytest.raises(BadEnvironmentError, match="step raised RuntimeError: the robot") as caught:
        tether.train("ppo", lambda: Faulty("crash"), total_steps=512, out=tmp_path / "r", **TINY)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "toy_environments.py:" in str(caught.value)


def test_no_seed_draws_one_and_records_it(tmp_path: Path) -> None:
    assert len({drawn_seed(None) for _ in range(5)}) == 5
    assert drawn_seed(7) == 7
    trained = tether.train(
        "ppo", "CartPole-v1", total_steps=128, seed=None, out=tmp_path / "r", **TINY
    )
    seed = Run.open(trained.run).spec["seed"]
    again = tether.train(
        "ppo", "CartPole-v1", total_steps=128, seed=seed, out=tmp_path / "s", **TINY
    )
    assert again.policy.fingerprint() == trained.policy.fingerprint()


def library(script: str, **variables: str) -> Any:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **variables}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_program_around_tether_keeps_its_jax(tmp_path: Path) -> None:
    """Two CPU devices, of which the program prefers the second: all of tether's is on the first."""
    script = f"""
import json, os
import tether.control, tether
import jax
second = jax.devices()[1]
jax.config.update("jax_default_device", second)
places = set()
from tether.control.methods.ppo import PPO
update = PPO.update
def seen(self, rollout):
    metrics = update(self, rollout)
    for leaf in jax.tree.leaves((self._actor_moments, self._critic_moments, self.critic)):
        places.update(str(device) for device in leaf.devices())
    return metrics
PPO.update = seen
tether.train("ppo", "CartPole-v1", total_steps=256, num_envs=4, steps_per_iteration=128,
             minibatch_size=32, sinks=(), progress=False, out={str(tmp_path / "r")!r})
print(json.dumps([sorted(places), str(jax.devices()[0]), os.environ.get("JAX_PLATFORMS"),
                  os.environ["XLA_FLAGS"], str(jax.numpy.zeros(1).devices())]))
"""
    flags = "--xla_force_host_platform_device_count=2"
    places, first, platforms, now, own = library(script, XLA_FLAGS=flags)
    assert places == [first]
    assert (platforms, now) == (None, flags)
    assert first not in own


def test_configure_jax_sets_what_the_command_sets() -> None:
    script = """
import json, os
from tether.control import configure_jax
from tether.errors import UserError
configure_jax(); configure_jax()
found = [os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"]]
import jax
try:
    configure_jax()
except UserError as error:
    found.append(str(error))
print(json.dumps(found))
"""
    flags, platforms, late = library(script)
    assert (flags, platforms) == ("--xla_cpu_multi_thread_eigen=false", "cpu")
    assert "call tether.control.configure_jax() first" in late
    assert library(script, XLA_FLAGS="--a", JAX_PLATFORMS="")[:2] == [f"--a {flags}", ""]


def test_predict_and_train_refuse_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="or a vector environment, got 3"):
        tether.train("ppo", 3, out=tmp_path / "r")  # type: ignore[arg-type]
    assert np.isfinite(Copy.see.__code__.co_firstlineno)
