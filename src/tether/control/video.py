"""Clips of a policy at work, as MP4."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tether.control.envs.spaces import flatten_observation
from tether.control.envs.vector import make_one
from tether.control.policy import Policy
from tether.control.run_environment import recorded_env
from tether.control.training import load
from tether.errors import BadEnvironmentError, UserError
from tether.learning.run import Run


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


def record_video(
    policy: Policy,
    env: str,
    path: Path,
    *,
    seed: int,
    frames: int = 500,
    env_kwargs: dict[str, Any] | None = None,
) -> Path:
    """Film the deterministic policy in one environment and write an MP4 (H.264) to `path`.

    Raises:
        UserError: the path cannot be written or does not end in .mp4, the environment cannot draw,
            or no renderer works on this machine.
    """
    if path.suffix != ".mp4":
        raise UserError(f"the film would go to {path}; expected a name that ends in .mp4")
    world = _drawn(env, env_kwargs or {})
    fps = int(world.metadata.get("render_fps") or 30)
    _prepare_scene(world)
    # Films faster than a screen shows only cost time: keep every k-th frame at the same speed.
    keep_every = max(1, round(fps / 50))
    temporary = path.with_name(path.name + ".tmp")
    try:
        # Other environments draw in their own ways, and need neither EGL nor OSMesa.
        if "mujoco" in sys.modules:
            choose_renderer()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_mp4(temporary, _frames(policy, world, seed, frames, keep_every), fps / keep_every)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        world.close()
    return path


def film(
    run: str | Path,
    path: Path,
    *,
    seed: int,
    frames: int = 500,
    env: str | None = None,
    network: Any = None,
) -> Path:
    """Film a run's policy in its own environment, or in `env`; see :func:`record_video`."""
    opened = Run.open(run)
    if env is None and opened.spec["env"] is None:
        raise UserError(f"run {run} was made from a function, which a film cannot make again")
    return record_video(
        load(run, network=network),
        env if env is not None else recorded_env(opened),
        path,
        seed=seed,
        frames=frames,
        env_kwargs=opened.spec["env_kwargs"],
    )


def _drawn(env: str, env_kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """The environment in the mode that gives pictures."""
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


def _frames(
    policy: Policy, world: gym.Env[Any, Any], seed: int, frames: int, keep_every: int
) -> Iterator[np.ndarray]:
    observation, _ = world.reset(seed=seed)
    for step in range(frames * keep_every):
        if step % keep_every == 0:
            yield _render(world)
        flat = flatten_observation(policy.spec.source_space, observation)[None]
        action = policy.distribution(policy.normalize(flat)).mode()
        observation, _, terminated, truncated, _ = world.step(
            policy.spec.head.to_environment(action)[0]
        )
        if terminated or truncated:
            yield _render(world)
            return


def _prepare_scene(world: gym.Env[Any, Any]) -> None:
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
    # Gymnasium stands still beside robots whose camera settings name no body to follow, though
    # their models have a camera that does: they run out of the picture.
    renderer = world.unwrapped.mujoco_renderer  # type: ignore[attr-defined]
    cameras = [model.camera(i).name for i in range(model.ncam)]
    follows = "trackbodyid" in (renderer.default_cam_config or {})
    if renderer.camera_id == -1 and "track" in cameras and not follows:
        renderer.camera_id = cameras.index("track")


def _render(world: gym.Env[Any, Any]) -> np.ndarray:
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


def _write_mp4(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    import av

    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = None
        for frame in frames:
            # H.264 with 4:2:0 chroma needs even sides.
            image = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
