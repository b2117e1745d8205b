"""Short films of trajectory segments, drawn from the physics state they recorded.

Nothing is simulated again: every frame sets positions and velocities and draws them. A clip is a
file named by the content of its segment and by how it was drawn, so it is made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gymnasium as gym
import numpy as np

from tether.control.drawing import (
    Format,
    can_encode,
    choose_renderer,
    drawn_environment,
    prepare_scene,
    render,
    write_video,
)
from tether.errors import UserError
from tether.learning.storage.durable import sync_folder

if TYPE_CHECKING:
    from tether.preferences.records import Segment

_SCENES_KEPT: Final = 2
_scenes: OrderedDict[tuple[str, str, int], gym.Env[Any, Any]] = OrderedDict()

_OTHERWISE: Final = "`tether prefer --teacher oracle` needs no pictures"


@dataclass(frozen=True)
class ClipStyle:
    """How clips look.

    Attributes:
        size: width and height in pixels.
        speed: playback speed; 1 is the speed of the environment's own clock, whatever its step
            lasts. Shown one step after another at a fixed rate, as in rl-teacher, 1.5 s of Hopper
            (125 steps a second) would play at a third of its speed.
        most_fps: the most frames per second; of an environment with more, every k-th is drawn.
    """

    size: int = 320
    speed: float = 1.0
    most_fps: float = 40.0

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 2048:
            raise UserError(f"the size of clips is {self.size}; expected 32 to 2048 pixels")
        if not 0.05 <= self.speed <= 20:
            raise UserError(f"--speed is {self.speed}; expected 0.05 to 20, where 1 is real time")

    @property
    def digest(self) -> str:
        """Names the style in the names of files."""
        told = json.dumps([self.size, self.speed, self.most_fps, "v1"])
        return hashlib.sha256(told.encode()).hexdigest()[:8]


class Clips:
    """The clips of a store, kept in a folder beside it.

    Attributes:
        folder: where they are kept.
        style: how they look.
    """

    def __init__(self, folder: str | Path, style: ClipStyle | None = None) -> None:
        """Nothing is written before the first clip is made."""
        self.folder = Path(folder)
        self.style = style or ClipStyle()

    def path(self, item: str, format: Format) -> Path:
        """Where the clip of an item is kept, made or not."""
        if not re.fullmatch("[0-9a-f]{32}", item):
            raise UserError(f"{item[:40]!r} is not the id of an item")
        return self.folder / f"{item}-{self.style.digest}.{format}"

    def make(self, segment: Segment, format: Format = "mp4") -> Path:
        """The clip of a segment, drawn unless it is there already.

        It is written under another name, synced and renamed, so a clip that is there is whole, and
        two processes may make the same one.

        Raises:
            UserError: the segment cannot be shown, or no renderer works on this machine.
            OSError: the file cannot be written.
        """
        path = self.path(segment.id, format)
        if path.exists():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        if not can_encode(format):
            raise UserError(f"this build of PyAV cannot write {format}; pip install av")
        temporary = self.folder / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
        try:
            frames, fps = frames_of(segment, self.style)
            write_video(temporary, frames, fps, format)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(self.folder)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return path


def frames_of(segment: Segment, style: ClipStyle) -> tuple[Iterator[np.ndarray], float]:
    """The frames (height, width, 3) of a segment, and how many are shown per second.

    A segment with MuJoCo positions is drawn; one whose observations are pictures shows those.

    Raises:
        UserError: it has neither, or its environment cannot be made or drawn here.
    """
    if segment.qpos is not None and segment.qvel is not None:
        world = _scene(segment.env, json.dumps(segment.env_kwargs, sort_keys=True), style.size)
        keep, fps = _timing(segment.dt or 1 / world.metadata.get("render_fps", 30), style)
        return _drawn(world, segment.qpos[::keep], segment.qvel[::keep]), fps
    seen = np.asarray(segment.observation)
    if seen.dtype == np.uint8 and _is_picture(seen.shape):
        keep, fps = _timing(segment.dt or 1 / 30, style)
        return _recorded(seen[::keep], style.size), fps
    raise UserError(
        f"segments of {segment.env} hold neither MuJoCo states nor pictures, so they cannot be "
        f"shown; {_OTHERWISE}"
    )


def _timing(dt: float, style: ClipStyle) -> tuple[int, float]:
    """Every how-manyth step is shown, and how many are shown per second."""
    steps = style.speed / dt
    keep = max(1, round(steps / style.most_fps))
    return keep, max(1.0, steps / keep)


def _scene(env: str, env_kwargs: str, size: int) -> gym.Env[Any, Any]:
    """An environment to draw in, kept: making one, and its renderer, costs more than a clip."""
    key = (env, env_kwargs, size)
    if key not in _scenes:
        while len(_scenes) >= _SCENES_KEPT:
            _close_scene(_scenes.popitem(last=False)[1])
        _scenes[key] = _made_scene(env, env_kwargs, size)
    _scenes.move_to_end(key)
    return _scenes[key]


def forget_scenes() -> None:
    """Closes the environments that are kept to draw in."""
    while _scenes:
        _close_scene(_scenes.popitem()[1])


def _close_scene(world: gym.Env[Any, Any]) -> None:
    inner: Any = world.unwrapped
    viewer = inner.mujoco_renderer.viewer
    # Freed later, under another scene's context, it would take that one's buffers with it.
    viewer.make_context_current()
    viewer.con.free()
    world.close()


def _made_scene(env: str, env_kwargs: str, size: int) -> gym.Env[Any, Any]:
    module = env.rpartition(":")[0]
    if module and module not in sys.modules:
        raise UserError(
            f"segments of {env} would import the module {module}, and a store does not decide what "
            f"is imported, so they cannot be shown; {_OTHERWISE}"
        )
    given = {k: v for k, v in json.loads(env_kwargs).items() if k not in ("width", "height")}
    given.pop("render_mode", None)
    world = drawn_environment(env, {**given, "width": size, "height": size})
    try:
        if not hasattr(world.unwrapped, "mujoco_renderer"):
            raise UserError(f"{env} is not a MuJoCo environment, so its segments cannot be shown")
        prepare_scene(world)
        choose_renderer()
        world.reset(seed=0)
        render(world)
    except UserError as error:
        world.close()
        raise UserError(f"{error}; {_OTHERWISE}") from error
    return world


def _drawn(
    world: gym.Env[Any, Any], positions: np.ndarray, velocities: np.ndarray
) -> Iterator[np.ndarray]:
    inner: Any = world.unwrapped
    model = inner.model
    if positions.shape[1:] != (model.nq,) or velocities.shape[1:] != (model.nv,):
        raise UserError(
            f"a segment of {type(inner).__name__} has positions {positions.shape[1:]} and "
            f"velocities {velocities.shape[1:]}; expected ({model.nq},) and ({model.nv},)"
        )
    for qpos, qvel in zip(positions, velocities, strict=True):
        # Gymnasium makes a context current when it is made, and draws into whichever is current.
        inner.mujoco_renderer.viewer.make_context_current()
        inner.set_state(np.asarray(qpos, float), np.asarray(qvel, float))
        yield render(world)


def _is_picture(shape: tuple[int, ...]) -> bool:
    """(T, H, W) or (T, H, W, channels) with 1, 3 or 4 channels, of some size."""
    flat = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))
    return flat and shape[0] > 0 and min(shape[1:3]) >= 8


def _recorded(pictures: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Recorded pictures in colour, enlarged by whole factors towards `size`."""
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    # A stack of four is the Atari convention, whose last channel is the newest frame.
    pictures = pictures[..., -1:] if pictures.shape[3] == 4 else pictures
    times = max(1, size // max(pictures.shape[1:3]))
    for picture in pictures:
        large = picture.repeat(times, 0).repeat(times, 1)
        yield np.broadcast_to(large, (*large.shape[:2], 3))
