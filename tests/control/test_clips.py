"""Clips of segments: what was recorded is what is seen, at the speed of the environment's clock."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("sqlalchemy")

from tether.control import clips as clips_module
from tether.control.clips import Clips, ClipStyle, forget_scenes, frames_of
from tether.control.drawing import choose_renderer, prepare_scene
from tether.errors import UserError
from tether.preferences.items import Segment


@pytest.fixture(autouse=True)
def own_scenes() -> Iterator[None]:
    """Other tests of this process draw as well, and free their buffers whenever they like."""
    forget_scenes()
    gc.collect()
    yield
    forget_scenes()


def hopper(steps: int, **changes: Any) -> Segment:
    """A hopper that falls."""
    world = gym.make("Hopper-v5", disable_env_checker=True)
    inner: Any = world.unwrapped
    world.action_space.seed(0)
    observation, _ = world.reset(seed=0)
    rows = []
    for _ in range(steps):
        action = world.action_space.sample()
        rows.append((observation, action, inner.data.qpos.copy(), inner.data.qvel.copy()))
        observation, *_ = world.step(action)
    seen, action, qpos, qvel = (np.array(column) for column in zip(*rows, strict=True))
    world.close()
    return Segment(
        **{
            "env": "Hopper-v5",
            "observation": seen,
            "action": action,
            "qpos": qpos,
            "qvel": qvel,
            "dt": float(inner.dt),
            **changes,
        }
    )


def read(path: Path) -> tuple[np.ndarray, float, str]:
    """Frames, seconds and codec of a film."""
    import av

    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames = np.array([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])
        return frames, len(frames) / float(stream.average_rate), stream.codec_context.name


def test_frames_are_the_recorded_states(tmp_path: Path) -> None:
    segment = hopper(7)
    choose_renderer()
    world = gym.make("Hopper-v5", render_mode="rgb_array", width=96, height=96)
    prepare_scene(world)
    inner: Any = world.unwrapped
    world.reset(seed=0)
    frames, _ = frames_of(segment, ClipStyle(size=96))
    drawn = list(frames)
    assert segment.qpos is not None
    assert segment.qvel is not None
    expected = []
    for qpos, qvel in list(zip(segment.qpos, segment.qvel, strict=True))[::3]:
        inner.set_state(qpos, qvel)
        expected.append(world.render())
    world.close()
    assert len(drawn) == 3
    for ours, theirs in zip(drawn, expected, strict=True):
        # Another renderer's rounding may differ by a level.
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2
    assert np.abs(drawn[0].astype(int) - drawn[2]).max() > 20


def test_scenes_do_not_draw_into_each_other() -> None:
    """Several environments in one process, as in a store of several; one more than are kept."""
    cheetah = {"env": "HalfCheetah-v5", "qpos": np.zeros((1, 9)), "qvel": np.zeros((1, 9))}
    segments = [hopper(1), hopper(1, **cheetah)]
    seen: dict[tuple[int, int], np.ndarray] = {}
    for which, size in ((0, 48), (1, 64), (0, 48), (1, 64), (1, 48), (0, 48), (1, 64), (0, 48)):
        [frame] = frames_of(segments[which], ClipStyle(size=size))[0]
        assert frame.shape == (size, size, 3)
        assert frame.std() > 20
        assert np.array_equal(seen.setdefault((which, size), frame), frame)


@pytest.mark.parametrize(("speed", "seconds"), [(1.0, 1.5), (0.5, 3.0), (3.0, 0.5)])
def test_one_and_a_half_seconds_last_as_long_as_they_should(
    tmp_path: Path, speed: float, seconds: float
) -> None:
    """Hopper makes 125 steps a second: shown at 40 of them a second they would last 4.7 s."""
    segment = hopper(187)
    path = Clips(tmp_path, ClipStyle(size=32, speed=speed)).make(segment)
    _, lasts, codec = read(path)
    assert codec == "h264"
    assert lasts == pytest.approx(seconds, rel=0.05)


def test_a_clip_starts_before_it_is_all_there(tmp_path: Path) -> None:
    content = Clips(tmp_path, ClipStyle(size=64)).make(hopper(30)).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_other_format_is_vp9(tmp_path: Path) -> None:
    frames, _, codec = read(Clips(tmp_path, ClipStyle(size=64)).make(hopper(12), "webm"))
    assert codec == "vp9"
    assert frames.std() > 10


def test_a_clip_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, folder = hopper(6), tmp_path / "clips"
    clips = Clips(folder, ClipStyle(size=64))
    path = clips.make(segment)
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    assert path.name.startswith(segment.id)
    before = path.stat().st_mtime_ns
    assert clips.make(hopper(6)) == path
    assert path.stat().st_mtime_ns == before
    # Drawn otherwise it is another file.
    assert Clips(folder, ClipStyle(size=64, speed=0.5)).path(segment.id, "mp4") != path

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clips_module.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        clips.make(hopper(7))
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_recorded_pictures_are_shown(tmp_path: Path) -> None:
    pictures = np.zeros((5, 16, 16, 3), np.uint8)
    pictures[:, :, :8, 0] = 255
    segment = Segment(env="Pictures-v0", observation=pictures, action=np.zeros(5), dt=0.1)
    frames, seconds, _ = read(Clips(tmp_path, ClipStyle(size=64)).make(segment))
    assert frames.shape == (5, 64, 64, 3)
    assert seconds == pytest.approx(0.5)
    assert frames[0, 32, 16, 0] > 200
    assert frames[0, 32, 48, 0] < 50


def test_what_cannot_be_shown_is_one_line(tmp_path: Path) -> None:
    segment = hopper(3)
    clips = Clips(tmp_path, ClipStyle(size=64))
    for changed, words in (
        (dataclasses.replace(segment, qpos=None), "hold neither MuJoCo states nor pictures"),
        (dataclasses.replace(segment, env="Hopper-v99"), "Hopper-v99"),
        (dataclasses.replace(segment, env="CartPole-v1"), "CartPole-v1"),
        (dataclasses.replace(segment, env="HalfCheetah-v5"), r"expected \(9,\)"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            clips.make(changed)
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_store_does_not_decide_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text("open('imported', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not decide what is imported"):
        Clips(tmp_path / "clips").make(hopper(3, env="hostile:Env-v0"))
    assert not (tmp_path / "imported").exists()


def test_paths_are_made_of_ids_alone(tmp_path: Path) -> None:
    for name in ("../x", "", "0" * 31, "0" * 33, "A" * 32):
        with pytest.raises(UserError, match="is not the id of an item"):
            Clips(tmp_path).path(name, "mp4")


def test_styles_out_of_range_are_told() -> None:
    for changes, words in (({"speed": 0.0}, "--speed is 0"), ({"size": 4}, "expected 32 to 2048")):
        with pytest.raises(UserError, match=words):
            ClipStyle(**changes)
    assert json.dumps(ClipStyle().digest)
    assert os.sep not in ClipStyle().digest
