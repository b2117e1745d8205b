"""Films: of the policy at work, with the robot in the picture, or one line that says why not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tether import cli
from tether.control import drawing
from tether.control.drawing import choose_renderer
from tether.control.training import TrainedPolicy as Trained
from tether.control.video import film
from tether.errors import UserError


def robot_pixels(world: gym.Env[Any, Any], x: float) -> int:
    """How many pixels are of the robot's warm colours, with the robot at `x` metres."""
    inner: Any = world.unwrapped
    qpos = inner.data.qpos.copy()
    qpos[0] = x
    inner.set_state(qpos, inner.data.qvel.copy())
    red, green, _ = np.moveaxis(np.asarray(world.render(), int), -1, 0)
    return int((red > green + 25).sum())


@pytest.mark.parametrize(
    "env", ["HalfCheetah-v5", "Hopper-v5", "Swimmer-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]
)
def test_the_robot_never_runs_out_of_the_picture(env: str) -> None:
    drawing.choose_renderer()
    world = gym.make(env, render_mode="rgb_array", width=160, height=160)
    world.reset(seed=0)
    drawing.prepare_scene(world)
    here = robot_pixels(world, 0.0)
    far_away = robot_pixels(world, 30.0)
    world.close()
    assert here > 50
    assert far_away > here / 2


@pytest.fixture
def screenless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a screen, on which nobody has chosen a renderer."""
    for name in ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM"):
        # Set and deleted, so that what choose_renderer sets is undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    choose_renderer.cache_clear()
    yield
    choose_renderer.cache_clear()


@pytest.mark.usefixtures("screenless")
def test_a_film_shows_the_policy_at_work(
    cheetah: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    import av

    monkeypatch.chdir(tmp_path)
    path = film(cheetah.run, tmp_path / "films" / "cheetah.mp4", seed=0, frames=100)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert float(container.streams.video[0].average_rate) == pytest.approx(20)
        frames = np.array([f.to_ndarray(format="rgb24") for f in container.decode(video=0)], float)
    # 25 steps to an episode, the first frame and the last included.
    assert len(frames) == 26
    assert frames.std() > 10
    assert np.abs(frames[1:] - frames[:-1]).mean(axis=(1, 2, 3)).min() > 0.01
    assert [entry.name for entry in path.parent.iterdir()] == ["cheetah.mp4"]
    # MuJoCo finds the model's old attribute worth a log file; the user has no use for it.
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:.*render_mode")
@pytest.mark.usefixtures("screenless")
def test_films_that_cannot_be_made_are_told(
    cheetah: Trained, pairs: Trained, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for run, file, words in (
        (cheetah.run, "film.gif", "film.gif; expected a name that ends in .mp4"),
        (cheetah.run, "file/film.mp4", "cannot write .*file/film.mp4"),
        (pairs.run, "film.mp4", "CopyDict-v0 cannot be filmed: it does not take render_mode"),
    ):
        with pytest.raises(UserError, match=words):
            film(run, tmp_path / file, seed=0, frames=3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_film_that_cannot_be_made_leaves_no_recording(
    cheetah: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, record = str(tmp_path / "film.gif"), str(tmp_path / "episodes")
    assert cli.main(["evaluate", str(cheetah.run), "--video", bad, "--record", record]) == 2
    assert "film.gif; expected a name that ends in .mp4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_renderer_is_one_clear_line(tmp_path: Path) -> None:
    # Libraries that are there and cannot be loaded, before the good ones on the search path.
    for name in ("EGL", "OSMesa"):
        for suffix in ("", *(f".{i}" for i in range(10))):
            (tmp_path / f"lib{name}.so{suffix}").touch()
    unset = ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    script = textwrap.dedent("""
        from tether.control.drawing import choose_renderer
        from tether.errors import UserError
        try:
            choose_renderer()
        except UserError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("no renderer works here (egl: ")
    assert "; osmesa: " in line
    assert "install EGL or OSMesa" in line
