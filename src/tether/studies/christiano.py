"""Learning from 350, 700 and 1,400 comparisons, against learning from the true reward.

    for each seed and task:
        train on the true reward, and on a reward learned from so many of an oracle's labels
        evaluate the last policy in whole episodes, by the true reward
    and on some tasks, with 700 labels, leave out one part of the method at a time

Everything else is the same: the task (which goes on where it would have ended an episode, and has
no cost of torques), the on-policy method and its settings, the steps, the untrained policy's first
steps.

Source:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017), sections 3.1.1
    and 3.3, figures 2 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field, PositiveInt, field_validator

from tether.learning.config import Config
from tether.learning.seeds import parse_seeds
from tether.studies import christiano_report as report
from tether.studies.command_line import carry_out
from tether.studies.control_trials import check_envs, training_trial
from tether.studies.provenance import kind_of, protocol
from tether.studies.seed_list import SeedList
from tether.studies.trials import Trial, run_trials

TASKS: Final = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "Reacher-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Ant-v5",
)
ABLATIONS: Final[dict[str, dict[str, Any]]] = {
    "disagreement": {"queries": "disagreement"},
    "no-ensemble": {"ensemble": 1},
    "no-regularization": {"reward_l2": 0.0, "reward_dropout": 0.0},
    "offline": {"first_labels": 1.0},
    "single-steps": {"segment_steps": 1},
    "returns": {"learn_from": "returns"},
}
"""By name, what changes. The paper's own method asks where the ensemble disagrees and leaves that
out; here queries are uniform, and disagreement is the change."""


class ChristianoConfig(Config):
    """Settings of the study; fewer tasks, labels or seeds are a part of the whole, and kept."""

    envs: tuple[str, ...] = Field(default=TASKS, min_length=1)
    """Tasks, as Gymnasium ids."""
    labels: tuple[PositiveInt, ...] = Field(default=(350, 700, 1400), min_length=1)
    """Numbers of the oracle's labels."""
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    """What to leave out or change, one at a time."""
    ablated_envs: tuple[str, ...] = ("HalfCheetah-v5", "Hopper-v5", "Swimmer-v5")
    """Tasks of the ablations."""
    ablated_labels: int = Field(default=700, ge=1)
    """Labels of the ablations."""
    method: str = "ppo"
    """The on-policy method."""
    preset: str = "default"
    """The preset of learning from comparisons: default or paper."""
    seeds: SeedList = "0-4"
    """Seeds of the trainings, such as 0-4 or 0,3,7."""
    steps: int = Field(default=1_000_000, ge=1)
    """Environment steps of each training."""
    episodes: int = Field(default=20, ge=1)
    """Evaluation episodes of each last policy."""

    @field_validator("ablations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ABLATIONS:
                raise ValueError(f"unknown ablation {name!r}; known: {', '.join(ABLATIONS)}")
        return names


def run(
    config: ChristianoConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Trains what is left, draws the curves and tabulates them.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``christiano.json`` says.

    Raises:
        UserError: an unknown task or method, or `out` holds a training with other settings, or
            the seeds are of two kinds.
    """
    seeds = parse_seeds(config.seeds)
    kind_of(seeds)
    chosen = trials(config)
    check_envs((*config.envs, *config.ablated_envs))
    trainings = [trial for _, _, trial in chosen]
    results = run_trials(trainings, out, workers=workers, cluster=cluster)
    said = protocol(seeds, [out / trial.name for trial in trainings])
    return report.write(out, config.dump(), said, chosen, results)


def trials(config: ChristianoConfig) -> Sequence[tuple[str, str, Trial]]:
    """Every training with its variant and task, seed by seed."""
    variants: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        report.TRUE: (config.envs, {"learn_from": "reward"}),
        **{str(count): (config.envs, {"labels": count}) for count in config.labels},
    }
    for name in config.ablations:
        variants[name] = (
            config.ablated_envs,
            {"labels": config.ablated_labels, **ABLATIONS[name]},
        )
    return [
        (
            variant,
            env,
            training_trial(
                f"{variant}-{env}-{seed}",
                "prefer",
                env,
                seed,
                steps=config.steps,
                episodes=config.episodes,
                preset=config.preset,
                policy_method=config.method,
                torque_cost=False,
                **settings,
            ),
        )
        for seed in parse_seeds(config.seeds)
        for variant, (envs, settings) in variants.items()
        for env in envs
    ]


def command(arguments: Sequence[str]) -> None:
    """`tether study christiano`."""
    carry_out(
        "christiano",
        "Learn from comparisons, against the true reward (Christiano et al. 2017, figure 2).",
        ChristianoConfig,
        run,
        report.show,
        arguments,
        workers="Trainings side by side.",
    )
