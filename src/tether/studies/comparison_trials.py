"""Studies of learning from comparisons: trainings that differ in what the policy learns from.

Everything else is the same: the task (which goes on where it would have ended an episode, and has
no cost of torques), the on-policy method and its settings, the steps, the untrained policy's first
steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import Field

from tether.learning.config import Config
from tether.learning.seeds import parse_seeds
from tether.studies.control_trials import check_envs, training_trial
from tether.studies.provenance import kind_of, protocol
from tether.studies.seed_list import SeedList
from tether.studies.trials import Result, Trial, run_trials

TRUE: Final = "true"
"""The variant that learns from the true reward."""


class Variant(NamedTuple):
    """What some trainings learn from.

    Attributes:
        envs: the tasks on which it is tried.
        settings: of :class:`~tether.control.preferences.config.PreferConfig`, over the preset.
    """

    envs: Sequence[str]
    settings: Mapping[str, Any]


class Training(NamedTuple):
    """A trial, with what it is in the study."""

    variant: str
    env: str
    trial: Trial


class ComparisonConfig(Config):
    """The settings that these studies share."""

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


def trainings(config: ComparisonConfig, variants: Mapping[str, Variant]) -> list[Training]:
    """Every training with its variant and task, seed by seed."""
    return [
        Training(
            name,
            env,
            training_trial(
                f"{name}-{env}-{seed}",
                "prefer",
                env,
                seed,
                steps=config.steps,
                episodes=config.episodes,
                preset=config.preset,
                policy_method=config.method,
                torque_cost=False,
                **variant.settings,
            ),
        )
        for seed in parse_seeds(config.seeds)
        for name, variant in variants.items()
        for env in variant.envs
    ]


def carried_out(
    config: ComparisonConfig,
    chosen: Sequence[Training],
    out: Path,
    *,
    workers: int,
    cluster: str | None,
    known: Sequence[Path],
) -> tuple[dict[str, Any], dict[str, Result]]:
    """Trains what is left.

    Args:
        config: the settings.
        chosen: the trainings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.
        known: JSON files of earlier results, whose trainings are not done again.

    Returns:
        The protocol, see :func:`tether.studies.provenance.protocol`, and results by trial.

    Raises:
        UserError: an unknown task, or `out` holds a training with other settings, or the seeds are
            of two kinds.
    """
    seeds = parse_seeds(config.seeds)
    kind_of(seeds)
    check_envs(list(dict.fromkeys(training.env for training in chosen)))
    trials = [training.trial for training in chosen]
    results = run_trials(trials, out, workers=workers, cluster=cluster, known=known)
    return protocol(seeds, [out / trial.name for trial in trials]), results
