"""Pictures of environments without a screen: a renderer, a scene and a file of frames."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from tether.control.envs.vector import make_one
from tether.errors import BadEnvironmentError, UserError

Format = Literal["mp4", "webm"]
"""H.264 in an MP4 file, or VP9 in a WebM file."""

# Encoder, its options, and the options of the file. Without "realtime" VP9 takes ten times as long.
_ENCODERS: dict[Format, tuple[str, dict[str, str], dict[str, str]]] = {
    "mp4": ("libx264", {}, {"movflags": "faststart"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"}, {}),
}


@functools.cache
def choose_renderer() -> None:
    """Set MUJOCO_GL to a backend that draws without a screen, unless the user set it.

    EGL first, then OSMesa. Each is tried in a process of its own, since a library that loads and
    then fails to draw cannot be unloaded.

    Raises:
        UserError: neither works.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY"):
        return
    reasons = []
    for backend in ("egl", "osmesa"):
        settings = {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        probe = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        if probe.returncode == 0:
            os.environ.update(settings)
            return
        reasons.append(f"{backend}: {(probe.stderr.strip().splitlines() or ['failed'])[-1]}")
    raise UserError(
        f"no renderer works here ({'; '.join(reasons)}); install EGL or OSMesa (Debian: libegl1 "
        "libegl-mesa0, or libosmesa6)"
    )


def drawn_environment(env: str, env_kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """The environment in the mode that gives pictures.

    Raises:
        UserError: it is unknown, or its class does not take ``render_mode``.
    """
    try:
        with warnings.catch_warnings():
            # What Gymnasium warns of here is either no obstacle or reported in one line below.
            warnings.filterwarnings("ignore", ".*render_mode")
            return make_one(env, render_mode="rgb_array", **env_kwargs)
    except BadEnvironmentError as error:
        if isinstance(error.__cause__, TypeError) and "render_mode" in str(error.__cause__):
            raise UserError(
                f"{env} cannot be filmed: it does not take render_mode; let its __init__ take "
                "render_mode and its render() return an array (height, width, 3) of uint8"
            ) from error
        raise


def prepare_scene(world: gym.Env[Any, Any]) -> None:
    """Let a MuJoCo scene's camera follow the robot, and leave out what only costs time.

    Without a graphics card, shadows, reflections and multisampling take eleven twelfths of the
    time of a frame.
    """
    model: Any = getattr(world.unwrapped, "model", None)
    if type(model).__name__ != "MjModel":
        return
    model.vis.quality.offsamples = 0
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    # Gymnasium's free camera stands still, whatever body its settings name to be followed, and
    # robots run out of the picture; their models have a camera that follows.
    renderer = world.unwrapped.mujoco_renderer  # type: ignore[attr-defined]
    cameras = [model.camera(i).name for i in range(model.ncam)]
    if renderer.camera_id == -1 and "track" in cameras:
        renderer.camera_id = cameras.index("track")


def render(world: gym.Env[Any, Any]) -> np.ndarray:
    """The picture (height, width, 3) of uint8 that an environment draws of itself.

    Raises:
        UserError: no renderer works here, or what is drawn is no picture.
    """
    try:
        frame = world.render()
    except gym.error.DependencyNotInstalled as error:
        raise UserError(f"drawing needs another package: {_first_line(error)}") from error
    except Exception as error:
        raise UserError(
            f"no renderer works here (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): "
            f"{_first_line(error)}; install EGL or OSMesa (Debian: libegl1 or libosmesa6) and set "
            "MUJOCO_GL=egl or MUJOCO_GL=osmesa"
        ) from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        found = f"an array of shape {frame.shape}" if isinstance(frame, np.ndarray) else repr(frame)
        raise UserError(
            f"{type(world.unwrapped).__name__} cannot be filmed: render() returned {found[:80]}; "
            "expected an array (height, width, 3) of uint8"
        )
    return frame


def write_video(
    path: Path, frames: Iterator[np.ndarray], fps: float, format: Format = "mp4"
) -> None:
    """Write frames (height, width, 3) of uint8 as a film; an MP4 starts before it is all there.

    Args:
        path: the file, of whatever name.
        frames: at least one, all of one size.
        fps: frames per second.
        format: "mp4" is H.264 with 4:2:0 chroma, which every browser of today plays but for builds
            without licensed codecs; "webm" is VP9, which those play.
    """
    import av

    codec, options, settings = _ENCODERS[format]
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", format=format, options=settings) as container:
        stream: Any = None
        for frame in frames:
            # H.264 with 4:2:0 chroma needs even sides.
            image = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())


def can_encode(format: Format) -> bool:
    """Whether PyAV was built with the encoder of a format; builds without libx264 exist."""
    import av

    return _ENCODERS[format][0] in av.codecs_available


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
