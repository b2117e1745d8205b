"""A Hopper that learns to flip backwards, from comparisons alone.

    for each seed:
        train on a reward learned from 900 comparisons of a teacher who sees of two clips only
        how far the robot turned backwards and how high it was meanwhile
        count the flips of the last policy

Nobody wrote a reward for it: Hopper's own, for hopping forwards, is neither paid nor seen.

Source:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tether.control import tumbling
from tether.control.envs import make
from tether.control.policy import Policy
from tether.control.training import configure, load
from tether.learning.callbacks import Every, RunView
from tether.learning.config import Config
from tether.learning.learner import Metrics
from tether.learning.output.metrics import read_metrics
from tether.learning.seeds import parse_seeds
from tether.preferences.items import Segment
from tether.studies import backflip_report as report
from tether.studies.command_line import carry_out
from tether.studies.control_trials import thinned, train_or_resume
from tether.studies.provenance import kind_of, protocol
from tether.studies.seed_list import SeedList
from tether.studies.trials import Result, Trial, run_trials

ENV: Final = tumbling.ID
LYING: Final = 0.4
"""Height of the torso in metres at which the robot lies."""
UP: Final = 1.12
"""Height of the torso in metres from which it is up; standing it is at 1.25."""
HEIGHT, ANGLE = 1, 2
"""Positions of the torso in MuJoCo's qpos."""
TURN: Final = 2 * np.pi


class BackflipConfig(Config):
    """Settings of the study."""

    labels: int = Field(default=900, ge=1)
    """The teacher's comparisons."""
    seeds: SeedList = "0-4"
    """Seeds of the trainings, such as 0-4 or 0,3,7."""
    steps: int = Field(default=1_000_000, ge=1)
    """Environment steps of each training."""
    episodes: int = Field(default=8, ge=1)
    """Episodes in which the flips of a policy are counted, of 1,000 steps (8 seconds) each."""
    measurements: int = Field(default=40, ge=1)
    """How often flips are counted while a policy learns."""
    film: bool = False
    """Also films every seed's last policy."""


class Flips(NamedTuple):
    """What E episodes showed.

    Attributes:
        turns: (E,) whole turns backwards; negative: forwards.
        landed: (E,) how many of them ended upright.
        lying: (E,) share of the steps spent on the ground.
    """

    turns: NDArray[np.float64]
    landed: NDArray[np.int64]
    lying: NDArray[np.float64]


def worth(segment: Segment) -> float:
    """What the teacher thinks of a clip: turns backwards, of which rolling on the ground is none.

    A turn counts in full while the torso is up, and less the nearer it is to the ground.
    """
    assert segment.qpos is not None
    angle, height = segment.qpos[:, ANGLE], segment.qpos[1:, HEIGHT]
    up = np.clip((height - LYING) / (UP - LYING), 0.0, 1.0)
    return float(-(np.diff(angle) * up).sum() / TURN)


def better_flip(first: Segment, second: Segment) -> float:
    """The teacher: the probability that the first is better."""
    one, other = worth(first), worth(second)
    return 0.5 if one == other else float(one > other)


def count_flips(policy: Policy, episodes: int, seed: int) -> Flips:
    """Plays whole episodes with the most probable actions.

    A turn counts as landed if the torso is upright again within a twelfth of a turn, at the
    height of a standing robot (0.8 to 1.4 m), before the next turn is done.
    """
    env = make(ENV, episodes)
    try:
        observation = env.reset(seed)
        coordinates: NDArray[np.float64] = env.coordinates  # type: ignore[attr-defined]
        begin = coordinates[:, ANGLE].copy()
        landed, last = np.zeros(episodes, np.int64), np.zeros(episodes, np.int64)
        lying = np.zeros(episodes)
        steps = env.episode_limit - 1  # type: ignore[attr-defined]
        for _ in range(steps):
            observation = env.step(policy.predict(observation)).observation
            turns, height = (begin - coordinates[:, ANGLE]) / TURN, coordinates[:, HEIGHT]
            whole = np.rint(turns).astype(np.int64)
            upright = (np.abs(turns - whole) < 1 / 12) & (height > 0.8) & (height < 1.4)
            new = upright & (whole > last)
            landed, last = landed + new, np.where(new, whole, last)
            lying += height < LYING
        return Flips((begin - coordinates[:, ANGLE]) / TURN, landed, lying / steps)
    finally:
        env.close()


def run(
    config: BackflipConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Trains what is left, counts the flips and draws the curves.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``backflip.json`` says.

    Raises:
        UserError: `out` holds a training with other settings, or the seeds are of two kinds.
    """
    seeds = parse_seeds(config.seeds)
    kind_of(seeds)
    trials = trainings(config)
    results = run_trials(trials, out, workers=workers, cluster=cluster)
    said = protocol(seeds, [out / trial.name for trial in trials])
    found = report.write(out, config.dump(), said, results)
    if config.film:
        films(config, out)
    return found


def trainings(config: BackflipConfig) -> list[Trial]:
    """One for each seed."""
    settings: dict[str, Any] = {"labels": config.labels}
    return [
        Trial(
            f"seed-{seed}",
            learn,
            {
                "method": "prefer",
                "env": ENV,
                "seed": seed,
                "total_steps": config.steps,
                "episodes": config.episodes,
                "measurements": config.measurements,
                "settings": settings,
                "config": configure("prefer", "default", settings).dump(),
            },
        )
        for seed in parse_seeds(config.seeds)
    ]


def learn(settings: Mapping[str, Any], place: Path) -> Result:
    """Trains what `settings` say, or goes on with it, and counts the last policy's flips.

    Returns:
        ``curve``: (steps, turns, landed) of an episode while it learned; ``turns``, ``landed`` and
        ``lying`` of each of the last policy's episodes; ``accuracy`` of the reward model on the
        comparisons that it did not learn from.
    """
    place_of_run, episodes = place / "run", settings["episodes"]
    every = max(1, settings["total_steps"] // settings["measurements"])

    def look(run: RunView, learner: Any, metrics: Metrics) -> Metrics:
        seen = count_flips(learner.policy, episodes, settings["seed"])
        return {
            "flips/turns": float(seen.turns.mean()),
            "flips/landed": float(seen.landed.mean()),
            "flips/lying": float(seen.lying.mean()),
        }

    train_or_resume(
        place_of_run,
        settings,
        again={
            "teacher": better_flip,
            "callbacks": [Every(every, look)],
        },
    )
    rows = [row for row in read_metrics(place_of_run) if "flips/turns" in row]
    seen = count_flips(load(place_of_run), episodes, settings["seed"] + 1)
    return {
        "curve": thinned(rows, "flips/turns", "flips/landed"),
        "turns": seen.turns.tolist(),
        "landed": seen.landed.tolist(),
        "lying": seen.lying.tolist(),
        "accuracy": rows[-1].get("reward/validation_accuracy") if rows else None,
    }


def films(config: BackflipConfig, out: Path) -> list[Path]:
    """Films every seed's last policy for four seconds, as MP4 into the study's folder."""
    from tether.control.video import record_video

    return [
        record_video(
            load(out / f"seed-{seed}" / "run"),
            ENV,
            out / f"backflip-{seed}.mp4",
            seed=seed + 1,
            frames=250,
        )
        for seed in parse_seeds(config.seeds)
    ]


def command(arguments: Sequence[str]) -> None:
    """`tether study backflip`."""
    carry_out(
        "backflip",
        "A Hopper learns to flip backwards from comparisons (Christiano et al. 2017, section 3.2).",
        BackflipConfig,
        run,
        report.show,
        arguments,
        workers="Trainings side by side.",
    )
