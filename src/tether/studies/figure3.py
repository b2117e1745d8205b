"""PPO's figure 3: six methods on seven MuJoCo tasks, a million steps each, several seeds.

    for each seed, task and method:
        train with the method's default settings, the same on all tasks
        evaluate the last policy in whole episodes

One setting of each method serves all seven tasks, found on development seeds and shown on report
seeds: ten for the two methods that are compared with published tables, five for the others. The
grid has the paper's final scores as dashed lines; the table has those of OpenAI Baselines and
Tianshou beside it.

Source:
    Schulman et al., "Proximal Policy Optimization Algorithms" (2017), section 6.2, figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from tether.control.methods import METHODS as CONTROL_METHODS
from tether.learning.config import Config
from tether.learning.methods import find_method
from tether.learning.seeds import parse_seeds
from tether.studies import figure3_report as report
from tether.studies.command_line import carry_out
from tether.studies.control_trials import MUJOCO, check_envs, random_policy, training_trial
from tether.studies.provenance import kind_of, protocol
from tether.studies.seed_list import SeedList
from tether.studies.trials import Trial, run_trials

METHODS: Final = ("ppo", "trpo", "a2c", "a2c-tr", "vpg", "cem")
SEEDS: Final = {"ppo": "0-9", "trpo": "0-9"}
"""Report seeds of the methods that have more than :data:`FEWER`."""
FEWER: Final = "0-4"
RANDOM_EPISODES: Final = 100
"""Episodes of the uniformly random policy, whose mean return is a normalized score of 0."""


class Figure3Config(Config):
    """Settings of the study; a part of it has fewer tasks, methods or seeds, and is kept."""

    envs: tuple[str, ...] = Field(default=MUJOCO, min_length=1)
    """Tasks, as Gymnasium ids."""
    methods: tuple[str, ...] = Field(default=METHODS, min_length=1)
    """Methods, as `tether methods` lists them."""
    preset: str = "default"
    """The preset of every method's settings: default or paper."""
    seeds: SeedList | None = None
    """Seeds of every method's trainings, such as 0-2 or 0,3,7. None: the report seeds 0-9 for ppo
    and trpo, 0-4 for the others. Seeds from 1000 on are for development."""
    steps: int = Field(default=1_000_000, ge=1)
    """Environment steps of each training."""
    episodes: int = Field(default=20, ge=1)
    """Evaluation episodes of each last policy."""

    @field_validator("methods")
    @classmethod
    def _learn_from_rewards(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            if "demonstrations" in find_method(CONTROL_METHODS, method).config_class.model_fields:
                raise ValueError(f"{method} learns from demonstrations, not from rewards")
        return methods


def run(
    config: Figure3Config,
    out: Path,
    *,
    workers: int = 2,
    cluster: str | None = None,
    known: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trains what is left, draws the grid and tabulates it.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.
        known: JSON files of earlier results, whose trainings are not done again.

    Returns:
        What ``figure3.json`` says.

    Raises:
        UserError: an unknown task or method, or `out` holds a training with other settings.
    """
    seeds = seeds_of(config)
    kind_of([seed for own in seeds.values() for seed in own])
    chosen = trials(config)
    check_envs(config.envs)
    floors = [
        Trial(f"random-{env}", random_policy, {"env": env, "episodes": RANDOM_EPISODES})
        for env in config.envs
    ]
    results = run_trials([*floors, *chosen], out, workers=workers, cluster=cluster, known=known)
    said = protocol(seeds, [out / trial.name for trial in chosen])
    return report.write(out, config.dump(), said, chosen, results)


def seeds_of(config: Figure3Config) -> dict[str, list[int]]:
    """The seeds of every method."""
    return {
        method: parse_seeds(config.seeds or SEEDS.get(method, FEWER), "seeds")
        for method in config.methods
    }


def trials(config: Figure3Config) -> list[Trial]:
    """Every training, seed by seed, so that a part of them is a smaller study."""
    seeds = seeds_of(config)
    return [
        training_trial(
            f"{method}-{env}-{seed}",
            method,
            env,
            seed,
            steps=config.steps,
            episodes=config.episodes,
            preset=config.preset,
        )
        for seed in sorted({seed for own in seeds.values() for seed in own})
        for env in config.envs
        for method in config.methods
        if seed in seeds[method]
    ]


def command(arguments: Sequence[str]) -> None:
    """`tether study figure3`."""
    carry_out(
        "figure3",
        "Reproduce figure 3 of the PPO paper: six methods on seven MuJoCo tasks.",
        Figure3Config,
        run,
        report.show,
        arguments,
        workers="Trainings side by side.",
        known=True,
    )
