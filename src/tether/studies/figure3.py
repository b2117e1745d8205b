"""PPO's figure 3: six methods on seven MuJoCo tasks, a million steps each, several seeds.

    for each seed, task and method:
        train with the method's default settings, the same on all tasks
        evaluate the last policy in whole episodes

One setting of each method serves all seven tasks. The grid has the paper's final scores as dashed
lines; the table has those of OpenAI Baselines and Tianshou beside it.

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
from tether.studies.control_trials import MUJOCO, check_envs, training_trial
from tether.studies.seed_list import SeedList
from tether.studies.trials import Trial, run_trials

METHODS: Final = ("ppo", "trpo", "a2c", "a2c-tr", "vpg", "cem")


class Figure3Config(Config):
    """Settings of the study; fewer tasks, methods or seeds are a part of the whole, and kept."""

    envs: tuple[str, ...] = Field(default=MUJOCO, min_length=1)
    """Tasks, as Gymnasium ids."""
    methods: tuple[str, ...] = Field(default=METHODS, min_length=1)
    """Methods, as `tether methods` lists them."""
    preset: str = "default"
    """The preset of every method's settings: default or paper."""
    seeds: SeedList = "0-2"
    """Seeds of the trainings, such as 0-2 or 0,3,7."""
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
    config: Figure3Config, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Trains what is left, draws the grid and tabulates it.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``figure3.json`` says.

    Raises:
        UserError: an unknown task or method, or `out` holds a training with other settings.
    """
    chosen = trials(config)
    check_envs(config.envs)
    results = run_trials(chosen, out, workers=workers, cluster=cluster)
    return report.write(out, config.dump(), chosen, results)


def trials(config: Figure3Config) -> list[Trial]:
    """Every training, seed by seed, so that a part of them is a smaller study."""
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
        for seed in parse_seeds(config.seeds)
        for env in config.envs
        for method in config.methods
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
    )
