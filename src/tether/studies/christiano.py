"""Learning from 350, 700 and 1,400 comparisons, against learning from the true reward.

    for each seed and task:
        train on the true reward, and on a reward learned from so many of an oracle's labels
        evaluate the last policy in whole episodes, by the true reward
    and on some tasks, with 700 labels, leave out one part of the method at a time

Source:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017), sections 3.1.1
    and 3.3, figures 2 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field, PositiveInt, field_validator

from tether.arguments import say
from tether.studies import comparison_report as report
from tether.studies.command_line import carry_out
from tether.studies.comparison_trials import (
    TRUE,
    ComparisonConfig,
    Training,
    Variant,
    carried_out,
    trainings,
)

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
    "uniform": {"queries": "uniform"},
    "no-ensemble": {"ensemble": 1},
    "no-regularization": {"reward_l2": 0.0, "reward_dropout": 0.0},
    "offline": {"first_labels": 1.0},
    "single-steps": {"segment_steps": 1},
    "returns": {"learn_from": "returns"},
}
"""By name, what changes."""


class ChristianoConfig(ComparisonConfig):
    """Settings of the study; a part of it has fewer tasks, labels or seeds, and is kept."""

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

    @field_validator("ablations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ABLATIONS:
                raise ValueError(f"unknown ablation {name!r}; known: {', '.join(ABLATIONS)}")
        return names


def run(
    config: ChristianoConfig,
    out: Path,
    *,
    workers: int = 2,
    cluster: str | None = None,
    known: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trains what is left, draws the curves and tabulates them.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.
        known: JSON files of earlier results, whose trainings are not done again.

    Returns:
        What ``christiano.json`` says.

    Raises:
        UserError: an unknown task or method, or `out` holds a training with other settings, or
            the seeds are of two kinds.
    """
    chosen = trials(config)
    protocol, results = carried_out(
        config, chosen, out, workers=workers, cluster=cluster, known=known
    )
    found = report.gather(config.dump(), protocol, chosen, results)
    found["reached"] = reached(found["scores"])
    curves = {TRUE: "true reward", **{str(n): f"{n:,} labels" for n in config.labels}}
    return report.write(out / "christiano.json", found, config.envs, curves)


def trials(config: ChristianoConfig) -> list[Training]:
    """Every training with its variant and task, seed by seed."""
    return trainings(
        config,
        {
            TRUE: Variant(config.envs, {"learn_from": "reward"}),
            **{str(count): Variant(config.envs, {"labels": count}) for count in config.labels},
            **{
                name: Variant(
                    config.ablated_envs, {"labels": config.ablated_labels, **ABLATIONS[name]}
                )
                for name in config.ablations
            },
        },
    )


def reached(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """For each number of labels, on how many tasks the share of the return is 0.9 and 0.95.

    Where the true reward's return is negative the share of the rise stands in for it.
    """
    counts: dict[str, dict[str, int]] = {}
    for variants in scores.values():
        for variant, cell in variants.items():
            if not variant.isdecimal():
                continue
            share = cell["share"] if cell["share"] is not None else cell["share_of_rise"]
            count = counts.setdefault(variant, {"tasks": 0, "0.9": 0, "0.95": 0})
            count["tasks"] += 1
            for goal in ("0.9", "0.95"):
                count[goal] += share is not None and share >= float(goal)
    return counts


def show(found: Mapping[str, Any]) -> None:
    """The table on stderr, and on how many tasks how much was reached."""
    report.show(found, lambda variant: f"{variant} labels" if variant.isdecimal() else variant)
    for labels, count in found["reached"].items():
        say(
            f"{labels} labels: at least 90 % on {count['0.9']} of {count['tasks']} tasks, at least "
            f"95 % on {count['0.95']}."
        )


def command(arguments: Sequence[str]) -> None:
    """`tether study christiano`."""
    carry_out(
        "christiano",
        "Learn from comparisons, against the true reward (Christiano et al. 2017, figure 2).",
        ChristianoConfig,
        run,
        show,
        arguments,
        workers="Trainings side by side.",
        known=True,
    )
